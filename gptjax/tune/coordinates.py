"""The coordinate check of muP (Yang et al. 2022, appendix D.1).

Training moves the activations of a block by an amount that should not depend on the
width. With the standard parametrisation it grows with the width, so that the learning
rate has to fall.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models import gpt
from gptjax.train.short_run import make_short_run


def measure_changes(config, batches: Iterable[dict], num_steps: int) -> list[float]:
    """mean |x_t - x_0| of each block's output, then of the logits, after t steps.

    `batches` has one batch more than steps; x is measured on it.
    """
    run = make_short_run(config)
    outputs = jax.jit(lambda params, batch: gpt.block_outputs(run.model, params, batch))
    *training, measured = itertools.islice(batches, num_steps + 1)
    with jax.set_mesh(run.mesh):
        state = run.init(config.seed)
        before = outputs(state.params, measured)
        for batch in training:
            state, _ = run.step(state, batch)
        after = outputs(state.params, measured)
    pairs = zip(before, after, strict=True)
    return [float(jnp.mean(jnp.abs(y - x))) for x, y in pairs]


def measure_slope(widths: Sequence[int], changes: Sequence[float]) -> float:
    """The exponent p of the line changes ~ width^p; about 0 with muP."""
    return float(np.polyfit(np.log(widths), np.log(changes), 1)[0])
