"""`bench train`: tokens per second of a config's training step.

With `--against torch` PyTorch takes turns in the same run, on the GPT-2 of the same
sizes (see `gptjax.bench.torch_gpt2`): configs/bench.py is made for that. Tokens are
random; ours also masks by document, which costs it a comparison a score.
"""

import sys
import time
from contextlib import ExitStack

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.bench.contestant import check_backend
from gptjax.bench.timing import interleave, speedup, summarize
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


# What `transformers`' GPT-2 is, beside its sizes.
GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', bias=True)
GPT2 |= dict(qk_norm=False, tie_embeddings=True, dtype='float32')


def run(config: ConfigDict, against: str | None = None, python: str | None = None):
    """Measures a step, with torch taking turns in the same run if asked for.

    Args:
        config: an experiment; the vocabulary is `tokenizer.vocab_size`.
        against: 'torch', or None for ours alone.
        python: the interpreter that has torch; by default this one.

    Returns:
        name -> its summary, with `speedup` (ours over it) where it is torch's.

    Raises:
        UserError: the config cannot train; what to compare with is unknown, not
            installed, or another model than the config's; or this is no CPU, which
            is where torch computes.
    """
    if against not in (None, 'torch'):
        raise UserError(f'--against={against}: use torch')
    if against:
        check_backend(against)
    check_config(config)
    settings = resolve(config.model, config.tokenizer.vocab_size)
    if against:
        _check_gpt2(settings)
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
    contestants = {'gptjax': trainer(config, settings)}
    with ExitStack() as stack:
        if against:
            for mode in ('eager', 'compile'):
                print(f'torch, {mode}: starting', flush=True)
                _, go = stack.enter_context(
                    torch_trainer(mode, **sizes, python=python or sys.executable)
                )
                contestants[f'torch {mode}'] = go
        seconds = interleave(contestants, ROUNDS, STEPS)
    results = {
        name: summarize(
            [s for turn in turns for s in turn], sizes['batch_size'] * context
        )
        for name, turns in seconds.items()
    }
    for name in results.keys() - {'gptjax'}:
        results[name]['speedup'] = speedup(seconds['gptjax'], seconds[name])

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


def _check_gpt2(settings):
    for field, value in GPT2.items():
        if settings[field] != value:
            raise UserError(
                f'--against=torch measures GPT-2, and model.{field} is '
                f'{settings[field]!r}, not {value!r}: use configs/bench.py'
            )


def trainer(config: ConfigDict, settings):
    """`go(steps)`: trains so many steps and returns the seconds of each."""
    mesh = make_mesh(config.mesh)
    batch_size, context = config.train.batch_size, config.data.context
    rng = np.random.default_rng(0)
    shape = (batch_size, context)
    stream = rng.integers(0, settings.vocab_size, (batch_size, context + 1)).astype(
        np.int32
    )
    batch = dict(
        inputs=stream[:, :-1],
        targets=stream[:, 1:],
        segments=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(context, dtype=np.int32), shape),
        weights=np.ones(shape, np.float32),
    )
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

    def go(steps: int) -> list[float]:
        nonlocal state
        seconds = []
        with jax.set_mesh(mesh):
            for _ in range(steps):
                began = time.perf_counter()
                state, metrics = step(state, batch)
                jax.block_until_ready((state, metrics))
                seconds.append(time.perf_counter() - began)
        return seconds

    go(WARMUP_STEPS)
    return go
