"""The stage `serve`: loads models, serves requests until a signal, then drains."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from ml_collections import ConfigDict

from gptjax.core import console, run_dir
from gptjax.core.config import choose_context
from gptjax.core.console import UserError
from gptjax.serve import security
from gptjax.serve.admission import ServerState
from gptjax.serve.api import make_app
from gptjax.serve.api_requests import ServedModel
from gptjax.serve.grammar import GrammarCompiler

DRAIN_SECONDS = 30.0  # after SIGTERM, for replies to end
CLOSE_SECONDS = 3  # after that, for responses to be sent
KEEP_ALIVE_SECONDS = 30
SEND_BUFFER_BYTES = 2**17  # of the operating system, for each client
UNACKNOWLEDGED_SECONDS = 60  # then the system closes a connection nobody reads
SPARE_CONNECTIONS = 256  # in addition to those of running and waiting requests
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Options:
    """The flags of `serve`."""

    host: str = '127.0.0.1'
    port: int = 8000
    step: int | None = None
    beside: Sequence[str] = ()  # more models to serve, each RUN or RUN@STEP
    api_key_file: str | None = None
    allowed_hosts: Sequence[str] = ()  # names of this server in the Host header
    context: int | None = None  # see `choose_context`
    slots: int = 8
    queue: int = 64
    time_limit: float = 300.0  # seconds a request may take
    weights: str = 'whole'  # or 'int8', also for `cache`
    cache: str = 'whole'
    draft: Path | None = None  # run of the draft model for speculative decoding
    guesses: int = 4  # tokens that the draft model proposes in a step


def serve(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets replies end.

    A second signal stops them. Prints one line with the address when the models are
    ready.
    """
    key = None
    if options.api_key_file is not None:
        key = security.read_key(options.api_key_file)
    security.check_host(options.host, key)
    rules = (
        ('port', 0 <= options.port < 2**16, 'from 0 (any that is free) to 65535'),
        ('slots', options.slots >= 1, '1 or more'),
        ('queue', options.queue >= 1, '1 or more'),
        ('time_limit', options.time_limit > 0, 'above 0, in seconds'),
    )
    for name, is_valid, fix in rules:
        if not is_valid:
            raise UserError(f'--{name}={getattr(options, name)}: use a number {fix}')
    runs = [(config, workdir, options.step)]
    runs += [_parse_run(name) for name in options.beside]
    run_of_name = {}
    for run in runs:
        _, folder, step = run
        name = folder.name if step is None else f'{folder.name}@{step}'
        if name in run_of_name:
            raise UserError(
                f'--beside: two models have the name {name}: rename a folder'
            )
        run_of_name[name] = run
    for _, folder, _ in run_of_name.values():
        if not (folder / 'checkpoints').is_dir():
            raise UserError(
                f'{folder}: no checkpoint there: run the stage pretrain first'
            )
    run_of_name = _with_contexts(run_of_name, options.context)
    with contextlib.closing(listen(options.host, options.port)) as listener:
        loaded = asyncio.run(_run_server(options, listener, key, run_of_name))
    if not loaded:
        # A thread still compiles. A normal exit of Python would stop it inside XLA,
        # which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _with_contexts(run_of_name: dict, flag: int | None) -> dict:
    """(config, folder, step, context) of each model, by its name.

    The model with the most positions decides which --context is allowed; the others
    have at most their own positions.
    """
    longest = {name: run[0].model.context for name, run in run_of_name.items()}
    if flag is not None:
        largest = max(longest, key=longest.get)
        choose_context(largest, longest[largest], flag)
    contexts = {
        name: choose_context(
            name, longest[name], flag and min(flag, longest[name]), run[0].data.context
        )
        for name, run in run_of_name.items()
    }
    return {name: (*run, contexts[name]) for name, run in run_of_name.items()}


def _parse_run(text: str) -> tuple[ConfigDict, Path, int | None]:
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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, which accepts connections while the models load."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # asyncio recognises TCP by the protocol number, and then sets TCP_NODELAY.
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these options: clients that never read cost little memory.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):
        milliseconds = UNACKNOWLEDGED_SECONDS * 1000
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        message = (
            f'--port={port}: {os.strerror(error.errno)}: use another, or --port=0 for '
            'one that is free'
        )
        if error.errno == errno.EADDRNOTAVAIL:
            message = f'--host={host}: this machine has no such address: use 127.0.0.1'
        raise UserError(message) from error
    return listener


