"""Many clients at once: some disconnect, some do not read, some are refused."""

import http.client
import json
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptjax.serve.admission import MAX_UNREAD_UPDATES
from tests import servers
from tests.servers import CONTEXT, post_bytes, wait_for

COMPLETION = '/v1/completions'
NO_END = {'2': -1000}  # the logit bias that excludes EOS
MOST = 6  # the number of requests that slots and queue of the fixture hold
LONG = dict(prompt='The red', max_tokens=CONTEXT, logit_bias=NO_END, n=MOST)
LONG_TOKENS = MOST * (CONTEXT - 10)


@pytest.fixture(autouse=True)
def idle_before_and_after(server):
    """After every test all slots are free, and replies are the same as before."""
    wait_for(server.is_idle, 'idle before')
    yield
    wait_for(server.is_idle, 'idle after')
    assert server.get('/ready') == dict(status='ready')


def encode(body) -> bytes:
    return json.dumps(body).encode()


def drop(connection: socket.socket) -> None:
    """Closes the connection with a reset, as if the process had died."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    connection.close()


def outcomes(server, outcome):
    return server.metric('gptjax_requests_total', outcome=outcome)


def drawn(server):
    return server.metric('gptjax_reply_tokens_total')


# ---- clients that disconnect -------------------------------------------------------


@pytest.mark.parametrize('leave', [socket.socket.close, drop])
@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_frees_its_slots(server, stream, leave):
    gone, before = outcomes(server, 'gone'), drawn(server)
    connection = servers.connect(server)
    connection.sendall(post_bytes(COMPLETION, encode(dict(LONG, stream=stream))))
    wait_for(lambda: drawn(server) > before, 'tokens are drawn')
    if stream:
        assert connection.recv(100).startswith(b'HTTP/1.1 200')
    leave(connection)
    wait_for(server.is_idle, 'slots are free')
    wait_for(lambda: outcomes(server, 'gone') == gone + 1, 'it is counted')


def test_a_client_that_leaves_while_it_waits(server):
    """Earlier requests continue, and this one never gets a slot."""
    with ThreadPoolExecutor(2) as clients:
        for _ in range(20):  # on a busy machine the others may end before it waits
            running = [
                clients.submit(
                    servers.post, server, COMPLETION, dict(LONG, n=1, seed=seed)
                )
                for seed in range(2)
            ]
            connection = servers.connect(server)
            if seen_while(running, lambda: server.metric('gptjax_running') == 2):
                connection.sendall(post_bytes(COMPLETION, encode(dict(LONG, n=3))))
            if seen_while(running, lambda: server.metric('gptjax_waiting') == 3):
                break
            connection.close()
            wait_for(server.is_idle, 'idle again')
        else:
            pytest.fail('it was never seen to wait')
        connection.close()
        wait_for(lambda: not server.metric('gptjax_waiting'), 'it is gone')
        for reply in running:
            assert reply.result()['choices'][0]['finish_reason'] == 'length'


def seen_while(running, condition) -> bool:
    """Whether a condition becomes true before all of `running` have ended."""
    while not all(client.done() for client in running):
        if condition():
            return True
    return False


# ---- more clients than slots and queue hold ------------------------------------------


def test_a_burst_is_answered_or_told_to_come_again(server):
    """Accepted requests get the right replies; the others get 503 with Retry-After."""
    bodies = [dict(prompt='The red', max_tokens=150, seed=s) for s in range(30)]
    bodies = [dict(body, logit_bias=NO_END) for body in bodies]
    barrier = threading.Barrier(len(bodies))

    def ask(body):
        barrier.wait()
        return servers.send(server, COMPLETION, encode(body))

    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(ask, bodies))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= MOST
    for status, answer, headers in answers:
        if status == 503:
            assert answer['error']['code'] == 'full'
            assert int(headers['retry-after']) >= 1
    wait_for(server.is_idle, 'idle')
    answered = zip(bodies, answers, strict=True)
    kept = [(body, answer) for body, (status, answer, _) in answered if status == 200]
    for body, answer in kept[:3]:
        alone = servers.post(server, COMPLETION, body)
        assert answer['choices'] == alone['choices']


def test_a_call_is_taken_whole_or_not_at_all(server):
    before = drawn(server)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(servers.post, server, COMPLETION, dict(LONG, n=4))
        wait_for(lambda: server.metric('gptjax_running') == 2, 'it runs')
        status, answer, _ = servers.send(server, COMPLETION, encode(LONG))
        assert status == 503 and answer['error']['code'] == 'full'
        assert len(first.result()['choices']) == 4
    wait_for(server.is_idle, 'idle')
    assert drawn(server) - before <= 4 * CONTEXT


# ---- clients that do not read -------------------------------------------------


def test_a_slow_reader_holds_up_nobody(server):
    """It fills the buffers of the system and waits; others get their replies."""
    connection = servers.connect(server, receive_buffer=4096)
    body = dict(LONG, n=3, stream=True, logprobs=20)
    connection.sendall(post_bytes(COMPLETION, encode(body)))
    wait_for(lambda: server.metric('gptjax_running') == 2, 'it runs')
    wait_for(server.is_idle, 'its replies are drawn, though nobody reads them')
    other = dict(LONG, n=1, max_tokens=20)
    assert servers.post(server, COMPLETION, other)['usage']['completion_tokens'] == 20

    # When it reads at last, everything is there, in order.
    received = bytearray()
    while not received.endswith(b'data: [DONE]\n\n\r\n0\r\n\r\n'):
        piece = connection.recv(65536)
        assert piece, 'the stream broke off'
        received += piece
    connection.close()
    assert len(received) > 2**20
    assert received.count(b'"finish_reason":"length"') == 3


def test_what_piles_up_unread_has_an_end(server):
    """If too much is unread, the replies are stopped before their end."""
    before, slow = drawn(server), outcomes(server, 'slow')
    connection = servers.connect(server, receive_buffer=4096)
    body = dict(LONG, stream=True, logprobs=20)
    connection.sendall(post_bytes(COMPLETION, encode(body)))
    wait_for(lambda: server.metric('gptjax_running') == 2, 'it runs')
    wait_for(server.is_idle, 'slots are free')
    assert MAX_UNREAD_UPDATES < drawn(server) - before < LONG_TOKENS
    drop(connection)
    wait_for(lambda: outcomes(server, 'slow') == slow + 1, 'the handler has ended')


# ---- everything at once -------------------------------------------------------


def test_a_random_schedule(server):
    """Random arrivals, lengths, streams and disconnections do not change replies."""
    rng = random.Random(7)
    words = ('red', 'fox', 'owl', '“')
    bodies = [
        dict(
            prompt=' '.join(rng.choices(words, k=rng.randint(1, 40))),
            max_tokens=rng.randint(1, 60),
            temperature=rng.choice((0, 0.7, 1.3)),
            seed=rng.randrange(1000),
            stop=rng.choice((None, ['e'], ['ox', ' 🐈'])),
            n=rng.randint(1, 2),
            stream=rng.random() < 0.5,
        )
        for _ in range(24)
    ]
    patience = [rng.choice((None, None, 0, 1, 3)) for _ in bodies]
    starts = [rng.random() * 0.5 for _ in bodies]

    def ask(body, num_events, start):
        time.sleep(start)
        while (replies := texts(server, body, num_events)) == 'full':
            time.sleep(0.05)
        return replies

    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(ask, bodies, patience, starts))
    wait_for(server.is_idle, 'idle')
    for body, num_events, replies in zip(bodies, patience, answers, strict=True):
        alone = texts(server, body, None)
        if num_events is None:
            assert replies == alone
        elif body['stream']:  # it disconnected early and has the beginning
            for text, whole in zip(replies, alone, strict=True):
                assert whole.startswith(text)


def texts(server, body, num_events):
    """The texts of a reply. From a stream it reads `num_events`, then disconnects."""
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    headers = {'Content-Type': 'application/json'}
    connection.request('POST', COMPLETION, encode(body), headers)
    if num_events is not None and not body['stream']:
        connection.close()
        return None
    answer = connection.getresponse()
    try:
        if answer.status == 503:
            return 'full'
        assert answer.status == 200, answer.read()
        replies = [''] * body['n']
        if not body['stream']:
            for choice in json.loads(answer.read())['choices']:
                replies[choice['index']] = choice['text']
            return replies
        for line in answer:
            if line.startswith(b'data: {'):
                for choice in json.loads(line[6:])['choices']:
                    replies[choice['index']] += choice['text']
                if num_events is not None:
                    num_events -= 1
                    if num_events < 0:
                        break
        return replies
    finally:
        connection.close()
