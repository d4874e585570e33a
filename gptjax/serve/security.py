"""Security of the server: host names, origins, API keys, connections, the CSP."""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptjax.core.console import UserError
from gptjax.serve.api_errors import ApiError

MIN_KEY_CHARACTERS = 8
HEAD_SECONDS = 30.0  # within which the head of a request has to arrive

HEADERS = {
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
}
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """ASGI middleware that refuses requests of unknown origin.

    - The Host header has to be an IP address, `localhost` or one of `hosts`. This
      refuses pages whose host name resolves to this server (DNS rebinding).
    - Requests of pages of other sites (Origin) are refused; there is no CORS.
    - With a key, every route except /health needs it: `Authorization: Bearer KEY`, or
      Basic with the key as password, for which a browser asks.

    Every response gets an `x-request-id`, and headers that forbid browsers to sniff,
    frame or share it.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], key: str | None):
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._key = None if key is None else _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        request_id = f'req_{secrets.token_hex(12)}'

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault('Content-Security-Policy', STRICT_POLICY)
                headers.setdefault('Cache-Control', 'no-store')
                headers['x-request-id'] = request_id
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist('host')
        if len(hosts) != 1 or not self._is_own_name(host_name(hosts[0])):
            raise ApiError(
                403,
                f'the host {", ".join(hosts)[:100]!r} is unknown: add it to '
                '--allowed_hosts if it is this server',
                'host_not_allowed',
            )
        origin = headers.get('origin')
        if origin is not None and origin.split('://')[-1] != hosts[0]:
            raise ApiError(
                403, 'pages of other sites may not send requests', 'origin_not_allowed'
            )
        if self._key is not None and scope['path'] != '/health':
            self._check_key(headers.get('authorization', ''))

    def _is_own_name(self, host: str) -> bool:
        if host in self._hosts or host == 'localhost':
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True  # DNS cannot change where an address leads

    def _check_key(self, authorization: str) -> None:
        if not hmac.compare_digest(_digest(_key_of(authorization)), self._key):
            error = ApiError(
                401,
                'no API key, or a wrong one: send `Authorization: Bearer KEY`',
                'invalid_api_key',
            )
            error.headers['WWW-Authenticate'] = 'Basic realm="gptjax", charset="UTF-8"'
            raise error


def _digest(key: str) -> bytes:
    """A hash: all hashes have one length, so comparing them takes the same time."""
    return hashlib.sha256(key.encode('utf-8', 'surrogatepass')).digest()


def _key_of(authorization: str) -> str:
    """The key of an Authorization header, or ''."""
    kind, _, value = authorization.partition(' ')
    if kind.lower() == 'bearer':
        return value.strip()
    if kind.lower() == 'basic':
        try:
            pair = base64.b64decode(value.strip(), validate=True)
        except ValueError:  # not base64, or not ASCII
            return ''
        return pair.decode('utf-8', 'replace').partition(':')[2]
    return ''


def host_name(host: str) -> str:
    """A Host header without the port: '[::1]:80' → '::1'."""
    if host.startswith('['):
        return host[1:].partition(']')[0].lower()
    return host.partition(':')[0].lower().rstrip('.')


def content_policy(page: str) -> str:
    """The Content-Security-Policy that allows the one script and style of the page."""
    hashes = {}
    for tag in ('script', 'style'):
        contents = re.findall(rf'<{tag}>(.*?)</{tag}>', page, re.DOTALL)
        if len(contents) != 1 or len(re.findall(rf'<{tag}\b', page)) != 1:
            raise ValueError(f'the page needs exactly one <{tag}>, without attributes')
        digest = hashlib.sha256(contents[0].encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


# ---- connections --------------------------------------------------------------


class LimitedConnection(H11Protocol):
    """uvicorn's connection, with limits on the open connections and on slow clients.

    A client has `HEAD_SECONDS` to send the head of each request. (uvicorn limits the
    time between requests, and `read_body` the time for the body.) A connection above
    `max_connections` gets the status 503 and is closed.
    """

    def __init__(self, *args, max_connections: int, **options):
        super().__init__(*args, **options)
        self._max_connections = max_connections
        self._head_timer = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            error = ApiError(503, 'too many connections: try again in 1 s', 'full')
            body = error.response().body
            head = (
                f'HTTP/1.1 {error.status} Service Unavailable',
                'Content-Type: application/json',
                f'Content-Length: {len(body)}',
                'Retry-After: 1',
                'Connection: close',
            )
            transport.write('\r\n'.join(head).encode() + b'\r\n\r\n' + body)
            transport.close()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def _watch_head(self):
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._cancel_timer()
        elif self._head_timer is None:
            close = self.transport.close
            self._head_timer = self.loop.call_later(HEAD_SECONDS, close)

    def _cancel_timer(self):
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


# ---- flags --------------------------------------------------------------------


def read_key(path: str) -> str:
    """The API key in a file."""
    try:
        key = Path(path).expanduser().read_text(encoding='utf-8-sig').strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(
            f'--api_key_file={path}: {reason}: make one, as '
            f'`openssl rand -hex 32 > {path}`'
        ) from error
    if not re.fullmatch(rf'[!-~]{{{MIN_KEY_CHARACTERS},}}', key):
        raise UserError(
            f'--api_key_file={path}: use one line of {MIN_KEY_CHARACTERS} or more '
            'ASCII characters without spaces'
        )
    return key


def check_host(host: str, key: str | None) -> None:
    """Refuses to serve other machines without an API key."""
    try:
        entries = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a host name'
        raise UserError(
            f'--host={host}: {reason}: use 127.0.0.1, or an address of this machine'
        ) from error
    is_local = all(
        ipaddress.ip_address(entry[4][0].partition('%')[0]).is_loopback
        for entry in entries
    )
    if key is None and (not host or not is_local):
        raise UserError(
            f'--host={host}: other machines have access: set --api_key_file, or use '
            '--host=127.0.0.1'
        )
