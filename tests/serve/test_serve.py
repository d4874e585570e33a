"""The stage `serve`: flags, start and shutdown."""

import asyncio
import base64
import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.serve import serve
from gptjax.serve.admission import ServerState
from tests import helpers, runs, servers
from tests.servers import wait_for

KEY = 'correct-horse-battery'
COMPLETION = '/v1/completions'
NO_END = {'2': -1000}  # the logit bias that excludes EOS
SHORT = 384  # a context that is shorter than the model's
LONG = dict(prompt='The red', max_tokens=500, logit_bias=NO_END)


@pytest.fixture(scope='module')
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('key') / 'key'
    path.write_text(f'{KEY}\n')
    return path


def error_of(capsys, *words) -> str:
    """The one line on standard error of a command that is refused."""
    assert runs.gptjax('serve', *words) == 2
    printed = capsys.readouterr()
    line = printed.err
    assert line.startswith('error: ') and line.count('\n') == 1, line
    assert printed.out == ''
    return line


def test_bad_flags_are_one_line(served_run, tmp_path, capsys):
    run = f'--workdir={served_run}'
    short = tmp_path / 'short'
    short.write_text('abc')
    storage.write_json(tmp_path / 'empty' / 'config.json', {})
    refused = {
        ('--workdir=/nowhere',): '--workdir=/nowhere is not a run directory',
        (f'--workdir={tmp_path}/empty',): 'no checkpoint there: run the stage pretrain',
        (run, '--host=0.0.0.0'): 'set --api_key_file, or use --host=127.0.0.1',
        (run, '--host='): 'use 127.0.0.1',
        (run, '--host=no such host'): 'use 127.0.0.1',
        (run, '--port=70000'): '--port=70000: use a number from 0',
        (run, '--slots=0'): '--slots=0: use a number 1 or more',
        (run, '--queue=0'): '--queue=0',
        (run, '--time_limit=0'): '--time_limit=0.0',
        (run, '--api_key_file=/nowhere'): 'openssl rand -hex 32 > /nowhere',
        (run, f'--api_key_file={short}'): '8 or more ASCII characters',
        (
            run,
            '--context=1',
        ): '--context=1: tiny has 512 positions: use a number from 2',
        (run, '--context=513'): '--context=513: tiny has 512',
        (run, '--beside=/nowhere'): '--beside=/nowhere: ',
        (run, f'--beside={served_run}'): 'two models have the name tiny',
    }
    for words, message in refused.items():
        assert message in error_of(capsys, *words), words


def test_the_longest_model_decides_which_contexts_are_allowed(capsys):
    def contexts(flag, **sizes):
        runs = {}
        for name, (context, rows) in sizes.items():
            config = helpers.config(context=context)
            config.data.context = rows
            runs[name] = config, Path(name), None
        return [run[3] for run in serve._with_contexts(runs, flag).values()]

    models = dict(small=(1024, 128), large=(131_072, 128), trained=(32_768, 22_528))
    assert contexts(None, **models) == [1024, 4096, 22_528]
    assert 'large: the context has 4,096 of' in capsys.readouterr().err
    assert contexts(8192, **models) == [1024, 8192, 8192]
    assert contexts(131_072, **models) == [1024, 131_072, 32_768]
    for flag in (0, 131_073):
        with pytest.raises(UserError, match=f'={flag}: large .* from 2 to 131072$'):
            contexts(flag, **models)


def test_a_port_in_use(served_run, capsys):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = error_of(capsys, f'--workdir={served_run}', f'--port={port}')
    assert f'--port={port}: Address already in use: use another' in error


@pytest.mark.slow
def test_a_checkpoint_that_is_not_there(served_run):
    words = ('serve', f'--workdir={served_run}', '--port=0', '--step=7')
    _, errors = runs.finish(runs.start(*words), 2)
    assert (
        'has no checkpoint 7: use one of 1, 2' in errors and 'Traceback' not in errors
    )


@pytest.mark.slow
def test_a_key_and_two_models(served_run, key_file):
    words = (f'--api_key_file={key_file}', f'--beside={served_run}@1', '--slots=2')
    further = ('--host=0.0.0.0', '--allowed_hosts=chat.example', '--time_limit=1')
    further = (*further, f'--context={SHORT}')
    with servers.serving(served_run, *words, *further, key=KEY) as server:
        check_key(server)
        for host, status in (('CHAT.example.:443', 200), ('evil.example', 403)):
            assert servers.send(server, '/ready', None, 'GET', Host=host)[0] == status
        check_models(server)
        check_context(server)
        check_time_limit(server)


