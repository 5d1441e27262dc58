"""The local door's clock: an authorizer that SAM CLI asks before a call queues for the function."""

import time


def handler(event: object, context: object) -> dict[str, object]:
    """Let the call pass, and stamp it with the seconds since the epoch."""
    return {"isAuthorized": True, "context": {"requestStart": f"t={time.time():.6f}"}}
