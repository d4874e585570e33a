"""`bench train`: tokens per second of a config's training step, on random tokens.

`--against torch` alternates with PyTorch on a GPT-2 of the same sizes
(`gptjax.bench.torch_gpt2`), which configs/bench.py describes. Unlike PyTorch's, our
attention also masks by document: one more comparison for each score.
"""

import sys
import time
from contextlib import ExitStack

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.bench.comparison import check_backend, summarize_all, time_alternately
from gptjax.bench.torch_gpt2 import torch_trainer
from gptjax.core.console import UserError
from gptjax.models import gpt, parameter_count
from gptjax.models.settings import resolve
from gptjax.optim.optimizer import make_optimizer
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.sharding import batch_sharding
from gptjax.train.config_checks import check_config
from gptjax.train.losses import make_language_loss
from gptjax.train.state import abstract_state, create_state
from gptjax.train.step import make_train_step

ROUNDS = 6
STEPS = 4
WARMUP_STEPS = 3

# The model fields of GPT-2 in `transformers`, except for the sizes.
GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', bias=True)
GPT2 |= dict(qk_norm=False, tie_embeddings=True, dtype='float32')


def run(config: ConfigDict, against: str | None = None, python: str | None = None):
    """Times a training step; implementation -> its summary of `summarize_all`.

    With against='torch', PyTorch runs in the interpreter `python` (None: this one).
    """
    if against not in (None, 'torch'):
        raise UserError(f'--against={against}: use torch')
    if against:
        check_backend(against)
    check_config(config)
    settings = resolve(config.model, config.tokenizer.vocab_size)
    if against:
        for field, value in GPT2.items():
            if settings[field] != value:
                raise UserError(
                    f'model.{field}={settings[field]!r}, and --against=torch measures '
                    f'GPT-2, which has {value!r}: use configs/bench.py'
                )
    context = config.data.context
    sizes = dict(
        layers=settings.num_layers,
        heads=settings.num_heads,
        width=settings.width,
        context=context,
        vocab_size=settings.vocab_size,
        batch_size=config.train.batch_size,
    )
    print('gptjax: compiling', flush=True)
    implementations = {'gptjax': make_trainer(config, settings)}
    with ExitStack() as stack:
        if against:
            for mode in ('eager', 'compile'):
                print(f'torch, {mode}: starting', flush=True)
                _, run_steps = stack.enter_context(
                    torch_trainer(mode, **sizes, python=python or sys.executable)
                )
                implementations[f'torch {mode}'] = run_steps
        seconds = time_alternately(implementations, ROUNDS, STEPS)
    results = summarize_all(seconds, sizes['batch_size'] * context)

    print(f'\n{parameter_count.num_params(settings):,} parameters, {sizes}')
    causal, full = parameter_count.train_flops_per_token(settings, context)
    for name, result in results.items():
        rate, best = result['tokens_per_second'], result['best_tokens_per_second']
        print(
            f'{name:14}{rate:8,.0f} tokens/s, best {best:,.0f}; '
            f'{rate * causal / 1e9:.0f} GFLOP/s causal, {rate * full / 1e9:.0f} full'
        )
    for name, result in results.items():
        if 'speedup' in result:
            ratio = result['speedup']
            print(
                f'gptjax is {ratio["ratio"]:.2f} times as fast as {name} '
                f'({ratio["low"]:.2f} to {ratio["high"]:.2f} by round)'
            )
    return results


def make_trainer(config: ConfigDict, settings):
    """`run_steps(steps)`, which trains and returns the seconds of each step."""
    mesh = make_mesh(config.mesh)
    batch = random_batch(config)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(settings)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(settings), mesh)
        init = lambda key: gpt.init_params(settings, key)
        state = create_state(init, optimizer, abstract, jax.random.key(0))
        step = make_train_step(
            make_language_loss(settings, config.train),
            optimizer,
            abstract,
            config.train.accumulation,
        )
        batch = jax.device_put(batch, batch_sharding(mesh))

    def run_steps(steps: int) -> list[float]:
        nonlocal state
        seconds = []
        with jax.set_mesh(mesh):
            for _ in range(steps):
                start = time.perf_counter()
                state, metrics = step(state, batch)
                jax.block_until_ready((state, metrics))
                seconds.append(time.perf_counter() - start)
        return seconds

    run_steps(WARMUP_STEPS)
    return run_steps


def random_batch(config: ConfigDict, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random tokens, a document in each row."""
    shape = (config.train.batch_size, config.data.context)
    tokens = np.random.default_rng(seed).integers(
        0, config.tokenizer.vocab_size, (shape[0], shape[1] + 1)
    )
    tokens = tokens.astype(np.int32)
    return dict(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        segments=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        weights=np.ones(shape, np.float32),
    )