def check_key(server):
    """Every route except /health needs the key, as Bearer or as Basic's password."""
    gets = ('/', '/ready', '/metrics', '/v1/models', '/openapi.json', '/nothing')
    posts = ('/v1/chat/completions', COMPLETION, '/tokenize')
    for path in (*gets, *posts):
        request = (
            (json.dumps(LONG).encode(), 'POST') if path in posts else (None, 'GET')
        )
        for given in ('', f'Bearer {KEY}x'):
            answer = servers.send(server, path, *request, Authorization=given)
            status, body, answer_headers = answer
            assert status == 401 and body['error']['code'] == 'invalid_api_key'
            assert answer_headers['www-authenticate'].startswith('Basic ')
    basic = base64.b64encode(f'anybody:{KEY}'.encode()).decode()
    right = {'/ready': (f'bearer {KEY}', f'Basic {basic}'), '/health': ('',)}
    for path, keys in right.items():
        for given in keys:
            answer = servers.send(server, path, None, 'GET', Authorization=given)
            assert answer[0] == 200


def check_models(server):
    """Each model generates its own replies and has its own fingerprint."""
    entries = server.get('/v1/models')['data']
    assert [entry['id'] for entry in entries] == ['tiny', 'tiny@1']
    assert [entry['gptjax']['step'] for entry in entries] == [2, 1]
    assert server.get('/v1/models/tiny@1') == entries[1]
    ask = dict(prompt='The red', seed=3)
    answers = [
        servers.post(server, COMPLETION, dict(ask, **fields))
        for fields in ({}, dict(model='tiny'), dict(model='tiny@1'))
    ]
    default, tiny, other = (answer['choices'][0]['text'] for answer in answers)
    assert default == tiny != other
    assert len({answer['system_fingerprint'] for answer in answers}) == 2
    assert server.get('/tokenizer_info?model=tiny@1')['bos_token'] == '<bos>'


def check_context(server):
    """What reports the context reports the one in use; an error names the flag."""
    for model in ('tiny', 'tiny@1'):
        entry = server.get(f'/v1/models/{model}')
        assert entry['max_model_len'] == entry['gptjax']['context'] == SHORT
        assert server.get(f'/tokenizer_info?model={model}')['model_max_length'] == SHORT
        assert server.get(f'/model_card?model={model}')['context'] == SHORT
    ask = dict(prompt=[9] * SHORT)
    status, body, _ = servers.send(server, COMPLETION, json.dumps(ask).encode())
    assert status == 400 and body['error']['code'] == 'context_length_exceeded'
    assert f'use --context up to {servers.CONTEXT}' in body['error']['message']


def check_time_limit(server):
    """A request that takes too long ends with an error, complete or as a stream."""
    ask = dict(LONG, prompt=['The red'] * 4, n=16)
    status, body, headers = servers.send(server, COMPLETION, json.dumps(ask).encode())
    assert status == 504 and body['error']['code'] == 'time_limit'
    assert headers['x-should-retry'] == 'false'
    wait_for(server.is_idle, 'slots are free')
    text = stream(server, dict(ask, stream=True)).decode()
    events = [line for line in text.split('\n') if line.startswith('data: ')]
    assert json.loads(events[-2][6:])['error']['code'] == 'time_limit'
    assert events[-1] == 'data: [DONE]'
    wait_for(server.is_idle, 'slots are free')
    assert server.metric('gptjax_requests_total', outcome='time_limit') == 2


def stream(server, body, has_started=None) -> bytes:
    """All bytes until the connection ends; sets `has_started` at the first bytes."""
    extra = [f'{name}: {value}' for name, value in server.headers.items()]
    connection = servers.connect(server)
    content = json.dumps(body).encode()
    connection.sendall(
        servers.post_bytes(COMPLETION, content, 'Connection: close', *extra)
    )
    received = bytearray()
    while piece := connection.recv(65536):
        received += piece
        if has_started:
            has_started.set()
    connection.close()
    return bytes(received)


