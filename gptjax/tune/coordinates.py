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

from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.optim.parametrization import scale_initial
from gptjax.parallel.mesh import make_mesh
from gptjax.train.losses import make_language_loss
from gptjax.train.state import abstract_state, create_state
from gptjax.train.step import make_train_step


def measure_changes(config, batches: Iterable[dict], num_steps: int) -> list[float]:
    """mean |x_t - x_0| of each block's output, then of the logits, after t steps.

    `batches` has one batch more than steps; x is measured on it.
    """
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
        init = lambda key: scale_initial(config, gpt.init_params(model, key))
        state = create_state(init, optimizer, abstract, jax.random.key(config.seed))
        step = make_train_step(
            make_language_loss(model, config.train), optimizer, abstract
        )
        outputs = jax.jit(lambda params, batch: gpt.block_outputs(model, params, batch))
        *training, measured = itertools.islice(batches, num_steps + 1)
        before = outputs(state.params, measured)
        for batch in training:
            state, _ = step(state, batch)
        after = outputs(state.params, measured)
        return [
            float(jnp.mean(jnp.abs(y - x))) for x, y in zip(before, after, strict=True)
        ]


def measure_slope(widths: Sequence[int], changes: Sequence[float]) -> float:
    """The exponent p of the line changes ~ width^p; about 0 with muP."""
    return float(np.polyfit(np.log(widths), np.log(changes), 1)[0])
