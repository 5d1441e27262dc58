"""The entry points: `app` for an ASGI server, `handler` for AWS Lambda."""

import warnings
from typing import Any

from mangum import Mangum
from mangum.types import LambdaContext, LambdaEvent

from handler.app import create_app
from handler.settings import Settings

settings = Settings.load()
app = create_app(settings)
with warnings.catch_warnings():
    # Mangum asks for a current event loop, and makes one where there is none.
    warnings.simplefilter("ignore", DeprecationWarning)
    mangum = Mangum(app, lifespan="off")


def handler(event: LambdaEvent, context: LambdaContext) -> dict[str, Any]:
    """Return the response to an event of API Gateway's.

    In SAM CLI the timestamp of `clock.py` takes precedence over any that the client sent.
    """
    match event:
        case {"requestContext": {"authorizer": {"lambda": {"requestStart": timestamp}}}}:
            event["headers"]["X-Request-Start"] = timestamp
    return mangum(event, context)
