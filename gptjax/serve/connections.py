"""Connections that ask for nothing: so many at most, and not for long."""

import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptjax.serve.api_errors import ApiError

HEAD_SECONDS = 30.0  # that the head of a request may take


class Connection(H11Protocol):
    """uvicorn's connection, which ends where no request comes.

    From its beginning, and from the first byte of each further request, the client
    has `HEAD_SECONDS` to send the request's head. (Between requests uvicorn counts,
    and `body` counts after the head.)

    Args:
        most: connections at once. One more is told to come again, and closed.
    """

    def __init__(self, *args, most: int, **more):
        super().__init__(*args, **more)
        self._most = most
        self._head_limit = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(_answer(_full()))
            transport.close()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_limit()
        super().connection_lost(exc)

    def _watch_head(self):
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._end_limit()
        elif self._head_limit is None:
            close = self.transport.close
            self._head_limit = self.loop.call_later(HEAD_SECONDS, close)

    def _end_limit(self):
        if self._head_limit:
            self._head_limit.cancel()
            self._head_limit = None


def _full() -> ApiError:
    return ApiError(503, 'too many connections: try again in 1 s', 'full')


def _answer(error: ApiError) -> bytes:
    """A whole HTTP answer, after which the connection is closed."""
    body = json.dumps(error.body()).encode()
    head = (
        f'HTTP/1.1 {error.status} Service Unavailable',
        'Content-Type: application/json',
        f'Content-Length: {len(body)}',
        'Retry-After: 1',
        'Connection: close',
    )
    return '\r\n'.join(head).encode() + b'\r\n\r\n' + body
