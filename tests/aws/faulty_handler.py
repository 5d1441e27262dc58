"""The Lambda handler for the runtime emulator: an event can ask for work that fails or hangs.

The work is a plain function, which runs in a thread.
"""

import threading
import time
from typing import Any

from mangum import Mangum
from mangum.types import LambdaContext

from handler import main
from handler.app import create_app

fault: str | None = None


def faulty_work(seconds: float) -> None:
    match fault:
        case "fail":
            raise ZeroDivisionError("the work failed")
        case "hang":
            threading.Event().wait()
    time.sleep(seconds)


main.mangum = Mangum(create_app(main.settings, faulty_work), lifespan="off")


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    global fault
    fault = event.get("headers", {}).get("X-Fault")
    return main.handler(event, context)
