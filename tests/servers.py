"""A server process for tests, and a run with small random weights for it to serve."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax

from gptjax.core import run_dir, storage
from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.state import abstract_state, create_state
from tests import helpers, runs

CONTEXT = 512
STEPS = (1, 2)
WRITTEN = 1_600_000_000  # added to a step: the time of its checkpoint, in seconds
SECONDS = 60.0  # limit of waiting for a condition that has to become true
TEXTS = [
    f'The {colour} {animal} says: “{number} times {number} is {number**2}.”\n\n'
    for colour in ('red', 'green', 'blue', 'grün', 'белый')
    for animal in ('fox', 'owl', 'cat 🐈', 'dog', 'whale')
    for number in range(20)
]


def make_run(workdir: Path, template: str = 'text', **model) -> Path:
    """A run directory with a tokenizer and two checkpoints of random weights."""
    config = helpers.config(**{'context': CONTEXT, **model})
    config.mesh.data = 1
    config.chat.template = template
    run_dir.write_config(config, workdir)
    content = train_model(TEXTS, 'bpe', 400)
    storage.write_bytes(workdir / 'tokenizer' / 'tokenizer.model', content)
    tokenizer = Tokenizer(content)
    resolved = settings.resolve(config.model, tokenizer.vocab_size)
    mesh = helpers.mesh_of()
    identity = dict(tokenizer=tokenizer.fingerprint)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(resolved)
        optimizer = make_optimizer(config, shapes)
        axes = gpt.param_axes(resolved)
        abstract = abstract_state(shapes, optimizer, axes, mesh)
        checkpoints = Checkpoints(workdir / 'checkpoints', identity)
        for step in STEPS:
            state = create_state(
                lambda key: gpt.init_params(resolved, key),
                optimizer,
                abstract,
                jax.random.key(step),
            )
            state = state._replace(step=jax.numpy.int32(step))
            checkpoints.save(step, state, {})
        checkpoints.close()
    for step in STEPS:
        written = WRITTEN + step
        os.utime(workdir / 'checkpoints' / f'{step:08d}', (written, written))
    return workdir


@dataclass
class Server:
    """A running `python -m gptjax serve`.

    address: for example 'http://127.0.0.1:1234'.
    ready_line: the line that it printed when it was ready.
    """

    process: subprocess.Popen
    address: str
    ready_line: str
    headers: dict = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(':')[2])

    def get(self, path: str):
        """The body of an answer, parsed if it is JSON."""
        request = urllib.request.Request(self.address + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            text = answer.read().decode()
        kind = answer.headers['Content-Type']
        return json.loads(text) if kind == 'application/json' else text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all labels except the given ones."""
        total = 0.0
        for line in self.get('/metrics').split('\n'):
            labelled_name, _, value = line.rpartition(' ')
            wanted = (f'{key}="{text}"' for key, text in labels.items())
            if labelled_name.partition('{')[0] == name and all(
                w in labelled_name for w in wanted
            ):
                total += float(value)
        return total

    def is_idle(self) -> bool:
        return not self.metric('gptjax_running') + self.metric('gptjax_waiting')


def wait_for(condition, what: str, seconds: float = SECONDS):
    """Waits for a true value of `condition()` and returns it; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f'not within {seconds} s: {what}')


def launch(workdir: Path, *words) -> subprocess.Popen:
    """Starts `serve` on a free port, with its output in pipes."""
    return subprocess.Popen(
        [
            *(sys.executable, '-m', 'gptjax', 'serve'),
            *(f'--workdir={workdir}', '--port=0', *map(str, words)),
        ],
        cwd=runs.ROOT,
        env=runs.environment(JAX_DISABLE_MOST_OPTIMIZATIONS='1'),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def serving(workdir: Path, *words, key: str | None = None) -> Iterator[Server]:
    """A server that is ready. SIGTERM ends it, and its exit code has to be 0."""
    process = launch(workdir, *words)
    try:
        line = process.stdout.readline()
        assert line.startswith('ready: http://'), line + process.stderr.read()
        address = line.split()[1].rstrip('/')
        headers = {} if key is None else {'Authorization': f'Bearer {key}'}
        yield Server(process, address, line, headers)
    except BaseException:
        process.kill()
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert output == '' and 'Traceback' not in errors, output + errors


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    """A plain socket, for requests that no HTTP client would send."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(SECONDS)
    connection.connect(('127.0.0.1', server.port))
    return connection


def post_bytes(path: str, content: bytes, *headers: str) -> bytes:
    """The bytes of a request."""
    lines = (
        f'POST {path} HTTP/1.1',
        'Host: localhost',
        'Content-Type: application/json',
        f'Content-Length: {len(content)}',
        *headers,
    )
    return '\r\n'.join(lines).encode() + b'\r\n\r\n' + content


def post(server: Server, path: str, body) -> dict:
    """The JSON of the answer to a body, for any status."""
    return send(server, path, json.dumps(body).encode())[1]


def send(
    server: Server, path: str, content: bytes | None, method: str = 'POST', **headers
) -> tuple[int, dict, dict]:
    """(status, JSON of the answer, its headers) of any request."""
    headers = {'Content-Type': 'application/json', **server.headers, **headers}
    request = urllib.request.Request(
        server.address + path, content, headers, method=method
    )
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, json.loads(answer.read()), dict(answer.headers)
