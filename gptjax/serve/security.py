"""Who may ask: the host's name, other web pages, the key; and what the page may do."""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptjax.core.console import UserError
from gptjax.serve.api_errors import ApiError

LEAST_KEY = 8  # characters
OPEN = ('/health',)  # asked without a key

HEADERS = {
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
}
NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """Lets requests through to `app` that are what they should be.

    - The Host header is an address, `localhost` or one of `hosts`: a page of
      another site that has its name point here (DNS rebinding) is refused.
    - A request that a page of another site makes (Origin) is refused; no header
      ever allows one (no CORS).
    - With a key, every route but /health wants it: `Authorization: Bearer KEY`, or
      Basic with the key as password, for which a browser asks.

    Every answer gets headers that keep browsers from doing more with it, and an
    `x-request-id`.
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
                headers.setdefault('Content-Security-Policy', NO_CONTENT)
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
        given = headers.getlist('host')
        if len(given) != 1 or not self._known(host_name(given[0])):
            raise ApiError(
                403,
                f'the host {", ".join(given)[:100]!r} is not known here: add it to '
                '--allowed_hosts if it is this server',
                'host_not_allowed',
            )
        origin = headers.get('origin')
        if origin is not None and origin.split('://')[-1] != given[0]:
            raise ApiError(
                403, 'pages of other sites may not ask here', 'origin_not_allowed'
            )
        if scope['path'] not in OPEN:
            self._check_key(headers.get('authorization', ''))

    def _known(self, host: str) -> bool:
        if host in self._hosts or host == 'localhost':
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True  # an address cannot be made to point elsewhere

    def _check_key(self, authorization: str) -> None:
        if self._key is None:
            return
        found = _digest(_given_key(authorization))
        if not hmac.compare_digest(found, self._key):
            error = ApiError(
                401,
                'no API key, or a wrong one: send `Authorization: Bearer KEY`',
                'invalid_api_key',
            )
            error.headers['WWW-Authenticate'] = 'Basic realm="gptjax", charset="UTF-8"'
            raise error


def _digest(key: str) -> bytes:
    """Of one length for all keys, so that comparing them tells nothing."""
    return hashlib.sha256(key.encode('utf-8', 'surrogatepass')).digest()


def _given_key(authorization: str) -> str:
    kind, _, value = authorization.partition(' ')
    if kind.lower() == 'bearer':
        return value.strip()
    if kind.lower() == 'basic':
        try:
            pair = base64.b64decode(value.strip(), validate=True)
        except ValueError:  # no base64, or no ASCII
            return ''
        return pair.decode('utf-8', 'replace').partition(':')[2]
    return ''


def host_name(host: str) -> str:
    """A Host header without its port, as 'localhost' or '::1'."""
    if host.startswith('['):
        return host[1:].partition(']')[0].lower()
    return host.partition(':')[0].lower().rstrip('.')


def read_key(path: str) -> str:
    """The API key in a file.

    Raises:
        UserError: there is no such file, or no key in it.
    """
    try:
        key = Path(path).expanduser().read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, 'strerror', None) or 'it is no text'
        raise UserError(
            f'--api_key_file={path}: {why}: make one, as '
            f'`openssl rand -hex 32 > {path}`'
        ) from error
    if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable()) or ' ' in key:
        raise UserError(
            f'--api_key_file={path}: use one line of {LEAST_KEY} or more ASCII '
            'characters without spaces'
        )
    return key


def check_host(host: str, key: str | None) -> None:
    """Refuses to be asked by other machines without a key.

    Raises:
        UserError: `host` is beyond this machine and there is no key, or it is no
            host at all.
    """
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, 'strerror', None) or 'it is no host name'
        raise UserError(f'--host={host}: {why}: use 127.0.0.1, or an address of this '
                        'machine') from error  # fmt: skip
    inside = all(
        ipaddress.ip_address(entry[4][0].partition('%')[0]).is_loopback
        for entry in found
    )
    if key is None and (not host or not inside):
        raise UserError(
            f'--host={host}: other machines could ask: give an --api_key_file, or use '
            '--host=127.0.0.1'
        )


def content_policy(page: str) -> str:
    """The Content-Security-Policy of the page: its own script and style run, no more.

    Raises:
        ValueError: the page has not exactly one inline script and one style.
    """
    hashes = {}
    for tag in ('script', 'style'):
        found = re.findall(rf'<{tag}>(.*?)</{tag}>', page, re.DOTALL)
        if len(found) != 1 or len(re.findall(rf'<{tag}\b', page)) != 1:
            raise ValueError(f'the page needs exactly one <{tag}>, without attributes')
        digest = hashlib.sha256(found[0].encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
