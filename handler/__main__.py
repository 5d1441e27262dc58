"""`python -m handler`: serve with the settings of the environment or `.env`, in one worker."""

import uvicorn

from handler.main import app, settings

# asyncio's loop takes all connections that wait in one pass, uvloop's one: in a flood of callers a
# newcomer would be refused after seconds instead of at once.
uvicorn.run(app, host=settings.hostname, port=settings.port, workers=1, loop="asyncio")
