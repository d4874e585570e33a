"""Several processes that run the same program and share one run directory."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.parallel import watchdog

# Without a new file of another process for so long, the folder is not a shared one.
SHARED_SECONDS = 60.0
POLL_SECONDS = 0.5
NO_MESH = Mesh(np.empty((), object), ())


def is_first_process() -> bool:
    """Whether this is the process that writes the files of the run."""
    return jax.process_index() == 0


def print_once(line: str) -> None:
    """Prints a line on the first process."""
    if is_first_process():
        print(line, flush=True)


def barrier(name: str) -> None:
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        watchdog.at(f'the barrier "{name}"')
        multihost_utils.sync_global_devices(name)


def any_process(condition: bool) -> bool:
    """Whether the condition is true in any process; every process has to call this."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())


def run_on_first_process(workdir: Path, function: Callable[[], None]) -> None:
    """The first process calls `function`; the others wait, with no time limit.

    They wait for a file in the run directory, as a collective operation would fail
    after minutes. If `function` raises, every process raises: the first one the same
    error, the others a UserError.
    """
    if jax.process_count() == 1:
        return function()
    token = np.random.default_rng().integers(2**31) if is_first_process() else 0
    token = int(multihost_utils.broadcast_one_to_all(np.int32(token)))
    begun, ended = workdir / f'.begun-{token}', workdir / f'.ended-{token}'
    if is_first_process():
        storage.write_text(begun, '')
    if any_process(not _wait_for_file(begun, SHARED_SECONDS)):
        raise UserError(
            f'--workdir={workdir}: not every process sees what the first one writes '
            'there: give a folder that all of them share'
        )
    error = None
    if is_first_process():
        try:
            function()
        except Exception as raised:
            error = raised
        try:
            message = error and _message_for_others(error)
            storage.write_json(ended, {'error': message})
        except OSError as raised:  # the disk may be full, and deleting needs no space
            error = error or raised
            begun.unlink()
    else:
        while begun.exists() and not ended.exists():
            time.sleep(POLL_SECONDS)
        message = 'the first process cannot write in the run directory'
        if ended.exists():
            message = storage.read_json(ended)['error']
        error = message and UserError(message)
    barrier(f'{workdir} is made')
    if is_first_process():
        begun.unlink(missing_ok=True)
        ended.unlink(missing_ok=True)
    if error:
        raise error


def compute_on_first_process(
    function: Callable[[], np.ndarray], size: int
) -> np.ndarray:
    """The float32 array (size,) that `function` returns on the first process.

    Every process returns these values. If `function` raises, every process raises: the
    first one the same error, the others a UserError.
    """
    if jax.process_count() == 1:
        return function()
    watchdog.at('the computation of process 0')
    values, error = np.zeros(size, np.float32), None
    if is_first_process():
        try:
            with jax.set_mesh(NO_MESH):  # one process alone cannot use global arrays
                values = np.asarray(function(), np.float32)
        except Exception as raised:
            error = raised
    text = _message_for_others(error).encode() if error else b''
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    if length:
        codes = np.resize(np.frombuffer(text, np.uint8), length)
        text = bytes(multihost_utils.broadcast_one_to_all(codes))
        raise error or UserError(text.decode())
    return multihost_utils.broadcast_one_to_all(values)


def gather_lists(function: Callable[[], list]) -> list:
    """The lists of JSON values that `function` returns in all processes, in one list.

    If `function` raises in one process, every process raises, so that none waits for
    it: a UserError if it was one. With several processes, named tuples come back as
    lists.
    """
    if jax.process_count() == 1:
        return function()
    values, error, failure = [], None, None
    try:
        values = function()
    except Exception as raised:
        error = raised
        failure = isinstance(error, UserError), _message_for_others(error)
    data = np.frombuffer(json.dumps([values, failure]).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    rows = multihost_utils.process_allgather(np.resize(data, max(sizes)))
    gathered = zip(rows, sizes, strict=True)
    parts = [json.loads(row[:size].tobytes()) for row, size in gathered]
    for _, failure in parts:
        if failure:
            by_user, message = failure
            raise error or (UserError if by_user else RuntimeError)(message)
    return [value for values, _ in parts for value in values]


def _message_for_others(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    name = 'the first process'
    if not is_first_process():
        name = f'process {jax.process_index()}'
    return f'{name}: {type(error).__name__}: {error}'


def _wait_for_file(path: Path, seconds: float) -> bool:
    """Whether the file exists before the seconds have passed."""
    limit = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL_SECONDS)
    return True
