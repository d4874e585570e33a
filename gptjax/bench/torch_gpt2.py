"""The process of `bench train --against torch`: GPT-2 in PyTorch.

The model is `GPT2LMHeadModel` of Hugging Face `transformers` with random weights,
float32, no dropout and its default attention (scaled_dot_product_attention); a
step is forward, loss, backward, AdamW.

    python -m gptjax.bench.torch_gpt2 --mode compile --steps 10

prints one JSON line. With `--serve` it answers orders instead
(`gptjax.bench.comparison`), so that a caller can alternate with its own steps;
`torch_trainer` is that caller.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptjax.bench.comparison import (
    answer_orders,
    available_cores,
    library_process,
    summarize,
)
from gptjax.core.console import UserError

WARMUP_STEPS = 3  # the first compiles; the others fill caches and allocators


# ---- the caller ---------------------------------------------------------------


@contextmanager
def torch_trainer(
    mode: str,
    *,
    layers: int,
    heads: int,
    width: int,
    context: int,
    vocab_size: int,
    batch_size: int,
    python: str = sys.executable,
) -> Iterator[tuple[dict, Callable[[int], list[float]]]]:
    """Yields the description of the other process, and `run_steps(steps)`.

    `run_steps` waits for so many steps and returns the seconds of each.

    Args:
        mode: 'eager' or 'compile'.
        layers, heads, width, context, vocab_size, batch_size: the model and batch.
        python: the interpreter that has torch and transformers.

    Raises:
        UserError: no such interpreter, or it lacks what is needed.
    """
    sizes = dict(layers=layers, heads=heads, width=width, context=context)
    sizes |= dict(vocab_size=vocab_size, batch_size=batch_size)
    arguments = [f'--mode={mode}', *(f'--{name}={n}' for name, n in sizes.items())]
    module = 'gptjax.bench.torch_gpt2'
    arguments = ['--serve', *arguments]
    with library_process('torch', module, arguments, python) as (description, ask):
        run_steps = lambda steps: ask(dict(do='train', steps=steps))['step_seconds']
        yield description, run_steps


# ---- the process --------------------------------------------------------------


def main() -> None:
    flags = parse_flags()
    if flags.serve:
        answer_orders(lambda: start(flags))
        return
    try:
        description, train = build(flags)
    except UserError as error:
        sys.exit(str(error))
    step_seconds, loss = train(flags.steps)
    tokens = flags.batch_size * flags.context
    result = description | summarize(step_seconds, tokens) | {'loss': loss}
    print(json.dumps(result))


def start(flags: argparse.Namespace) -> tuple[dict, dict[str, Callable]]:
    """The description and the order `train`, for `answer_orders`."""
    description, train = build(flags)

    def answer_train(steps: int) -> dict:
        step_seconds, loss = train(steps)
        return dict(step_seconds=step_seconds, loss=loss)

    return description, dict(train=answer_train)


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a random GPT-2 in PyTorch and print its speed as JSON.'
    )
    parser.add_argument('--mode', choices=('eager', 'compile'), default='compile')
    parser.add_argument('--layers', type=int, default=6)
    parser.add_argument('--heads', type=int, default=6)
    parser.add_argument('--width', type=int, default=384)
    parser.add_argument('--context', type=int, default=256, help='tokens in a row')
    parser.add_argument('--vocab_size', type=int, default=8192)
    parser.add_argument('--batch_size', type=int, default=8, help='rows in a step')
    parser.add_argument('--steps', type=int, default=10, help='timed, after warm-up')
    parser.add_argument('--serve', action='store_true', help='wait for orders')
    return parser.parse_args()


def build(flags: argparse.Namespace) -> tuple[dict, Callable]:
    """Builds the model and warms it up.

    Returns:
        A description, and `train(steps)`, which returns the seconds of each step
        and the last loss.
    """
    torch, transformers = import_torch(flags.mode)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=flags.layers,
            n_head=flags.heads,
            n_embd=flags.width,
            n_positions=flags.context,
            vocab_size=flags.vocab_size,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,  # of keys and values: of use in decoding only
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation='sdpa',
        )
    ).train()
    # On CPU torch's own default is a loop over the parameters; fused is faster.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if flags.mode == 'compile' else model
    shape = (flags.batch_size, flags.context)
    tokens_BT = torch.randint(flags.vocab_size, shape)

    def step() -> float:
        # the model itself shifts the labels by one
        loss = forward(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def train(steps: int) -> tuple[list[float], float]:
        step_seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = step()
            step_seconds.append(time.perf_counter() - start)
        return step_seconds, loss

    first_loss = step()  # compiles
    train(WARMUP_STEPS - 1)
    description = {
        'mode': flags.mode,
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'threads': torch.get_num_threads(),
        'parameters': sum(p.numel() for p in model.parameters()),
        'first_loss': first_loss,
    }
    return description, train


def import_torch(mode: str) -> tuple:
    """(torch, transformers), with every core to compute on.

    Raises:
        UserError: torch, transformers or, to compile, a C++ compiler is missing.
    """
    os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no weights are downloaded
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f'{sys.executable} has no {error.name}: run its pip install torch '
            'transformers, or give another Python by --against_python'
        ) from None
    compiler = shlex.split(os.environ.get('CXX', ''))
    compiler = compiler or ['clang++' if sys.platform == 'darwin' else 'g++']
    if mode == 'compile' and not shutil.which(compiler[0]):
        raise UserError(
            'torch.compile needs a C++ compiler: install g++ (on a Mac '
            'clang++), or name one in the environment variable CXX'
        )
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(available_cores())
    return torch, transformers


if __name__ == '__main__':
    main()
