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
    # Mangum calls asyncio.get_event_loop(), which is deprecated without a current event loop.
    warnings.simplefilter("ignore", DeprecationWarning)
    mangum = Mangum(app, lifespan="off")


def handler(event: LambdaEvent, context: LambdaContext) -> dict[str, Any]:
    """Return the response to an API Gateway event.

    In SAM CLI the timestamp of `local_authorizer.py` takes precedence over any from the client.
    """
    match event:
        case {"requestContext": {"authorizer": {"lambda": {"requestStart": timestamp}}}}:
            event["headers"]["X-Request-Start"] = timestamp
    return mangum(event, context)
