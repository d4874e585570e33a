"""Hosts, origins, keys, the policy of the page; connections without a request."""

import asyncio
import base64
import contextlib
import hashlib
import json
import socket

import pytest

from gptjax.core.console import UserError
from gptjax.serve import security, serve
from gptjax.serve.security import Guard, content_policy

SECONDS = 20  # limit of waiting for a connection that has to be closed
GET = b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'


async def inner(scope, receive, send):
    await send(dict(type='http.response.start', status=200, headers=[]))
    await send(dict(type='http.response.body', body=b''))


def status_of(guard, path='/', **headers):
    """(status, headers) of a GET."""
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(k.replace('_', '-').encode(), v.encode()) for k, v in headers.items()]
    scope = dict(type='http', method='GET', path=path, headers=pairs)
    asyncio.run(guard(scope, None, send))
    return sent[0]['status'], dict(sent[0]['headers'])


def test_hosts():
    guard = Guard(inner, ['Chat.example'], None)
    for host, status in {
        'localhost': 200,
        'LOCALHOST:80': 200,
        'localhost.:80': 200,
        '127.0.0.1:8000': 200,
        '[::1]:8000': 200,
        'chat.example': 200,
        'chat.example.evil': 403,
        '127.0.0.1.evil': 403,
        'evil@localhost': 403,
        '[::1': 200,
        '::1': 403,
        '': 403,
    }.items():
        assert status_of(guard, host=host)[0] == status, host
    assert status_of(guard)[0] == 403


def test_keys():
    guard = Guard(inner, [], 'the key')

    def ask(given, path='/'):
        return status_of(guard, path, host='localhost', authorization=given)[0]

    basic = base64.b64encode(b'me:the key').decode()
    assert ask('Bearer the key') == ask(f'Basic {basic}') == 200
    wrong = ('', 'Bearer', 'Bearer the', 'Bearer the key2', 'the key')
    for given in (*wrong, 'Basic !', 'Basic é', f'Basic {basic}é'):
        assert ask(given) == 401, given
    assert ask('', '/health') == 200
    for path in ('/health/', '/healthy', '//health', '/HEALTH'):
        assert ask('', path) == 401


def test_answers_keep_browsers_from_more():
    _, headers = status_of(Guard(inner, [], None), host='localhost')
    assert headers[b'content-security-policy'].startswith(b"default-src 'none'")
    assert headers[b'x-content-type-options'] == b'nosniff'
    assert headers[b'cache-control'] == b'no-store'
    assert not [name for name in headers if b'access-control' in name]


def test_reading_keys(tmp_path):
    path = tmp_path / 'key'
    path.write_text('  a-good-key\n')
    assert security.read_key(str(path)) == 'a-good-key'
    for bad in ('', 'short', 'two words here', 'two-lines\nare-none', 'schlüssel-lang'):
        path.write_text(bad)
        with pytest.raises(UserError, match='--api_key_file=.*use one line'):
            security.read_key(str(path))
    path.write_bytes(b'\xff' * 10)
    with pytest.raises(UserError, match='not a text file'):
        security.read_key(str(path))


def test_only_this_machine_without_a_key():
    for host in ('127.0.0.1', 'localhost', '::1', '127.8.8.8'):
        security.check_host(host, None)
    for host in ('0.0.0.0', '::', '192.0.2.1'):
        with pytest.raises(UserError, match='set --api_key_file'):
            security.check_host(host, None)
        security.check_host(host, 'key')


def test_the_policy_lets_the_own_script_and_style_run():
    page = '<style>p {}</style><script>let x = "ä";\n</script>'
    policy = content_policy(page)
    for content in ('p {}', 'let x = "ä";\n'):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert 'unsafe' not in policy and "default-src 'none'" in policy
    for wrong in (
        f'{page}<script>2</script>',
        '<style></style>',
        f'{page}<script src>',
    ):
        with pytest.raises(ValueError, match='exactly one'):
            content_policy(wrong)


