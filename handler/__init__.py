"""One at a time: a service whose one endpoint serves one call after the other."""
