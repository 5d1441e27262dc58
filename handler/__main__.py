"""`python -m handler`: serve with the settings of the environment or `.env`, in one worker."""

import uvicorn

from handler.main import app, settings

# asyncio's loop accepts all new connections in an iteration, uvloop's accepts one: under overload
# new clients would wait for seconds to be rejected.
uvicorn.run(app, host=settings.hostname, port=settings.port, workers=1, loop="asyncio")
