"""One at a time: a service whose one endpoint serves one call after the other."""

from handler.app import create_app

__all__ = ["create_app"]
