"""Failures: engines that fail, streams that nobody reads, slow bodies, internal errors.

A scripted engine replaces the real one, and the application is called without a server.
"""

import asyncio
import gc
import json
import logging
import threading

import pytest

from gptjax.infer.request import EngineStopped, QueueFull, Token, Update
from gptjax.serve import api, api_requests, responses
from gptjax.serve.admission import RunningRequest, ServerState
from gptjax.serve.api_errors import ApiError
from gptjax.serve.api_requests import GenerationRequest, ServedModel
from gptjax.serve.schemas import GenerationFields
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests.servers import TEXTS

COMPLETION = '/v1/completions'
TOKENIZER = Tokenizer(train_model(TEXTS, 'bpe', 400))
HI = (Token(300),)


class Engine:
    """A scripted engine: `script` is a list of updates for each request.

    It accepts `room` requests; `cancelled` lists the ids of cancelled requests in
    order.
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
        request_id = len(self.listeners)
        self.listeners.append(listen)
        for update in self.script[request_id] if request_id < len(self.script) else ():
            listen(update)
        return request_id

    def cancel(self, request_id):
        self.cancelled.append(request_id)


def state_of(engine, *others, **options):
    state = ServerState(**options)
    for name, one in zip(('m', 'n'), (engine, *others), strict=False):
        state.models[name] = ServedModel(name, one, None, 'text', 1, 0, 'a model', None)
    return state


class Client:
    """One request to the application.

    With `leaves` the client disconnects: right after the request (True), or after that
    number of messages of the answer. It reads at most `reads` messages.
    """

    def __init__(self, fields, leaves=False, reads=10**6):
        self.received, self._leaves, self._reads = [], leaves, reads
        self.fields = dict(dict(prompt='a'), **fields)
        self._left = asyncio.Event()
        self._has_sent = False

    async def receive(self):
        if not self._has_sent:
            self._has_sent = True
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

    def ask(self, state, path=COMPLETION, method='POST', query=''):
        asyncio.run(asyncio.wait_for(self._ask(state, path, method, query), 20))
        return self

    async def _ask(self, state, path, method, query):
        headers = [(b'host', b'localhost'), (b'content-type', b'application/json')]
        scope = dict(
            type='http', method=method, path=path, headers=headers,
            query_string=query.encode(), root_path='', scheme='http',
            server=('localhost', 80), http_version='1.1',
        )  # fmt: skip
        app = api.make_app(state, [], None)
        await app(scope, self.receive, self.send)

    @property
    def status(self):
        return self.received[0]['status'] if self.received else None

    @property
    def text(self):
        return b''.join(m.get('body', b'') for m in self.received).decode()

    @property
    def error(self):
        """The error of a complete answer, or of the last event before [DONE]."""
        if self.status == 200:
            events = self.text.strip().split('\n\n')
            assert events[-1] == 'data: [DONE]'
            return json.loads(events[-2].removeprefix('data: '))['error']
        return json.loads(self.text)['error']


def outcomes(state):
    lines = state.telemetry.render().decode().split('\n')
    named = [line for line in lines if line.startswith('gptjax_requests_total{')]
    return [line.split('outcome="')[1].split('"')[0] for line in named]


@pytest.fixture(autouse=True)
def no_statistics(monkeypatch):
    """Removes the statistics, which the scripted engine does not have."""
    monkeypatch.setattr(
        'gptjax.serve.telemetry._EngineCollector.collect', lambda self: []
    )


@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize(
    'updates, options, code, outcome',
    [
        ([Update(finish='error', error='x')], {}, 'engine_failed', 'failed'),
        ([Update(finish='cancelled')], {}, 'draining', 'drained'),
        ([], dict(time_limit=0.05), 'time_limit', 'time_limit'),
    ],
)
def test_replies_that_do_not_end_well(stream, updates, options, code, outcome):
    engine = Engine([Update('hi', HI), *updates])
    state = state_of(engine, **options)
    client = Client(dict(stream=stream)).ask(state)
    assert (client.status == 200) == stream and client.error['code'] == code
    assert outcomes(state) == [outcome] and not state.running
    assert set(engine.cancelled) == {0}


def test_an_engine_that_died_while_nobody_listened():
    engine, other = Engine(), Engine([Update('hi', HI, finish='stop')])
    state = state_of(engine, other)
    engine.failure = 'the engine stopped: x'
    refused = Client({}).ask(state)
    assert refused.status == 503 and refused.error['code'] == 'engine_failed'
    assert dict(refused.received[0]['headers'])[b'x-should-retry'] == b'false'

    # The other model still answers.
    assert Client(dict(model='n')).ask(state).status == 200

    def ready(query=''):
        return Client({}).ask(state, '/ready', 'GET', query)

    content = json.loads(ready().text)
    assert content == dict(status='ready', failed=dict(m='the engine stopped: x'))
    assert json.loads(ready('model=n').text) == dict(status='ready')
    assert ready('model=m').error['code'] == 'engine_failed'
    assert ready('model=x').status == 404
    other.failure = 'so did this one'
    assert ready().status == 503 and ready().error['code'] == 'engine_failed'


def test_an_engine_that_dies_between_the_check_and_the_request():
    engine = Engine()
    state = state_of(engine)
    submit = engine.submit

    def dying(*request):
        engine.failure = 'the engine stopped: x'
        return submit(*request)

    engine.submit = dying
    client = Client({}).ask(state)
    assert client.status == 503 and client.error['code'] == 'engine_failed'


def test_stopped_calls_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(responses, 'SEND_SECONDS', 0.01)
    updates = [Update('hi', HI)]

    def alive():
        gc.collect()
        return sum(
            isinstance(x, RunningRequest | GenerationRequest) for x in gc.get_objects()
        )

    before = alive()
    for stream in (True, False):
        Client(dict(stream=stream), leaves=True).ask(state_of(Engine(updates)))
        short = state_of(Engine(updates), time_limit=0.01)
        Client(dict(stream=stream)).ask(short)
        closed = [Update(finish='cancelled')]
        Client(dict(stream=stream)).ask(state_of(Engine(closed)))
    Client(dict(stream=True), reads=1).ask(state_of(Engine(updates * 9)))
    del short
    assert alive() == before


def test_a_stream_that_nobody_takes(monkeypatch):
    monkeypatch.setattr(responses, 'SEND_SECONDS', 0.05)
    engine = Engine([Update('hi', HI)] * 3)
    state = state_of(engine)
    client = Client(dict(stream=True), reads=2).ask(state)
    assert len(client.received) == 2
    assert engine.cancelled and outcomes(state) == ['slow'] and not state.running


@pytest.mark.parametrize('fails', [True, False])
def test_a_stream_of_which_nobody_takes_the_end(monkeypatch, fails):
    """The last events are an error, if there is one, and [DONE]."""
    monkeypatch.setattr(responses, 'SEND_SECONDS', 0.05)
    updates = [Update('hi', HI), Update(finish='error' if fails else 'stop')]
    state = state_of(Engine(updates))
    whole = Client(dict(stream=True)).ask(state)
    for taken in range(1, len(whole.received)):
        state = state_of(Engine(updates))
        client = Client(dict(stream=True), reads=taken).ask(state)
        assert len(client.received) == taken
        assert len(outcomes(state)) == 1 and not state.running
    assert outcomes(state) == ['failed' if fails else 'slow']


def test_a_backlog_is_not_written_to_who_has_left():
    engine = Engine([Update('hi', HI)] * 500)
    state = state_of(engine)
    client = Client(dict(stream=True), leaves=2).ask(state)
    assert len(client.received) < 10
    assert engine.cancelled and outcomes(state) == ['gone']


def test_a_stream_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr(responses, 'PING_SECONDS', 0.02)
    state = state_of(Engine([]), time_limit=0.3)
    client = Client(dict(stream=True)).ask(state)
    assert client.text.count(': ping\n\n') > 3
    assert client.error['code'] == 'time_limit'


def test_a_full_engine_keeps_nothing_of_a_call():
    engine = Engine([Update('hi', HI)], room=1)
    state = state_of(engine)
    client = Client(dict(n=3)).ask(state)
    assert client.status == 503 and client.error['code'] == 'full'
    assert dict(client.received[0]['headers'])[b'retry-after']
    assert set(engine.cancelled) == {0} and not state.running
    assert outcomes(state) == ['busy']


def test_a_grammar_that_fails_is_an_error():
    class Grammars:
        def compile_schema(self, schema, count):
            return [Failed()] * count

    class Failed:
        failure = 'too complex'

    state = state_of(Engine([Update('{', HI, finish='stop')]))
    state.models['m'] = state.models['m']._replace(grammars=Grammars())
    fields = dict(response_format=dict(type='json_object'))
    client = Client(fields).ask(state)
    assert client.status == 500 and client.error['code'] == 'schema_too_complex'
    assert 'too complex' in client.error['message']


def test_a_body_that_never_comes(monkeypatch):
    monkeypatch.setattr(api_requests, 'READ_SECONDS', 0.05)
    client = Client({})
    client._has_sent = True  # it sends no body and stays connected
    client.ask(state_of(Engine()))
    assert client.status == 408 and client.error['code'] == 'timeout'


def test_a_body_without_end(monkeypatch):
    monkeypatch.setattr(api_requests, 'DROP_SECONDS', 0.05)

    class Endless(Client):
        async def receive(self):
            await asyncio.sleep(0)
            return dict(type='http.request', body=b'x' * 2**16, more_body=True)

    client = Endless({}).ask(state_of(Engine()))
    assert client.status == 413


def test_a_mistake_of_ours_is_an_answer_without_its_inside(monkeypatch, caplog):
    def broken(*args):
        raise ZeroDivisionError('secret')

    monkeypatch.setattr(ServerState, 'start', broken)
    client = Client({})
    with pytest.raises(ZeroDivisionError):  # the server logs this error
        client.ask(state_of(Engine()))
    assert client.status == 500 and client.error['code'] == 'internal_error'
    assert 'secret' not in client.text and 'POST /v1/completions' in caplog.text


@pytest.mark.parametrize('place', ['before', 'within'])
@pytest.mark.parametrize('stream', [True, False])
def test_a_mistake_of_ours_is_counted(monkeypatch, place, stream):
    def broken(*args):
        raise ZeroDivisionError

    if place == 'before':
        monkeypatch.setattr(ServerState, 'start', broken)
    else:
        name = 'update_choices' if stream else 'whole_choice'
        monkeypatch.setattr(responses.CompletionAnswer, name, broken)
    state = state_of(Engine([Update('hi', HI, finish='stop')]))
    with pytest.raises(ZeroDivisionError):
        Client(dict(stream=stream)).ask(state)
    assert outcomes(state) == ['failed'] and not state.running


def test_texts_are_tokenized_off_the_event_loop(monkeypatch):
    """Tokenizing a long text takes time; other replies have to continue meanwhile."""
    state, threads = state_of(Engine()), []

    def watched(function):
        def call(*args):
            threads.append(threading.current_thread())
            return function(*args)

        return call

    for owner, name in ((api_requests, 'encode_prompt'), (TOKENIZER, 'decode')):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    assert Client({}).ask(state, '/tokenize').status == 200
    back = Client(dict(tokens=[300]))
    del back.fields['prompt']
    assert back.ask(state, '/detokenize').status == 200
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_prompts_are_not_logged(caplog):
    caplog.set_level(logging.DEBUG)
    state = state_of(Engine([Update('hi', HI, finish='stop')]))
    assert Client(dict(prompt='a secret thing')).ask(state).status == 200
    assert Client(dict(prompt='a secret thing', n=99)).ask(state).status == 400
    assert 'secret' not in caplog.text


def test_slow_schemas_keep_nobody_waiting_and_are_bounded():
    compiling = threading.Event()

    def parse(body, models):
        if body.response_format:
            compiling.wait(30)
        return body

    async def run():
        state = ServerState(max_replies=2)
        slow = GenerationFields(response_format=dict(type='json_object'))
        waiting = [asyncio.create_task(state.parse(parse, slow)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as full:
            await state.parse(parse, slow)
        assert (full.value.status, full.value.code) == (503, 'full')
        quick = GenerationFields()
        assert await state.parse(parse, quick) == quick
        compiling.set()
        assert await asyncio.gather(*waiting) == [slow, slow]
        assert await state.parse(parse, slow) == slow

    asyncio.run(run())
