"""The end of the process: in time, whatever the work left running.

Python joins, without limit, the threads of executors and the child processes of `multiprocessing`,
and asyncio joins those of its default executor: uvicorn logs "Finished server process", and stays.
"""

import logging
import multiprocessing
import os
import sys
from pathlib import Path
from threading import Thread, Timer

FLUSH_SECONDS = 1
"""Maximum seconds for writing what was logged and printed."""


def is_command_line() -> bool:
    """Return whether this process is uvicorn's command line, `python -m handler`, or their child.

    Any other program, such as one that embeds the server, ends when it wants to.
    """
    command = Path(sys.argv[0])
    name = command.parent.name if command.stem == "__main__" else command.stem
    return name in ("uvicorn", "handler")


def exit_after(seconds: float) -> None:
    """Exit with status 0 after `seconds`, if this process is still there."""
    if is_command_line():
        timer = Timer(seconds, end_process)
        timer.daemon = True
        timer.start()


def end_process() -> None:
    """Exit with status 0, with what was logged and printed, and without the child processes."""
    try:
        for child in multiprocessing.active_children():
            child.kill()
        # In a thread: what hangs may hold a lock that this needs.
        flush = Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
    finally:
        os._exit(0)


def _flush() -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
