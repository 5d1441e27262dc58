"""One connection: how long a client may take to send a request, and how much it may send.

uvicorn by httptools bounds neither the size of a request's head nor the time that it takes, stops
watching a client that sends its next request too early, and waits without limit for one that does
not read its response. What is relied on of uvicorn's protocol stands here, and nowhere else.
"""

import asyncio
from math import inf
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10
"""Seconds to send a request's head, from its first byte, or from the connection or response before.

nginx's name for it is client_header_timeout, Node's headersTimeout, HAProxy's timeout http-request.
"""

HEAD_BYTES = 65536
"""Maximum size of a request's head, as in h11."""

HEADERS = 100
"""Maximum number of headers, as in Apache and gunicorn."""

LINGER_SECONDS = 1
"""How long a client has to read its response after a bad request or at a shutdown."""

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)


class BadRequest(Exception):
    """Raised out of the parser's callbacks; uvicorn then calls `send_400_response`."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits on a request's head, and a client that is watched until its response.

    `idle` has the transport while there is no request, and since when on the event loop's clock.
    What a client sends before its response is kept, if it is no longer than a head, until then;
    pipelined requests, several in a packet, are dropped and the connection closes, since
    simultaneous requests have a connection each.
    """

    def __init__(self, *args: Any, idle: dict[asyncio.Transport, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's 5 s are too short for proxies, which keep connections for longer.
        self.timeout_keep_alive = max(HEAD_SECONDS, self.timeout_keep_alive)
        self._idle_since = idle
        self._ignores = False
        self._unparsed = 0
        self._early = b""
        self._unsent: float = inf

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since[transport] = self.loop.time()
        self._close_after(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._idle_since.pop(self.transport, None)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._ignores:
            return
        if not self._idle and not self.cycle.more_body:
            self._early += data
            if len(self._early) > HEAD_BYTES:
                self._ignore()
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self._ignores:
            self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        if not self._idle:
            raise BadRequest
        super().on_message_begin()
        if self.timeout_keep_alive > HEAD_SECONDS:
            self._close_after(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS:
            raise BadRequest
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._unparsed > HEAD_BYTES:  # the head, and perhaps some of the body
            head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if head > HEAD_BYTES:
                raise BadRequest
        self._unparsed = 0
        super().on_headers_complete()
        self._idle_since.pop(self.transport, None)
        self._unset_keepalive_if_required()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._close_after(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super()._unset_keepalive_if_required()
        super().on_response_complete()
        self._idle_since[self.transport] = self.loop.time()
        self._unsent = inf
        if self.transport.is_closing():
            self._close_after(self.timeout_keep_alive)
        elif self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = inf
        self._close_after(self.timeout_keep_alive)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        super().shutdown()
        self.timeout_keep_alive = LINGER_SECONDS
        if self._idle:
            self._close_after(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        if self._idle:
            self._ignores = True
            # Closing with unread data would truncate the response: let the client close.
            self.transport.write(BAD_REQUEST)
            self._close_after(LINGER_SECONDS)
        else:
            self._ignore()

    def timeout_keep_alive_handler(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:  # the client is slow, but it reads
            self._unsent = unsent
            self._close_after(self.timeout_keep_alive)
        else:
            self.transport.abort()

    def _ignore(self) -> None:
        """Drop what the client sends from now on, and close the connection after the response."""
        self._ignores = True
        self.cycle.keep_alive = False

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
