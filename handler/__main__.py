"""`python -m handler`: serve with the settings of the environment or `.env`, in one worker."""

import sys

import uvicorn

from handler.main import app, settings
from handler.server.address import available

try:
    host = available(settings.hostname)
except OSError as error:
    print(f"handler: HOSTNAME={settings.hostname!r}: {error.strerror}", file=sys.stderr)
    sys.exit(uvicorn.config.STARTUP_FAILURE)

uvicorn.run(app, host=host, port=settings.port, workers=1, lifespan="on")
