"""Connections on which no request comes, against uvicorn in this process."""

import asyncio
import contextlib
import json
import socket

import pytest

from gptjax.serve import security, serve

SECONDS = 20  # until something is closed that must be
GET = b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'


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
            await asyncio.sleep(0.2)  # longer than a head may take
            writer.write(GET.replace(b'/', b'/slow', 1))  # and so is the answer
            assert (await reader.readuntil(b'ok')).startswith(b'HTTP/1.1 200')
            writer.write(GET[:-2])
            assert await reader.read() == b''

    run(scenario)


def test_one_connection_too_many_is_told_so():
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

            # Where one leaves there is room again.
            held[0][1].close()
            answer = b''
            while not answer.startswith(b'HTTP/1.1 200'):
                reader, writer = await connect()
                with contextlib.suppress(ConnectionError):
                    writer.write(GET)
                    answer = await reader.read(1000)

    run(scenario)


def test_small_answers_are_not_held_back():
    """Without TCP_NODELAY they would wait for the client's acknowledgements."""

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
