"""`python -m handler`: serve with the settings of the environment or `.env`, in one worker."""

import uvicorn

from handler.main import app

settings = app.state.settings
uvicorn.run(app, host=settings.hostname, port=settings.port, workers=1)
