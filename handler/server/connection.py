"""One connection: how long and how much a client may take to send a request.

What is relied on of uvicorn's protocol stands in `Connection`, and nowhere else.
"""

import asyncio
from functools import partial
from typing import Any

from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handler.server.descriptors import Overflow, require

HEAD_SECONDS = 10
"""Seconds that a connection has to send the head of its next request.

nginx's name for it is client_header_timeout, Node's headersTimeout, HAProxy's timeout http-request.
"""

HEAD_BYTES = 65536
"""How long a request's head may be, as in h11."""

HEADERS = 100
"""How many headers a request may have, as in Apache and gunicorn."""

LINGER_SECONDS = 1.0
"""Seconds for which a rejected client may read why, until its connection is closed."""

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)


class BadRequest(Exception):
    """Raised out of the parser's callbacks; uvicorn then calls `send_400_response`."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on how long and how much a client may take to send a request.

    A request that is sent before the one ahead of it is answered is dropped, and the connection
    closes after that response: simultaneous requests have a connection each.
    A client that does not read its responses is cut off.
    """

    def __init__(self, *args: Any, overflow: Overflow, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = max(HEAD_SECONDS, self.timeout_keep_alive)
        self._overflow = overflow
        self._ignores = False
        self._unparsed = 0

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(self.timeout_keep_alive)
        if len(self.connections) > self._overflow.connections and not self._overflow.make_room():
            self._overflow.log()
            self._reject(self._overflow.response)
        self._overflow.idle[self] = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._overflow.idle.pop(self, None)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._ignores:
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self._ignores:
            self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        if not self._idle:
            raise BadRequest
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS:
            raise BadRequest
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise BadRequest
        self._unparsed = 0
        super().on_headers_complete()
        self._overflow.idle.pop(self, None)
        self._unset_keepalive_if_required()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._overflow.idle[self] = self.loop.time()
        if self.transport.get_write_buffer_size():  # the kernel's is full of what was not read
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self._idle:
            self._reject(BAD_REQUEST)
        else:
            self._ignores = True
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def _reject(self, response: bytes) -> None:
        # Closing with something unread would cut the response: the client closes, or the timer.
        self._ignores = True
        self.transport.write(response)
        self._close_after(LINGER_SECONDS)

    def _close_after(self, seconds: float) -> None:
        if self.timeout_keep_alive_task:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        # uvicorn's timer ends with the first byte of a request, this one with the last of its head.
        if self.transport.is_closing() or not self._idle:
            super()._unset_keepalive_if_required()


def limit_connections(config: Config, max_waiting: int, rejection: Response) -> None:
    """Limit the connections of the uvicorn server that is about to start with `config`.

    `rejection` is what clients beyond the bound get. Another protocol than httptools' is left as
    it is. Raises `InvalidSetting`.
    """
    overflow = Overflow(require(max_waiting), rejection)
    if config.http_protocol_class is HttpToolsProtocol:
        config.http_protocol_class = partial(Connection, overflow=overflow)  # type: ignore[assignment]
