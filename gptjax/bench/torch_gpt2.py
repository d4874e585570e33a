"""The process of `bench train --against torch`: GPT-2 in PyTorch.

The model is `GPT2LMHeadModel` of `transformers` with random weights, float32, no
dropout and its default attention (scaled_dot_product_attention). A step is forward,
loss, backward and AdamW.

    python -m gptjax.bench.torch_gpt2 --mode compile --steps 10

prints one line of JSON. With `--serve` it answers the commands of `torch_trainer`.
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
    available_cores,
    library_process,
    serve_commands,
    summarize,
)
from gptjax.core.console import UserError

WARMUP_STEPS = 3  # the first step compiles, the others fill caches and allocators


# ---- the caller ---------------------------------------------------------------


@contextmanager
def torch_trainer(
    mode: str, python: str = sys.executable, **sizes: int
) -> Iterator[tuple[dict, Callable[[int], list[float]]]]:
    """Yields the process's description and `run_steps(steps)`: seconds of each step.

    `mode` is 'eager' or 'compile', `sizes` the flags of `parse_flags` for the model.
    """
    arguments = [f'--{name}={number}' for name, number in sizes.items()]
    arguments = ['--serve', f'--mode={mode}', *arguments]
    module = 'gptjax.bench.torch_gpt2'
    with library_process('torch', module, arguments, python) as (description, call):
        run_steps = lambda steps: call(dict(do='train', steps=steps))['step_seconds']
        yield description, run_steps


# ---- the process --------------------------------------------------------------


def main() -> None:
    flags = parse_flags()
    if flags.serve:
        serve_commands(lambda: start(flags))
        return
    try:
        description, commands = start(flags)
    except UserError as error:
        sys.exit(str(error))
    answer = commands['train'](flags.steps)
    speed = summarize(answer['step_seconds'], flags.batch_size * flags.context)
    print(json.dumps(description | speed | {'loss': answer['loss']}))


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
    parser.add_argument('--serve', action='store_true', help='answer commands')
    return parser.parse_args()


def start(flags: argparse.Namespace) -> tuple[dict, dict[str, Callable]]:
    """Builds the model and warms it up; (description, commands)."""
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
            use_cache=False,  # only decoding needs it
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation='sdpa',
        )
    ).train()
    # On a CPU the default is a loop over the parameters, which is slower.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if flags.mode == 'compile' else model
    shape = (flags.batch_size, flags.context)
    tokens_BT = torch.randint(flags.vocab_size, shape)

    def step() -> float:
        # The model shifts the labels by one.
        loss = forward(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def train(steps: int) -> dict:
        step_seconds = []
        for _ in range(steps):
            start_time = time.perf_counter()
            loss = step()
            step_seconds.append(time.perf_counter() - start_time)
        return dict(step_seconds=step_seconds, loss=loss)

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
    return description, dict(train=train)


def import_torch(mode: str) -> tuple:
    """(torch, transformers), set to use all cores."""
    os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is downloaded
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
