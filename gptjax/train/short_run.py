"""A new model and its training step, for measurements of a few steps.

There are no checkpoints, validations or metrics: `fit` in loop.py trains what is kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.optim.parametrization import scale_initial
from gptjax.parallel.mesh import make_mesh
from gptjax.train.losses import make_language_loss
from gptjax.train.state import TrainState, abstract_state, create_state
from gptjax.train.step import make_train_step


class ShortRun(NamedTuple):
    """A model and how it is trained; use it inside `jax.set_mesh(mesh)`.

    init: from a seed to the state that `pretrain` begins with.
    step: of `make_train_step`.
    """

    model: FrozenConfigDict
    mesh: Mesh
    init: Callable[[int], TrainState]
    step: Callable


def make_short_run(
    config: ConfigDict,
    wrap: Callable[
        [optax.GradientTransformation], optax.GradientTransformation
    ] = lambda optimizer: optimizer,
) -> ShortRun:
    """The model and the step of a config; `wrap` may add to the optimizer."""
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(model)
        optimizer = wrap(make_optimizer(config, shapes))
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
    step = make_train_step(
        make_language_loss(model, config.train),
        optimizer,
        abstract,
        config.train.accumulation,
        config.seed,
    )
    init = lambda key: scale_initial(config, gpt.init_params(model, key))

    begin = lambda seed: create_state(init, optimizer, abstract, jax.random.key(seed))
    return ShortRun(model, mesh, begin, step)