# ---- connections, against uvicorn in this process -------------------------------


async def app(scope, receive, send):
    if scope['path'] == '/wrong':
        raise ZeroDivisionError('a mistake of the test')
    await asyncio.sleep(0.2 if scope['path'] == '/slow' else 0)
    headers = [(b'content-length', b'2')]
    await send(dict(type='http.response.start', status=200, headers=headers))
    await send(dict(type='http.response.body', body=b'ok'))


@contextlib.asynccontextmanager
async def serving(most=100):
    """Runs a server of `app`; opens a connection to it."""
    with serve.listen('127.0.0.1', 0) as listening:
        server = serve.new_server(app, most)
        task = asyncio.create_task(server.serve(sockets=[listening]))

        async def connect():
            return await asyncio.open_connection(*listening.getsockname())

        connect.server = server
        yield connect
        server.should_exit = True
        await task


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), SECONDS))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(security, 'HEAD_SECONDS', 0.1)


@pytest.mark.parametrize('head', [b'', b'GET ', GET[:-2]], ids=repr)
def test_a_head_that_does_not_come_ends_the_connection(short, head):
    async def scenario():
        async with serving() as connect:
            reader, writer = await connect()
            writer.write(head)
            assert await reader.read() == b''

    run(scenario)


def test_bytes_that_drip_do_not_help(short):
    async def scenario():
        async with serving() as connect:
            reader, writer = await connect()
            ended = asyncio.create_task(reader.read())
            with contextlib.suppress(ConnectionError):
                writer.write(b'GET / HTTP/1.1\r\nX: ')
                while not ended.done():
                    writer.write(b'x')
                    await asyncio.sleep(0.02)
            with contextlib.suppress(ConnectionError):
                assert await ended == b''

    run(scenario)


def test_a_second_head_has_its_own_time(short):
    async def scenario():
        async with serving() as connect:
            reader, writer = await connect()
            writer.write(GET)
            assert (await reader.readuntil(b'ok')).startswith(b'HTTP/1.1 200')
            await asyncio.sleep(0.2)  # longer than the limit for a head
            writer.write(GET.replace(b'/', b'/slow', 1))  # the answer takes longer too
            assert (await reader.readuntil(b'ok')).startswith(b'HTTP/1.1 200')
            writer.write(GET[:-2])
            assert await reader.read() == b''

    run(scenario)


def test_one_connection_too_many_gets_503():
    async def scenario():
        async with serving(most=2) as connect:
            held = [await connect() for _ in range(2)]
            for reader, writer in held:
                writer.write(GET)
                await reader.readuntil(b'ok')
            reader, _ = await connect()
            head, _, body = (await reader.read()).partition(b'\r\n\r\n')
            assert head.startswith(b'HTTP/1.1 503') and b'Retry-After: 1' in head
            assert json.loads(body)['error']['code'] == 'full'

            # After one disconnects, there is room again.
            held[0][1].close()
            answer = b''
            while not answer.startswith(b'HTTP/1.1 200'):
                reader, writer = await connect()
                with contextlib.suppress(ConnectionError):
                    writer.write(GET)
                    answer = await reader.read(1000)

    run(scenario)


def test_small_answers_are_not_held_back():
    """Without TCP_NODELAY, events would wait for acknowledgements of the client."""

    async def scenario():
        async with serving() as connect:
            reader, writer = await connect()
            writer.write(GET)
            await reader.readuntil(b'ok')
            [connection] = connect.server.server_state.connections
            accepted = connection.transport.get_extra_info('socket')
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(scenario)


def test_a_mistake_of_the_application_is_logged(caplog):
    async def scenario():
        async with serving() as connect:
            reader, writer = await connect()
            writer.write(GET.replace(b'/', b'/wrong', 1))
            assert (await reader.read()).startswith(b'HTTP/1.1 500')

    run(scenario)
    assert 'ZeroDivisionError: a mistake of the test' in caplog.text
