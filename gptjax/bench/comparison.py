"""Speeds side by side: implementations take turns; other libraries run as processes.

Another library may need another interpreter, and shares neither threads nor packages
with JAX. Its process first describes itself, then answers orders: one line of JSON
each way, on standard input and output. Between orders it waits and takes no processor
time.
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
QUIT_SECONDS = 5  # between the end of the orders and a kill


# ---- timing -------------------------------------------------------------------


def available_cores() -> int:
    """The cores this process may run on, which may be fewer than there are."""
    if hasattr(os, 'sched_getaffinity'):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def time_in_turns(
    implementations: dict[str, Callable[[int], list[float]]], rounds: int, steps: int
) -> dict[str, list[list[float]]]:
    """Lets each implementation do a few steps in turn, round after round.

    A machine's speed drifts with its heat and its other load. Implementations that
    take turns meet the same drift, so their ratios hold where their speeds do not. In
    each round another one comes first.

    Args:
        implementations: name -> `run_steps(steps)`, which returns the seconds of each.

    Returns:
        name -> for each round, the seconds of each of its steps.
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
    """The speed of one implementation, from its timed steps of `tokens` tokens each.

    Other load on the machine disturbs the least seconds (`best_…`) less.
    """
    median, least = statistics.median(step_seconds), min(step_seconds)
    return {
        'steps': len(step_seconds),
        'median_seconds': median,
        'least_seconds': least,
        'tokens_per_second': tokens / median,
        'best_tokens_per_second': tokens / least,
    }


def compute_speedup(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """How many times as fast `ours` is: median, least and greatest over the rounds.

    Each round gives one ratio, of the median seconds of a step.
    """
    ratios = [
        statistics.median(their_round) / statistics.median(our_round)
        for our_round, their_round in zip(ours, theirs, strict=True)
    ]
    return {'ratio': statistics.median(ratios), 'low': min(ratios), 'high': max(ratios)}


def summarize_all(seconds: dict[str, list[list[float]]], tokens: int) -> dict:
    """name -> `summarize` of all its rounds, which `time_in_turns` returned.

    All but the first have also `speedup`, that of the first over it.
    """
    first, *others = seconds
    results = {
        name: summarize([s for steps in rounds for s in steps], tokens)
        for name, rounds in seconds.items()
    }
    for name in others:
        results[name]['speedup'] = compute_speedup(seconds[first], seconds[name])
    return results


# ---- another library: the caller ----------------------------------------------


def check_backend(against: str) -> None:
    """Refuses to compare an accelerator with a library that runs on the processor."""
    import jax  # the other processes may have none

    if jax.default_backend() != 'cpu':
        raise UserError(
            f'--against={against} is measured on the CPU, and jax computes on the '
            f'{jax.default_backend()} here: leave it out, or set JAX_PLATFORMS=cpu'
        )


@contextmanager
def library_process(
    name: str, module: str, arguments: Sequence[str], python: str
) -> Iterator[tuple[dict, Callable[[dict], dict]]]:
    """Starts a library; yields how it describes itself, and `ask(order) -> answer`.

    The interpreter `python` runs `module`, which calls `answer_orders`. Where the
    process ends, `ask` raises a UserError with its last line on standard error.
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

        def ask(order: dict) -> dict:
            with suppress(BrokenPipeError):  # it has ended: `read_answer` tells why
                process.stdin.write(json.dumps(order) + '\n')
                process.stdin.flush()
            return read_answer()

        try:
            yield read_answer(), ask
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # no more orders
            try:
                process.wait(QUIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


# ---- another library: the process ---------------------------------------------


def answer_orders(start: Callable[[], tuple[dict, dict[str, Callable]]]) -> None:
    """Describes the library, then answers orders until there are no more.

    `start` returns (description, order's name -> function of its other fields); the
    message of its `UserError` is written to standard error.
    """
    # What libraries print goes to standard error: only answers go to the caller.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    send = lambda value: print(json.dumps(value), file=answers, flush=True)
    try:
        description, functions = start()
    except UserError as error:
        sys.exit(str(error))
    send(description)
    for line in sys.stdin:
        order = json.loads(line)
        send(functions[order.pop('do')](**order))
