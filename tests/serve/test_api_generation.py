"""What seldom happens: engines that fail, streams that nobody takes, slow bodies.

The engine here does what a test wants; the application is called without a server.
"""

import asyncio
import gc
import json
import logging
import threading

import pytest

from gptjax.infer.request import EngineStopped, QueueFull, Token, Update
from gptjax.serve import (
    api,
    engine_thread,
    protocol,
    reply_events,
    request_body,
    text_replies,
)
from gptjax.serve.admission import Service
from gptjax.serve.api_errors import ApiError
from gptjax.serve.engine_thread import Running
from gptjax.serve.protocol import Call, Served
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests.servers import TEXTS

COMPLETION = '/v1/completions'
TOKENIZER = Tokenizer(train_model(TEXTS, 'bpe', 400))
HI = (Token(300),)


class Engine:
    """Tells the listeners what `script` says, a list of updates for each request.

    Attributes:
        cancelled: tickets, in order.
        room: requests it takes.
        failure: as of the real one.
    """

    failure = None

    def __init__(self, *script, room=100):
        self.tokenizer, self.context, self.fingerprint = TOKENIZER, 64, 'f' * 64
        self.script, self.room = list(script), room
        self.listeners, self.cancelled = [], []

    def submit(self, prompt, parameters, listen):
        if self.failure:
            raise EngineStopped(self.failure)
        if len(self.listeners) >= self.room:
            raise QueueFull('full')
        ticket = len(self.listeners)
        self.listeners.append(listen)
        for update in self.script[ticket] if ticket < len(self.script) else ():
            listen(update)
        return ticket

    def cancel(self, ticket):
        self.cancelled.append(ticket)


def service_of(engine, *others, **options):
    service = Service(**options)
    for name, one in zip(('m', 'n'), (engine, *others), strict=False):
        service.models[name] = Served(name, one, None, 'text', 1, 0, 'a model')
    return service


