"""Ends a process that waits too long for another one, and says where and for which.

A collective operation waits for ever for a process that is stopped or stuck, so that
one bad host would hold all others. The training loop names each place where it may
wait, with `at`; a thread looks whether the next one is reached in time.
"""

import faulthandler
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.process import LOST
from gptjax.parallel import places

BEAT_SECONDS = 10.0  # at most, between two writes of the place
STEP = 'at step {step}, in {name}'


class Watchdog:
    """The thread, the file and the places of this process.

    Args:
        folder: RUN/.processes.
        timeout: seconds in a place that end the process.
        first_timeout: the same when the place is reached for the first time.
    """

    def __init__(self, folder: Path, timeout: float, first_timeout: float):
        self.folder, self.number = folder, jax.process_index()
        self.timeout, self.first_timeout = timeout, max(timeout, first_timeout)
        self.beat = min(BEAT_SECONDS, timeout / 20)
        self.place = dict(step=0, name='the start', count=0, beat=0, ended='')
        self.progress, self.seen = None, set()
        self._giving_up, self._ended = threading.Lock(), threading.Event()
        program = [sys.executable, '-I', '-S', places.__file__, str(folder)]
        numbers = map(str, (self.number, jax.process_count(), self.beat))
        # It is in a session of its own, so that it outlives the process.
        self._last_words = subprocess.Popen(
            [*program, *numbers], stdin=subprocess.PIPE, start_new_session=True
        )
        self.at('the start')
        self._write()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def at(self, name: str, step: int | None = None, progress=None) -> None:
        """The process is in this place now.

        progress: returns a value that changes while a long operation goes on.
        """
        step = self.place['step'] if step is None else step
        self.limit = self.timeout if name in self.seen else self.first_timeout
        self.seen.add(name)
        self.progress, self.value = progress, None
        self.since = time.monotonic()
        self.place = dict(
            self.place, step=step, name=name, count=self.place['count'] + 1
        )
        self._tell(STEP.format(**self.place))

    def give_up(self, reason: str, error: BaseException | None = None) -> None:
        """Prints the place, all stacks and the missing processes; ends this process.

        With an error, the process ends only if another one is missing.
        """
        with self._giving_up:
            place = STEP.format(**self.place)
            text = f'process {self.number} of {jax.process_count()}: {reason} {place}'
            print(text, file=sys.stderr, flush=True)
            if error is not None:
                traceback.print_exception(error)
            faulthandler.dump_traceback(all_threads=True)
            lines = places.find_missing(
                self.folder, self.number, jax.process_count(), self.beat
            )
            none = 'no other process is missing: this one waits for itself'
            print('\n'.join(lines or [none]), file=sys.stderr, flush=True)
            self.place = dict(self.place, ended=reason)
            if error is None or lines:
                self._write()
                self._tell('end')
                os._exit(LOST)

    def end(self, reason: str = '') -> None:
        """Stops to watch; the file stays if there is a reason for the others."""
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.place = dict(self.place, ended=reason)
        if reason:
            self._write()
        else:
            places.remove_place(self.folder, self.number)
        self._tell('end')
        self._last_words.stdin.close()

    def _watch(self):
        while not self._ended.wait(self.beat):
            self._write()
            # If an extension holds Python's lock, this thread cannot run either.
            faulthandler.dump_traceback_later(2 * self.first_timeout, exit=True)
            value = self.progress and self.progress()
            if value != self.value:
                self.value, self.since = value, time.monotonic()
            waited = time.monotonic() - self.since
            if waited > self.limit:
                field = 'timeout' if self.limit == self.timeout else 'first_timeout'
                self.give_up(
                    f'no progress for {waited:,.0f} s (distributed.{field}='
                    f'{self.limit})'
                )

    def _write(self):
        self.place = dict(self.place, beat=self.place['beat'] + 1)
        try:
            places.write_place(self.folder, self.number, self.place)
        except OSError:
            pass  # the disk may be full: training says so

    def _tell(self, line):
        try:
            self._last_words.stdin.write(f'{line}\n'.encode())
            self._last_words.stdin.flush()
        except OSError:
            pass


DOG = []  # the watchdog, inside `watching`


def at(name: str, step: int | None = None, progress: Callable | None = None) -> None:
    """Names the place where this process may wait; nothing with one process."""
    for dog in DOG:
        dog.at(name, step, progress)


def named(name: str, function: Callable) -> Callable:
    """The function, whose calls are a place."""

    def call(*arguments):
        at(name)
        return function(*arguments)

    return call if DOG else function


@contextmanager
def watching(workdir: Path, section: ConfigDict) -> Iterator[None]:
    """Inside, places are watched, if there are several processes.

    An error that comes from the end of another process ends this one, too, with
    `process.LOST`; all other errors are raised.
    """
    if jax.process_count() == 1:
        yield
        return
    faulthandler.enable()  # JAX aborts the process if process 0 dies
    dog = Watchdog(workdir / places.FOLDER, section.timeout, section.first_timeout)
    DOG.append(dog)
    try:
        yield
    except UserError as error:
        dog.end(str(error))
        raise
    except Exception as error:
        dog.give_up(f'{type(error).__name__}', error)
        dog.end(f'{type(error).__name__}: {error}'[:500])
        raise
    except BaseException as error:
        dog.end(type(error).__name__)
        raise
    else:
        dog.end()
    finally:
        DOG.clear()