# ---- running ------------------------------------------------------------------


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield  # `_run_server` handles the signals


def new_server(app, max_connections: int) -> uvicorn.Server:
    """A server of an ASGI application, which does not run yet and logs only errors."""
    return _Server(
        uvicorn.Config(
            app,
            http=partial(security.LimitedConnection, max_connections=max_connections),
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


async def _run_server(
    options: Options, listener: socket.socket, key: str | None, runs: dict
) -> bool:
    """Serves until a signal; returns whether the models had been loaded by then.

    `runs` maps the name of each model to (config, folder, step, context).
    """
    logging.basicConfig(
        level=logging.WARNING, format='%(asctime)s %(levelname)s %(message)s'
    )
    capacity = options.slots + options.queue
    state = ServerState(time_limit=options.time_limit, max_replies=capacity)
    hosts = [*options.allowed_hosts, options.host]
    if options.host not in ('127.0.0.1', 'localhost', '::1'):
        hosts += [socket.gethostname(), socket.getfqdn()]
    server = new_server(make_app(state, hosts, key), SPARE_CONNECTIONS + capacity)
    loop = asyncio.get_running_loop()
    first_signal, second_signal = asyncio.Event(), asyncio.Event()

    def on_signal():
        (second_signal if first_signal.is_set() else first_signal).set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ending = asyncio.create_task(first_signal.wait())
    # When the server ends, asyncio does not wait for threads of this executor.
    load_models = partial(_load_models, options, runs)
    loading = loop.run_in_executor(ThreadPoolExecutor(1, 'loading'), load_models)
    try:
        await asyncio.wait({serving, ending, loading}, return_when='FIRST_COMPLETED')
        if loading.done():
            state.models.update(loading.result())
            host = f'[{options.host}]' if ':' in options.host else options.host
            port = listener.getsockname()[1]
            print(f'ready: http://{host}:{port}/', flush=True)
            await asyncio.wait({serving, ending}, return_when='FIRST_COMPLETED')
        if state.running:
            print(f'ending {len(state.running)} requests', file=sys.stderr)
        await state.drain(DRAIN_SECONDS, second_signal)
    finally:
        server.should_exit = True
        await serving
        loaded = loading.done()
        if loaded and not loading.exception():
            for model in loading.result().values():
                await asyncio.to_thread(model.engine.close)
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return loaded


def _load_models(options: Options, runs: dict) -> dict[str, ServedModel]:
    """Loads the models; their engines are compiled and started."""
    from gptjax.eval import quantization_cost
    from gptjax.models import parameter_count, settings
    from gptjax.serve.model_card import make_card
    from gptjax.train.load_model import load_engine

    models = {}
    with console.progress_bar('loading', len(runs), 'models') as advance:
        for name, (config, folder, step, context) in runs.items():
            engine = load_engine(
                config,
                folder,
                step,
                context=context,
                slots=options.slots,
                queue=options.queue,
                weights=options.weights,
                cache=options.cache,
                guesses=options.guesses,
                draft=None if models else options.draft,
            )
            cost = quantization_cost.describe_cost(
                config, folder, step, options.weights, options.cache
            )
            if cost:
                print(f'{folder.name}: {cost}', file=sys.stderr)
            engine.warm_up()
            engine.start()
            model_settings = settings.resolve(config.model, engine.vocab_size)
            num_params = parameter_count.num_params(model_settings)
            models[name] = ServedModel(
                id=name,
                engine=engine,
                grammars=GrammarCompiler(engine.tokenizer),
                template=config.chat.template,
                step=engine.trained_step,
                created=_checkpoint_time(folder, engine.trained_step),
                description=(
                    f'{num_params / 1e6:.1f} million parameters after '
                    f'{engine.trained_step:,} updates'
                ),
                card=make_card(
                    folder, name, engine, num_params, options.weights, options.cache
                ),
            )
            advance(1)
    return models


def _checkpoint_time(folder: Path, step: int) -> int:
    """When a checkpoint was written, in seconds since 1970."""
    checkpoints = folder / 'checkpoints'
    try:
        status = (checkpoints / f'{step:08d}').stat()
    except FileNotFoundError:  # deleted by a training that still runs
        status = checkpoints.stat()
    return int(status.st_mtime)
