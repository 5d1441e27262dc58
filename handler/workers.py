"""One worker, or none: a second one would work on a second call at a time."""

import sys

STARTUP_FAILURE = 3
"""uvicorn's exit status for a worker that cannot start; its supervisor then starts no other."""


def refuse_workers() -> None:
    """Exit with `STARTUP_FAILURE` and one line when this process is one of several workers."""
    # uvicorn starts workers through multiprocessing, which has been imported in a child of it;
    # to import it here would cost a tenth of a cold start.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return
    config = getattr(multiprocessing.current_process(), "_kwargs", {}).get("config")
    workers = getattr(config, "workers", 1)
    # With --reload uvicorn starts one, whatever number it was given.
    if workers > 1 and not getattr(config, "reload", False):
        print(
            f"handler: {workers} workers would work on {workers} calls at a time; "
            "start one: --workers 1, and no WEB_CONCURRENCY",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)
