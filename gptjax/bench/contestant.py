"""A contestant in a process of its own, asked for its work line by line.

Other libraries may live under another interpreter, and share neither threads nor
packages with JAX. The process first says what it is, then answers each order: one
line of JSON each way, on standard input and output. Between orders it waits and
takes no processor time.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gptjax.core.console import UserError

QUIT_SECONDS = 5  # between the end of the orders and a kill


# ---------------------------------------------------------------- the caller


def check_backend(against: str) -> None:
    """Refuses to compare an accelerator with what runs on the processor.

    Raises:
        UserError: JAX computes elsewhere.
    """
    import jax  # the other processes may have none

    if jax.default_backend() != 'cpu':
        raise UserError(
            f'--against={against} is measured on the CPU, and jax computes on the '
            f'{jax.default_backend()} here: leave it out, or set JAX_PLATFORMS=cpu'
        )


@contextmanager
def contestant(
    name: str, module: str, arguments: Sequence[str], python: str
) -> Iterator[tuple[dict, Callable[[dict], dict]]]:
    """Yields what the process says of itself, and `ask(order) -> answer`.

    Args:
        name: of the contestant, for messages: 'torch'.
        module: that is run, as 'gptjax.bench.torch_generate'; it calls `answer`.
        arguments: of the command line.
        python: the interpreter.

    Raises:
        UserError: no such interpreter; or the process ended, with its last words.
    """
    package_folder = str(Path(__file__).resolve().parents[2])
    search = [package_folder, *filter(None, [os.environ.get('PYTHONPATH')])]
    with tempfile.TemporaryFile('w+') as complaints:
        try:
            process = subprocess.Popen(
                [python, '-m', module, *arguments],
                env=os.environ | {'PYTHONPATH': os.pathsep.join(search)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        except OSError as error:
            raise UserError(
                f'--against_python={python}: {error.strerror}: give the path of a '
                f'Python that has what --against={name} needs'
            ) from None

        def heard() -> dict:
            line = process.stdout.readline()
            if not line:
                process.wait()
                complaints.seek(0)
                said = [line for line in complaints if line.strip()]
                code = f'the process ended with code {process.returncode}'
                reason = said[-1].strip() if said else code
                raise UserError(f'--against={name}: {reason}')
            return json.loads(line)

        def ask(order: dict) -> dict:
            with suppress(BrokenPipeError):  # it ended: `heard` says why
                process.stdin.write(json.dumps(order) + '\n')
                process.stdin.flush()
            return heard()

        try:
            yield heard(), ask
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # the end of its orders
            try:
                process.wait(QUIT_SECONDS)
            except subprocess.TimeoutExpired:  # in the middle of its work
                process.kill()
                process.wait()
            process.stdout.close()


# ------------------------------------------------------- the process it starts


def answer(start: Callable[[], tuple[dict, dict[str, Callable]]]) -> None:
    """Says what there is, then follows orders until they end.

    Args:
        start: () -> (description, order's name -> function of its other fields);
            a `UserError` of it becomes the last words.
    """
    # What libraries print goes to standard error: the answers alone are ours.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    say = lambda value: print(json.dumps(value), file=answers, flush=True)
    try:
        description, able = start()
    except UserError as error:
        sys.exit(str(error))
    say(description)
    for line in sys.stdin:
        order = json.loads(line)
        say(able[order.pop('do')](**order))
