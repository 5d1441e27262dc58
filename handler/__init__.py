"""An HTTP service that processes requests one at a time."""