def is_draining(server):
    return servers.send(server, '/ready', None, 'GET')[0] == 503


@pytest.mark.slow
def test_sigterm_drains(served_run):
    """Running replies are completed, new requests are refused, the exit code is 0."""
    with servers.serving(served_run, '--slots=2') as server:
        assert server.ready_line == f'ready: {server.address}/\n'
        has_started = threading.Event()
        with ThreadPoolExecutor(2) as clients:
            whole = clients.submit(
                servers.post, server, COMPLETION, dict(LONG, n=12, max_tokens=100)
            )
            streamed = clients.submit(
                stream, server, dict(LONG, n=6, stream=True), has_started
            )
            assert has_started.wait(servers.SECONDS)
            wait_for(lambda: server.metric('gptjax_waiting') > 10, 'both are admitted')
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: is_draining(server), 'it says that it ends')
            content = json.dumps(LONG).encode()
            status, body, headers = servers.send(server, COMPLETION, content)
            assert status == 503 and body['error']['code'] == 'draining'
            assert int(headers['retry-after']) >= 1
            assert server.get('/health') == dict(status='ok')
            reasons = [choice['finish_reason'] for choice in whole.result()['choices']]
            assert reasons == ['length'] * 12
            text = streamed.result()
            assert text.count(b'"finish_reason":"length"') == 6
            assert b'data: [DONE]' in text


@pytest.mark.slow
def test_a_second_signal_hurries(served_run):
    """Running replies end with an error, and the exit code is still 0."""
    with servers.serving(served_run, '--slots=2') as server:
        has_started = threading.Event()
        with ThreadPoolExecutor(1) as clients:
            streamed = clients.submit(
                stream, server, dict(LONG, n=16, stream=True), has_started
            )
            assert has_started.wait(servers.SECONDS)
            server.process.send_signal(signal.SIGINT)
            wait_for(lambda: is_draining(server), 'draining')
            server.process.send_signal(signal.SIGINT)
            text = streamed.result()
        assert b'"code":"draining"' in text and b'data: [DONE]' in text


@pytest.mark.slow
def test_sigterm_while_the_model_loads(served_run):
    """/health answers at once; all other routes say that the model is loading."""
    process = servers.launch(served_run)
    try:
        port = wait_for(lambda: listening_port(process.pid), 'it listens')
        server = servers.Server(process, f'http://127.0.0.1:{port}', '')
        wait_for(lambda: server.get('/health') == dict(status='ok'), 'it answers')
        content = json.dumps(LONG).encode()
        status, body, headers = servers.send(server, COMPLETION, content)
        assert status == 503 and body['error']['code'] == 'loading'
        assert int(headers['retry-after']) >= 1
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=servers.SECONDS)
        assert process.returncode == 0, errors
        assert output == '' and 'Traceback' not in errors
    finally:
        process.kill()


def test_models_that_load_after_the_signal_are_closed(monkeypatch):
    draining, closed = threading.Event(), []
    engine = SimpleNamespace(close=lambda: closed.append('tiny'))

    def load_models(options, runs):
        os.kill(os.getpid(), signal.SIGTERM)
        assert draining.wait(servers.SECONDS)
        return dict(tiny=SimpleNamespace(engine=engine))

    async def drain(state, seconds, hurry):
        draining.set()
        await asyncio.sleep(0.3)

    monkeypatch.setattr(serve, '_load_models', load_models)
    monkeypatch.setattr(ServerState, 'drain', drain)
    with serve.listen('127.0.0.1', 0) as listener:
        options = serve.Options()
        assert asyncio.run(serve._run_server(options, listener, None, {}))
    assert closed == ['tiny']


def listening_port(pid) -> int | None:
    """The TCP port that a process listens on, read from /proc."""
    inodes = set()
    folder = Path(f'/proc/{pid}/fd')
    for entry in folder.iterdir():
        try:
            target = entry.readlink().name
        except OSError:
            continue
        if target.startswith('socket:['):
            inodes.add(target[8:-1])
    for line in Path('/proc/net/tcp').read_text().split('\n')[1:-1]:
        fields = line.split()
        if fields[3] == '0A' and fields[9] in inodes:
            return int(fields[1].split(':')[1], 16)
    return None