class Client:
    """One request to the application.

    Args:
        fields: of the body.
        leaves: it goes away right after the request; or a number, after so many
            messages of the answer.
        reads: messages of the answer that it takes.
    """

    def __init__(self, fields, leaves=False, reads=10**6):
        self.received = []
        self._left = asyncio.Event()
        self._reads = reads
        self.fields = dict(dict(prompt='a'), **fields)
        self._leaves = leaves
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            content = json.dumps(self.fields).encode()
            return dict(type='http.request', body=content, more_body=False)
        if self._leaves is not True:
            await self._left.wait()
        return dict(type='http.disconnect')

    async def send(self, message):
        if len(self.received) == self._reads:
            await asyncio.Event().wait()
        self.received.append(message)
        if self._leaves is not False and len(self.received) == self._leaves:
            self._left.set()

    def ask(self, service, path=COMPLETION, method='POST', query=''):
        asyncio.run(asyncio.wait_for(self._ask(service, path, method, query), 20))
        return self

    async def _ask(self, service, path, method, query):
        headers = [(b'host', b'localhost'), (b'content-type', b'application/json')]
        scope = dict(
            type='http', method=method, path=path, headers=headers,
            query_string=query.encode(), root_path='', scheme='http',
            server=('localhost', 80), http_version='1.1',
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


def test_an_engine_that_died_while_nobody_listened():
    engine, other = Engine(), Engine([Update('hi', HI, finish='stop')])
    service = service_of(engine, other)
    engine.failure = 'the engine stopped: x'
    refused = Client({}).ask(service)
    assert refused.status == 503 and refused.error['code'] == 'engine_failed'
    assert dict(refused.received[0]['headers'])[b'x-should-retry'] == b'false'

    # The other model lives on.
    assert Client(dict(model='n')).ask(service).status == 200

    def ready(query=''):
        return Client({}).ask(service, '/ready', 'GET', query)

    content = json.loads(ready().text)
    assert content == dict(status='ready', failed=dict(m='the engine stopped: x'))
    assert json.loads(ready('model=n').text) == dict(status='ready')
    assert ready('model=m').error['code'] == 'engine_failed'
    assert ready('model=x').status == 404
    other.failure = 'so did this one'
    assert ready().status == 503 and ready().error['code'] == 'engine_failed'


def test_an_engine_that_dies_between_the_check_and_the_request():
    engine = Engine()
    service = service_of(engine)
    submit = engine.submit

    def dying(*request):
        engine.failure = 'the engine stopped: x'
        return submit(*request)

    engine.submit = dying
    client = Client({}).ask(service)
    assert client.status == 503 and client.error['code'] == 'engine_failed'


def test_stopped_calls_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(reply_events, 'TAKEN_SECONDS', 0.01)
    updates = [Update('hi', HI)]

    def alive():
        gc.collect()
        return sum(isinstance(x, Running | Call) for x in gc.get_objects())

    before = alive()
    for stream in (True, False):
        Client(dict(stream=stream), leaves=True).ask(service_of(Engine(updates)))
        short = service_of(Engine(updates), time_limit=0.01)
        Client(dict(stream=stream)).ask(short)
        closed = [Update(finish='cancelled')]
        Client(dict(stream=stream)).ask(service_of(Engine(closed)))
    Client(dict(stream=True), reads=1).ask(service_of(Engine(updates * 9)))
    del short
    assert alive() == before


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
    monkeypatch.setattr(reply_events, 'TAKEN_SECONDS', 0.05)
    engine = Engine([Update('hi', HI)] * 3)
    service = service_of(engine)
    client = Client(dict(stream=True), reads=2).ask(service)
    assert len(client.received) == 2
    assert engine.cancelled and outcomes(service) == ['slow'] and not service.calls


@pytest.mark.parametrize('fails', [True, False])
def test_a_stream_of_which_nobody_takes_the_end(monkeypatch, fails):
    """The last pieces are [DONE], and an error before it."""
    monkeypatch.setattr(reply_events, 'TAKEN_SECONDS', 0.05)
    told = [Update('hi', HI), Update(finish='error' if fails else 'stop')]
    service = service_of(Engine(told))
    whole = Client(dict(stream=True)).ask(service)
    for taken in range(1, len(whole.received)):
        service = service_of(Engine(told))
        client = Client(dict(stream=True), reads=taken).ask(service)
        assert len(client.received) == taken
        assert len(outcomes(service)) == 1 and not service.calls
    assert outcomes(service) == ['failed' if fails else 'slow']


def test_a_backlog_is_not_written_to_who_has_left():
    engine = Engine([Update('hi', HI)] * 500)
    service = service_of(engine)
    client = Client(dict(stream=True), leaves=2).ask(service)
    assert len(client.received) < 10
    assert engine.cancelled and outcomes(service) == ['gone']


def test_what_waits_unread_is_bounded(monkeypatch):
    monkeypatch.setattr(engine_thread, 'MOST_WAITING', 5)
    monkeypatch.setattr(reply_events, 'TAKEN_SECONDS', 0.05)
    engine = Engine([Update('hi', HI)] * 50)
    service = service_of(engine)
    Client(dict(stream=True), reads=1).ask(service)
    assert engine.cancelled and outcomes(service) == ['slow']


def test_a_stream_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr(reply_events, 'PING_SECONDS', 0.02)
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
    monkeypatch.setattr(request_body, 'READ_SECONDS', 0.05)
    client = Client({})
    client._asked = True  # its body does not come, and it does not leave
    client.ask(service_of(Engine()))
    assert client.status == 408 and client.error['code'] == 'timeout'


def test_a_body_without_end(monkeypatch):
    monkeypatch.setattr(request_body, 'DROPPED_SECONDS', 0.05)

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
    assert 'secret' not in client.text and 'POST /v1/completions' in caplog.text


@pytest.mark.parametrize('place', ['before', 'within'])
@pytest.mark.parametrize('stream', [True, False])
def test_a_mistake_of_ours_is_counted(monkeypatch, place, stream):
    def broken(*args):
        raise ZeroDivisionError

    if place == 'before':
        monkeypatch.setattr(Service, 'begin', broken)
    else:
        name = 'parts' if stream else 'choice'
        monkeypatch.setattr(text_replies, name, broken)
    service = service_of(Engine([Update('hi', HI, finish='stop')]))
    with pytest.raises(ZeroDivisionError):
        Client(dict(stream=stream)).ask(service)
    assert outcomes(service) == ['failed'] and not service.calls


def test_tokens_are_found_beside_the_loop(monkeypatch):
    """A long text takes a while, in which replies are to go on."""
    service, threads = service_of(Engine()), []

    def watched(function):
        def call(*args):
            threads.append(threading.current_thread())
            return function(*args)

        return call

    for owner, name in ((protocol, 'tokens_of'), (TOKENIZER, 'decode')):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    assert Client({}).ask(service, '/tokenize').status == 200
    back = Client(dict(tokens=[300]))
    del back.fields['prompt']
    assert back.ask(service, '/detokenize').status == 200
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_prompts_are_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    service = service_of(Engine([Update('hi', HI, finish='stop')]))
    assert Client(dict(prompt='a secret thing')).ask(service).status == 200
    assert Client(dict(prompt='a secret thing', n=99)).ask(service).status == 400
    assert 'secret' not in caplog.text


def test_slow_schemas_keep_nobody_waiting_and_are_bounded():
    compiling = threading.Event()

    def understand(body, models):
        if body.get('response_format'):
            compiling.wait(30)
        return body

    async def run():
        service = Service(most_replies=2)
        slow = dict(response_format=dict(type='json_schema'))
        waiting = [
            asyncio.create_task(service.understand(understand, slow)) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as full:
            await service.understand(understand, slow)
        assert (full.value.status, full.value.code) == (503, 'full')
        assert await service.understand(understand, {}) == {}
        compiling.set()
        assert await asyncio.gather(*waiting) == [slow, slow]
        assert await service.understand(understand, slow) == slow

    asyncio.run(run())
