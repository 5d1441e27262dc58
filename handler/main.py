"""The two front doors: `app` for an ASGI server, `handler` for AWS Lambda."""

import sys

from mangum import Mangum

from handler.app import create_app
from handler.process import refuse_workers
from handler.settings import InvalidSetting

refuse_workers()
try:
    app = create_app()
except InvalidSetting as error:
    print(f"handler: {error}", file=sys.stderr)
    raise SystemExit(2) from None

handler = Mangum(app, lifespan="off")
