"""The stage `serve`: loads the models, answers until it is told to end, drains."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from ml_collections import ConfigDict

from gptjax.core import console, run_dir
from gptjax.core.console import UserError
from gptjax.serve import security
from gptjax.serve.admission import Service
from gptjax.serve.api import make_app
from gptjax.serve.connections import Connection
from gptjax.serve.grammar import Grammars
from gptjax.serve.protocol import Served

DRAIN_SECONDS = 30.0  # that replies have to end after SIGTERM
CLOSE_SECONDS = 3  # that answers have to be sent after that
KEEP_ALIVE_SECONDS = 30
SEND_BUFFER = 2**17  # bytes of answers that the system keeps for one client
UNACKNOWLEDGED_SECONDS = 60  # after which the system closes what nobody reads
SPARE_CONNECTIONS = 256  # besides those of the requests that run or wait
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Options:
    """The flags of `serve`.

    beside: further models, each RUN or RUN@STEP.
    allowed_hosts: names of this server in the Host header.
    time_limit: seconds a request may take.
    weights, cache: how they are kept, 'whole' or 'int8'.
    draft: the run directory of a smaller model that guesses for the first one.
    guesses: tokens that it guesses in a step.
    """

    host: str = '127.0.0.1'
    port: int = 8000
    step: int | None = None
    beside: Sequence[str] = ()
    api_key_file: str | None = None
    allowed_hosts: Sequence[str] = ()
    slots: int = 8
    queue: int = 64
    time_limit: float = 300.0
    weights: str = 'whole'
    cache: str = 'whole'
    draft: Path | None = None
    guesses: int = 4


def serve(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C, and then ends what runs; a second one hurries.

    Prints one line, with the address, when replies can be drawn.

    Raises:
        UserError: a flag is wrong, the port is taken, or a run has no checkpoint.
    """
    key = None
    if options.api_key_file is not None:
        key = security.read_key(options.api_key_file)
    security.check_host(options.host, key)
    _check_numbers(options)
    runs = [(config, workdir, options.step)]
    runs += [_run_of(name) for name in options.beside]
    names = [_name(folder, step) for _, folder, step in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'--beside: two models are called {name}: rename a folder')
    for _, folder, _ in runs:
        if not (folder / 'checkpoints').is_dir():
            raise UserError(
                f'{folder}: no checkpoint there: run the stage pretrain first'
            )
    listening = listen(options.host, options.port)
    with contextlib.closing(listening):
        loaded = asyncio.run(
            _serve(options, listening, key, dict(zip(names, runs, strict=True)))
        )
    if not loaded:
        # A thread compiles still: Python's own end stops it in the middle of XLA, and
        # there that aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


# ---- flags --------------------------------------------------------------------


def _check_numbers(options: Options) -> None:
    rules = (
        ('port', 0 <= options.port < 2**16, 'from 0 (any that is free) to 65535'),
        ('slots', options.slots >= 1, '1 or more'),
        ('queue', options.queue >= 1, '1 or more'),
        ('time_limit', options.time_limit > 0, 'above 0, in seconds'),
    )
    for name, fine, fix in rules:
        if not fine:
            raise UserError(f'--{name}={getattr(options, name)}: use a number {fix}')


def _run_of(text: str) -> tuple[ConfigDict, Path, int | None]:
    """(config, folder, step) of 'RUN' or 'RUN@STEP'."""
    path, _, number = text.rpartition('@')
    step = None
    if path and number.isdecimal() and not Path(text).expanduser().is_dir():
        text, step = path, int(number)
    folder = Path(text).expanduser().absolute()
    try:
        return run_dir.read_config(folder), folder, step
    except UserError as error:
        raise UserError(f'--beside={text}: {error}') from error


def _name(folder: Path, step: int | None) -> str:
    return folder.name if step is None else f'{folder.name}@{step}'


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; what it is sent while models load waits or not.

    Raises:
        UserError: the port is taken or not allowed.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # By the protocol asyncio knows TCP, and sends small pieces without delay.
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these: a client that reads nothing costs little, and ends.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):
        milliseconds = UNACKNOWLEDGED_SECONDS * 1000
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listening.bind(address)
        listening.listen(512)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f'--host={host}: this machine has no such address: use 127.0.0.1'
            ) from error
        raise UserError(
            f'--port={port}: {os.strerror(error.errno)}: use another, or --port=0 for '
            'one that is free'
        ) from error
    return listening


