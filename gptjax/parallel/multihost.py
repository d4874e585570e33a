"""Several processes, one program, one shared run directory."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.core import storage
from gptjax.core.console import UserError

SHARED_SECONDS = 60.0  # in which a file shows on every process' disk
POLL_SECONDS = 0.5


def initialize() -> None:
    """Joins the cluster that the environment describes (Cloud TPU, Slurm, …)."""
    jax.distributed.initialize()


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(line, flush=True)


def meet(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(here: bool) -> bool:
    """Whether it is so in any process; every process has to ask."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def first_makes(workdir: Path, make: Callable[[], None]) -> None:
    """The first process calls `make`; the others wait, however long, and go on.

    They wait for a file in the run directory and not in a collective operation,
    which gives up after minutes.

    Raises:
        UserError: `make` raised something (the first process raises just that), or
            the processes do not share the run directory.
    """
    if jax.process_count() == 1:
        return make()
    token = np.random.default_rng().integers(2**31) if is_first() else 0
    token = int(multihost_utils.broadcast_one_to_all(np.int32(token)))
    begun, ended = workdir / f'.begun-{token}', workdir / f'.ended-{token}'
    if is_first():
        storage.write_text(begun, '')
    visible = _appears(begun, SHARED_SECONDS)
    if any_of(not visible):
        raise UserError(
            f'--workdir={workdir}: not every process sees what the first one writes '
            'there: give a folder that all of them share'
        )
    error = None
    if is_first():
        try:
            make()
        except Exception as raised:
            error = raised
        try:
            storage.write_json(ended, {'error': error and _told(error)})
        except OSError as raised:  # the disk may be full: to delete needs no room
            error = error or raised
            begun.unlink()
    else:
        while begun.exists() and not ended.exists():
            time.sleep(POLL_SECONDS)
        told = 'the first process cannot write in the run directory'
        if ended.exists():
            told = storage.read_json(ended)['error']
        error = told and UserError(told)
    meet(f'{workdir} is made')
    if is_first():
        begun.unlink(missing_ok=True)
        ended.unlink(missing_ok=True)
    if error:
        raise error


def _told(error: Exception) -> str:
    """An error to the other processes' users."""
    if isinstance(error, UserError):
        return str(error)
    return f'the first process: {type(error).__name__}: {error}'


def _appears(path: Path, seconds: float) -> bool:
    """Whether the file shows in so many seconds."""
    limit = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL_SECONDS)
    return True
