"""One at a time: a service that processes one request after the other."""
