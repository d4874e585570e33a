"""What seldom happens: engines that fail, streams that nobody takes, slow bodies.

The engine here does what a test wants; the application is called without a server.
"""

import asyncio
import json
import logging

import pytest

from gptjax.infer.request import QueueFull, Token, Update
from gptjax.serve import api, body, generation, running
from gptjax.serve.protocol import Served
from gptjax.serve.service import Service
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train import train_model
from tests.servers import TEXTS

COMPLETION = '/v1/completions'
TOKENIZER = Tokenizer(train_model(TEXTS, 'bpe', 400))
HI = (Token(300),)


class Engine:
    """Tells the listeners what `script` says, a list of updates for each request.

    Attributes:
        cancelled: tickets, in order.
        room: requests it takes.
    """

    def __init__(self, *script, room=100):
        self.tokenizer, self.context, self.fingerprint = TOKENIZER, 64, 'f' * 64
        self.script, self.room = list(script), room
        self.listeners, self.cancelled = [], []

    def submit(self, prompt, parameters, listen):
        if len(self.listeners) >= self.room:
            raise QueueFull('full')
        ticket = len(self.listeners)
        self.listeners.append(listen)
        for update in self.script[ticket] if ticket < len(self.script) else ():
            listen(update)
        return ticket

    def cancel(self, ticket):
        self.cancelled.append(ticket)


def service_of(engine, **options):
    model = Served('m', engine, None, 'text', 1, 0, 'a model')
    service = Service(**options)
    service.models['m'] = model
    return service


class Client:
    """One request to the application.

    Args:
        fields: of the body.
        leaves: it goes away right after the request.
        reads: messages of the answer that it takes.
    """

    def __init__(self, fields, leaves=False, reads=10**6):
        self.received = []
        self._reads = reads
        self._content = json.dumps(dict(dict(prompt='a'), **fields)).encode()
        self._leaves = leaves
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            return dict(type='http.request', body=self._content, more_body=False)
        if not self._leaves:
            await asyncio.Event().wait()
        return dict(type='http.disconnect')

    async def send(self, message):
        if len(self.received) == self._reads:
            await asyncio.Event().wait()
        self.received.append(message)

    def ask(self, service, path=COMPLETION):
        asyncio.run(asyncio.wait_for(self._ask(service, path), 20))
        return self

    async def _ask(self, service, path):
        headers = [(b'host', b'localhost'), (b'content-type', b'application/json')]
        scope = dict(
            type='http', method='POST', path=path, headers=headers, query_string=b'',
            root_path='', scheme='http', server=('localhost', 80), http_version='1.1',
        )  # fmt: skip
        app = api.make_app(service, [], None)
        await app(scope, self.receive, self.send)

    @property
    def status(self):
        return self.received[0]['status'] if self.received else None

    @property
    def text(self):
        return b''.join(m.get('body', b'') for m in self.received).decode()

    @property
    def error(self):
        """The error of a whole answer, or the last event of a stream but [DONE]."""
        if self.status == 200:
            events = self.text.strip().split('\n\n')
            assert events[-1] == 'data: [DONE]'
            return json.loads(events[-2].removeprefix('data: '))['error']
        return json.loads(self.text)['error']


def outcomes(service):
    lines = service.telemetry.text().decode().split('\n')
    named = [line for line in lines if line.startswith('gptjax_requests_total{')]
    return [line.split('outcome="')[1].split('"')[0] for line in named]


@pytest.fixture(autouse=True)
def no_statistics(monkeypatch):
    """The scripted engine has none."""
    monkeypatch.setattr('gptjax.serve.telemetry._Engines.collect', lambda self: [])


@pytest.mark.parametrize('stream', [True, False])
def test_an_engine_that_fails(stream):
    told = [Update('hi', HI), Update(finish='error', error='the engine stopped: x')]
    service = service_of(Engine(told))
    client = Client(dict(stream=stream)).ask(service)
    assert client.status == (200 if stream else 500)
    assert client.error['code'] == 'engine_failed'
    assert outcomes(service) == ['failed'] and not service.calls
    # From then on it says so at once.
    again = Client({}).ask(service)
    assert again.status == 503 and again.error['code'] == 'engine_failed'


