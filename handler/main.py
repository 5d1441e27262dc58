"""The two front doors: `app` for an ASGI server, `handler` for AWS Lambda."""

import os
import warnings
from typing import Any

from mangum import Mangum
from mangum.types import LambdaContext, LambdaEvent

from handler.app import create_app
from handler.settings import Settings, exit_if_invalid

with exit_if_invalid():
    settings = Settings.load()
    if "AWS_LAMBDA_FUNCTION_NAME" not in os.environ:  # there nobody waits
        from handler.connections import require

        require(settings.max_waiting)

app = create_app(settings)
with warnings.catch_warnings():
    # Mangum asks for a current event loop, and makes one where there is none.
    warnings.simplefilter("ignore", DeprecationWarning)
    mangum = Mangum(app, lifespan="off")


def handler(event: LambdaEvent, context: LambdaContext) -> dict[str, Any]:
    """Answer an event of API Gateway's.

    Through SAM CLI the stamp of its clock, `clock.py`, goes before any that the caller sent.
    """
    match event:
        case {"requestContext": {"authorizer": {"lambda": {"requestStart": stamp}}}}:
            event["headers"]["X-Request-Start"] = stamp
    return mangum(event, context)
