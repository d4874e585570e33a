"""`bench many`: small models trained side by side by `vmap`, or one after another.

K runs differ in seed (initial weights, batches) and learning rate. `make_many` trains
them in one program, whose operations are K times as large, and has their losses to
float32 rounding. It is a step, and no loop: it has no validations, checkpoints or
metrics, and all runs drop out the same units. `tune` and --seeds train by `fit`, one
run at a time in each process.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from gptjax.bench.bench_train import random_batch
from gptjax.bench.comparison import summarize_all, time_alternately
from gptjax.parallel.mesh import make_mesh
from gptjax.train.config_checks import check_config
from gptjax.train.short_run import make_short_run

MEMBERS, WIDTHS, HEAD_DIM = 8, (16, 32, 64, 128), 16
STEPS, ROUNDS, COMPARED_STEPS = 4, 3, 10


class RatioState(NamedTuple):
    ratio: jax.Array  # float32: the learning rate of a run divided by the config's


def with_own_rate(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The optimizer with a factor of its updates in the state; it begins as 1.

    Learning rate and weight decay are proportional to it. `vmap` maps over the state.
    """

    def scale(updates, state, params=None):
        del params
        return jax.tree.map(lambda update: state.ratio * update, updates), state

    one = lambda params: RatioState(jnp.ones((), jnp.float32))
    return optax.chain(optimizer, optax.GradientTransformation(one, scale))


def set_ratio(state, ratio: float):
    """The training state with another learning rate."""
    is_ratio = lambda part: isinstance(part, RatioState)
    replace = lambda part: RatioState(jnp.float32(ratio)) if is_ratio(part) else part
    return jax.tree.map(replace, state, is_leaf=is_ratio)


def make_many(config: ConfigDict) -> tuple[Callable, Callable]:
    """(init, step) of K runs in one program.

    init: (seeds, ratios of the learning rates) -> a state with a leading axis K.
    step: (state, batch (K, B, T)) -> (state, metrics of shape (K,)).

    Use them inside `jax.set_mesh`.
    """
    one = make_short_run(config, with_own_rate)

    def init(seeds: Sequence[int], ratios: Sequence[float]):
        states = [
            set_ratio(one.init(seed), ratio)
            for seed, ratio in zip(seeds, ratios, strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    return init, jax.jit(jax.vmap(one.step), donate_argnums=0)


def run(config: ConfigDict) -> list[dict]:
    """Prints, for each width, how many times as fast K runs are side by side."""
    check_config(config)
    rows = []
    print(
        f'{MEMBERS} runs of {config.model.num_layers} layers, '
        f'{config.train.batch_size} x {config.data.context} tokens a step each'
    )
    for width in WIDTHS:
        sizes = dict(width=width, head_dim=HEAD_DIM, num_kv_heads=0, mlp_width=0)
        one = config.copy_and_resolve_references()
        one.model.update(dict(sizes, num_heads=max(1, width // HEAD_DIM)))
        with jax.set_mesh(make_mesh(one.mesh)):
            rows.append(dict(width=width, **measure(one)))
        row = rows[-1]
        ratio = row['speedup']
        print(
            f'width {width:4}: side by side {ratio["ratio"]:.2f} times as fast '
            f'({ratio["low"]:.2f} to {ratio["high"]:.2f} by round); largest relative '
            f'difference of a loss in {COMPARED_STEPS} steps {row["difference"]:.1e}'
        )
    return rows


def measure(config: ConfigDict) -> dict:
    """The speedup, and how far the losses differ from those of single runs."""
    seeds = range(MEMBERS)
    ratios = [2.0 ** (member / 2 - 2) for member in seeds]  # 1/4 … 2.8
    batches = [random_batch(config, seed) for seed in seeds]
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    init, step = make_many(config)
    states = {'many': init(seeds, ratios)}
    one = make_short_run(config, with_own_rate)
    for seed, ratio in zip(seeds, ratios, strict=True):
        states[seed] = set_ratio(one.init(seed), ratio)
    losses = {name: [] for name in states}

    def run_many(steps):
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            states['many'], metrics = step(states['many'], together)
            losses['many'].append(np.asarray(metrics['loss']))
            seconds.append(time.perf_counter() - start)
        return seconds

    def run_singly(steps):
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            for seed in seeds:
                states[seed], metrics = one.step(states[seed], batches[seed])
                losses[seed].append(float(metrics['loss']))
            seconds.append(time.perf_counter() - start)
        return seconds

    runs = {'side by side': run_many, 'one after another': run_singly}
    for warm_up in runs.values():
        warm_up(2)
    seconds = time_alternately(runs, ROUNDS, STEPS)
    tokens = MEMBERS * config.train.batch_size * config.data.context
    results = summarize_all(seconds, tokens)
    many = np.array(losses['many'])[:COMPARED_STEPS]
    singly = np.array([losses[seed] for seed in seeds]).T[:COMPARED_STEPS]
    return dict(
        speedup=results['one after another']['speedup'],
        tokens_per_second=results['side by side']['tokens_per_second'],
        difference=float(np.max(np.abs(many / singly - 1))),
    )