@pytest.mark.parametrize('stream', [True, False])
def test_an_engine_that_is_closed(stream):
    service = service_of(Engine([Update('hi', HI), Update(finish='cancelled')]))
    client = Client(dict(stream=stream)).ask(service)
    assert client.error['code'] == 'draining' and outcomes(service) == ['drained']


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves(stream):
    engine = Engine([Update('hi', HI)])
    service = service_of(engine)
    client = Client(dict(stream=stream), leaves=True).ask(service)
    assert engine.cancelled and outcomes(service) == ['gone'] and not service.calls
    assert client.status in (None, 200) and '[DONE]' not in client.text


@pytest.mark.parametrize('stream', [True, False])
def test_the_time_limit(stream):
    engine = Engine([Update('hi', HI)])
    service = service_of(engine, time_limit=0.05)
    client = Client(dict(stream=stream)).ask(service)
    assert client.error['code'] == 'time_limit'
    assert set(engine.cancelled) == {0} and outcomes(service) == ['time_limit']


def test_a_stream_that_nobody_takes(monkeypatch):
    monkeypatch.setattr(generation, 'UNREAD_SECONDS', 0.05)
    engine = Engine([Update('hi', HI)] * 3)
    service = service_of(engine)
    client = Client(dict(stream=True), reads=2).ask(service)
    assert len(client.received) == 2
    assert engine.cancelled and outcomes(service) == ['slow'] and not service.calls


def test_what_waits_unread_is_bounded(monkeypatch):
    monkeypatch.setattr(running, 'MOST_WAITING', 5)
    monkeypatch.setattr(generation, 'UNREAD_SECONDS', 0.05)
    engine = Engine([Update('hi', HI)] * 50)
    service = service_of(engine)
    Client(dict(stream=True), reads=1).ask(service)
    assert engine.cancelled and outcomes(service) == ['slow']


def test_a_stream_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr(generation, 'PING_SECONDS', 0.02)
    service = service_of(Engine([]), time_limit=0.3)
    client = Client(dict(stream=True)).ask(service)
    assert client.text.count(': ping\n\n') > 3
    assert client.error['code'] == 'time_limit'


def test_a_full_engine_keeps_nothing_of_a_call():
    engine = Engine([Update('hi', HI)], room=1)
    service = service_of(engine)
    client = Client(dict(n=3)).ask(service)
    assert client.status == 503 and client.error['code'] == 'full'
    assert dict(client.received[0]['headers'])[b'retry-after']
    assert set(engine.cancelled) == {0} and not service.calls
    assert outcomes(service) == ['busy']


def test_a_grammar_that_fails_is_told():
    class Grammars:
        def json(self, schema, count):
            return [Failed()] * count

    class Failed:
        failure = 'too complex'

    service = service_of(Engine([Update('{', HI, finish='stop')]))
    service.models['m'] = service.models['m']._replace(grammars=Grammars())
    fields = dict(response_format=dict(type='json_object'))
    client = Client(fields).ask(service)
    assert client.status == 500 and client.error['code'] == 'schema_too_complex'
    assert 'too complex' in client.error['message']


def test_a_body_that_never_comes(monkeypatch):
    monkeypatch.setattr(body, 'READ_SECONDS', 0.05)
    client = Client({})
    client._asked = True  # its body does not come, and it does not leave
    client.ask(service_of(Engine()))
    assert client.status == 408 and client.error['code'] == 'timeout'


def test_a_body_without_end(monkeypatch):
    monkeypatch.setattr(body, 'DROPPED_SECONDS', 0.05)

    class Endless(Client):
        async def receive(self):
            await asyncio.sleep(0)
            return dict(type='http.request', body=b'x' * 2**16, more_body=True)

    client = Endless({}).ask(service_of(Engine()))
    assert client.status == 413


def test_a_mistake_of_ours_is_an_answer_without_its_inside(monkeypatch, caplog):
    def broken(*args):
        raise ZeroDivisionError('secret')

    monkeypatch.setattr(Service, 'begin', broken)
    client = Client({})
    with pytest.raises(ZeroDivisionError):  # what the server's log gets
        client.ask(service_of(Engine()))
    assert client.status == 500 and client.error['code'] == 'internal_error'
    assert 'secret' not in client.text and 'ZeroDivisionError' in caplog.text


def test_prompts_are_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    service = service_of(Engine([Update('hi', HI, finish='stop')]))
    assert Client(dict(prompt='a secret thing')).ask(service).status == 200
    assert Client(dict(prompt='a secret thing', n=99)).ask(service).status == 400
    assert 'secret' not in caplog.text
