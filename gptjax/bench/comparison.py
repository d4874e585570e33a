"""Times several implementations alternately; runs other libraries as processes.

Another library may need another interpreter, and must not share threads or packages
with JAX. Its process first describes itself, then answers commands: one line of JSON
each way, on standard input and output. It uses no processor time between commands.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gptjax.core import console
from gptjax.core.console import UserError

SETTLE_SECONDS = 0.3  # until idle threads of the last implementation stop spinning
QUIT_SECONDS = 5  # a process has to end after its last command, before it is killed


# ---- timing -------------------------------------------------------------------


def available_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, 'sched_getaffinity'):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def time_alternately(
    implementations: dict[str, Callable[[int], list[float]]], rounds: int, steps: int
) -> dict[str, list[list[float]]]:
    """Runs a few steps of each implementation, one after the other, in each round.

    The speed of a machine drifts with its temperature and other load. Alternating
    implementations see the same drift, so their ratios are more reliable than their
    speeds. Each round starts with another implementation.

    Args:
        implementations: name -> `run_steps(steps)`, which returns seconds per step.

    Returns:
        name -> for each round, the seconds of each step.
    """
    names = list(implementations)
    seconds = {name: [] for name in names}
    with console.progress_bar('timing', rounds * len(names), 'turns') as advance:
        for round_index in range(rounds):
            first = round_index % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(SETTLE_SECONDS)
                seconds[name].append(implementations[name](steps))
                advance(1, name)
    return seconds


def summarize(step_seconds: list[float], tokens: int) -> dict:
    """The speed of one implementation, from timed steps of `tokens` tokens each.

    Other load on the machine changes the least time (`best_…`) less than the median.
    """
    median, least = statistics.median(step_seconds), min(step_seconds)
    return {
        'steps': len(step_seconds),
        'median_seconds': median,
        'least_seconds': least,
        'tokens_per_second': tokens / median,
        'best_tokens_per_second': tokens / least,
    }


def summarize_all(seconds: dict[str, list[list[float]]], tokens: int) -> dict:
    """name -> `summarize` of the result of `time_alternately`.

    All but the first implementation also have `speedup`: how many times as fast the
    first one is. Each round gives one ratio of median seconds; the speedup is their
    median (`ratio`), least (`low`) and greatest (`high`).
    """
    results = {
        name: summarize([s for steps in rounds for s in steps], tokens)
        for name, rounds in seconds.items()
    }
    medians = {name: list(map(statistics.median, s)) for name, s in seconds.items()}
    first, *others = seconds
    for name in others:
        ratios = [
            other / ours
            for ours, other in zip(medians[first], medians[name], strict=True)
        ]
        results[name]['speedup'] = {
            'ratio': statistics.median(ratios),
            'low': min(ratios),
            'high': max(ratios),
        }
    return results


# ---- another library: the caller ----------------------------------------------


def check_backend(against: str) -> None:
    """Refuses to compare JAX on an accelerator with a library on the CPU."""
    import jax  # the other library's environment may not have it

    if jax.default_backend() != 'cpu':
        raise UserError(
            f'--against={against} is measured on the CPU, and jax computes on the '
            f'{jax.default_backend()} here: leave it out, or set JAX_PLATFORMS=cpu'
        )


@contextmanager
def library_process(
    name: str, module: str, arguments: Sequence[str], python: str
) -> Iterator[tuple[dict, Callable[[dict], dict]]]:
    """Starts a library; yields its description and `call(command) -> answer`.

    The interpreter `python` runs `module`, which calls `serve_commands`. If the process
    ends, `call` raises a UserError with its last line on standard error.
    """
    package_folder = str(Path(__file__).resolve().parents[2])
    python_path = [package_folder, *filter(None, [os.environ.get('PYTHONPATH')])]
    with tempfile.TemporaryFile('w+') as error_file:
        try:
            process = subprocess.Popen(
                [python, '-m', module, *arguments],
                env=os.environ | {'PYTHONPATH': os.pathsep.join(python_path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error_file,
                text=True,
            )
        except OSError as error:
            raise UserError(
                f'--against_python={python}: {error.strerror}: give the path of a '
                f'Python that has what --against={name} needs'
            ) from None

        def read_answer() -> dict:
            line = process.stdout.readline()
            if not line:
                process.wait()
                error_file.seek(0)
                error_lines = [line for line in error_file if line.strip()]
                reason = f'the process ended with code {process.returncode}'
                if error_lines:
                    reason = error_lines[-1].strip()
                raise UserError(f'--against={name}: {reason}')
            return json.loads(line)

        def call(command: dict) -> dict:
            with suppress(BrokenPipeError):  # the process ended; `read_answer` raises
                process.stdin.write(json.dumps(command) + '\n')
                process.stdin.flush()
            return read_answer()

        try:
            yield read_answer(), call
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # ends the process
            try:
                process.wait(QUIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


# ---- another library: the process ---------------------------------------------


def serve_commands(start: Callable[[], tuple[dict, dict[str, Callable]]]) -> None:
    """Prints the library's description, then answers commands until input ends.

    `start` returns (description, {command's name: function of its other fields}). The
    message of a `UserError` in it goes to standard error.
    """
    # Libraries may print: their output goes to standard error, answers to the caller.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    send = lambda value: print(json.dumps(value), file=answers, flush=True)
    try:
        description, functions = start()
    except UserError as error:
        sys.exit(str(error))
    send(description)
    for line in sys.stdin:
        command = json.loads(line)
        send(functions[command.pop('do')](**command))