# ---- running ------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn's, which leaves the signals to `_serve`."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def new_server(app, most_connections: int) -> uvicorn.Server:
    """A server of an ASGI application, to be run; it logs errors alone."""
    return _Server(
        uvicorn.Config(
            app,
            http=partial(Connection, most=most_connections),
            ws='none',
            lifespan='off',
            log_config=None,
            log_level='error',
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )


async def _serve(options: Options, listening: socket.socket, key, runs: dict) -> bool:
    """Whether the models were there when it ended."""
    logging.basicConfig(
        level=logging.WARNING, format='%(asctime)s %(levelname)s %(message)s'
    )
    service = Service(
        time_limit=options.time_limit, most_replies=options.slots + options.queue
    )
    hosts = [*options.allowed_hosts, options.host]
    if options.host not in ('127.0.0.1', 'localhost', '::1'):
        hosts += [socket.gethostname(), socket.getfqdn()]
    app = make_app(service, hosts, key)
    server = new_server(app, SPARE_CONNECTIONS + options.slots + options.queue)
    loop = asyncio.get_running_loop()
    told, hurry = asyncio.Event(), asyncio.Event()

    def on_signal():
        (hurry if told.is_set() else told).set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    ending = asyncio.create_task(told.wait())
    loading = _in_thread(loop, lambda: _load(options, runs))
    try:
        await asyncio.wait({serving, ending, loading}, return_when='FIRST_COMPLETED')
        if loading.done():
            service.models.update(loading.result())
            print(f'ready: {_address(options.host, listening)}', flush=True)
            await asyncio.wait({serving, ending}, return_when='FIRST_COMPLETED')
        if service.calls:
            print(f'ending {len(service.calls)} requests', file=sys.stderr)
        await service.drain(DRAIN_SECONDS, hurry)
    finally:
        server.should_exit = True
        await serving
        for model in service.models.values():
            await asyncio.to_thread(model.engine.close)
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return loading.done()


def _in_thread(loop, function) -> asyncio.Future:
    """The result of `function`; nobody waits for it where the program ends before."""
    result = loop.create_future()

    def settle(value, error):
        if result.cancelled():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def run():
        value = error = None
        try:
            value = function()
        except BaseException as caught:  # noqa: BLE001 (whoever awaits it gets it)
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name='loading', daemon=True).start()
    return result


def _load(options: Options, runs: dict) -> dict[str, Served]:
    """The models, warm and started."""
    from gptjax.eval import quantization_cost
    from gptjax.models import parameter_count, settings
    from gptjax.train.load_model import load_engine

    models = {}
    with console.progress_bar('loading', len(runs), 'models') as advance:
        for name, (config, folder, step) in runs.items():
            engine = load_engine(
                config,
                folder,
                step,
                slots=options.slots,
                queue=options.queue,
                weights=options.weights,
                cache=options.cache,
                guesses=options.guesses,
                draft=None if models else options.draft,
            )
            cost = quantization_cost.tell(
                config, folder, step, options.weights, options.cache
            )
            if cost:
                print(f'{folder.name}: {cost}', file=sys.stderr)
            engine.warm_up()
            engine.start()
            model = settings.resolve(config.model, engine.vocab_size)
            millions = parameter_count.num_params(model) / 1e6
            models[name] = Served(
                id=name,
                engine=engine,
                grammars=Grammars(engine.tokenizer),
                template=config.get('chat', {}).get('template', 'text'),
                step=engine.trained_step,
                created=_written(folder, engine.trained_step),
                description=(
                    f'{millions:.1f} million parameters after '
                    f'{engine.trained_step:,} updates'
                ),
            )
            advance(1)
    return models


def _written(folder: Path, step: int) -> int:
    """When a checkpoint was written, in seconds since 1970."""
    checkpoints = folder / 'checkpoints'
    try:
        written = (checkpoints / f'{step:08d}').stat()
    except FileNotFoundError:  # a training that still runs has dropped it since
        written = checkpoints.stat()
    return int(written.st_mtime)


def _address(host: str, listening: socket.socket) -> str:
    """As 'http://127.0.0.1:8000/'."""
    port = listening.getsockname()[1]
    shown = f'[{host}]' if ':' in host else host
    return f'http://{shown}:{port}/'
