"""The optimiser of a run: clipping, update rule, weight decay, learning rate, EMA."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.core.console import UserError
from gptjax.models.linear import INPUT_AXES
from gptjax.optim import parametrization, update_rules
from gptjax.optim.schedules import make_schedule


def make_optimizer(config, params) -> optax.GradientTransformation:
    """The transformation that `config.optim` describes.

        g <- g min(1, clip_norm / |g|)
        u <- update_rule(g) + weight_decay w     (decay only where `is_decayed`)
        w <- w - peak schedule(step) u           (peak: `peak_learning_rate`)

    With muP, updates of the rule have a factor; see parametrization.py.
    `params` may be arrays or their shapes (`ShapeDtypeStruct`).
    """
    optim = config.optim
    schedule = make_schedule(optim, config.train.num_steps)
    peaks = jax.tree_util.tree_map_with_path(
        lambda path, _: peak_learning_rate(optim, path), params
    )
    decayed = jax.tree_util.tree_map_with_path(is_decayed, params)
    _check_matrices(params)
    parametrization.check_parametrization(config)

    if optim.name not in update_rules.OPTIMIZERS:
        known = ', '.join(update_rules.OPTIMIZERS)
        raise UserError(f'optim.name={optim.name!r}: use one of {known}')
    steps = []
    if optim.clip_norm:
        steps.append(optax.clip_by_global_norm(optim.clip_norm))
    steps.append(update_rules.OPTIMIZERS[optim.name](optim, params))
    if optim.parametrization == 'mup':
        steps.append(parametrization.scale_updates(config))
    if optim.weight_decay:
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
    scale = lambda updates, _: jax.tree.map(operator.mul, peaks, updates)
    steps.append(optax.stateless(scale))
    steps.append(optax.scale_by_schedule(lambda step: -schedule(step)))
    if optim.ema:
        steps.append(track_ema(optim.ema))
    return optax.chain(*steps)


def make_learning_rate(config) -> Callable[[int], jax.Array]:
    """A function from a step to its learning rate.

    With Muon, this is the learning rate of parameters that are not matrices.
    """
    schedule = jax.jit(make_schedule(config.optim, config.train.num_steps))
    return lambda step: config.optim.learning_rate * schedule(step)


def peak_learning_rate(optim, path) -> float:
    """The peak learning rate of the parameter at a key path."""
    if optim.name == 'muon' and update_rules.is_matrix(path):
        return optim.matrix_learning_rate
    scales = {'embed': optim.embedding_scale, 'head': optim.head_scale}
    return optim.learning_rate * scales.get(path[0].key, 1.0)


def is_decayed(path, param) -> bool:
    """Whether weights decay: matrices and embeddings do, vectors do not.

    The axis L that stacks the layers does not count. A bias is a vector, although
    attention stores its biases as (N, H).
    """
    axes = param.ndim - any(key.key == 'layers' for key in path)
    return axes >= 2 and not path[-1].key.endswith('bias')


class EmaState(NamedTuple):
    count: jax.Array  # int32, number of updates so far
    average: optax.Params  # has the tree, shapes and dtypes of the parameters


def track_ema(decay: float) -> optax.GradientTransformation:
    """Returns updates unchanged and averages the parameters after each update.

        average <- d average + (1 - d) w,    d = min(decay, (1 + n) / (10 + n))

    at update n = 1, 2, …: the first averages cover few updates, so that they forget
    the initial weights. This transformation has to be the last one of a chain.
    """

    def init(params):
        # Copies: JAX cannot donate a state that contains the same buffer twice.
        return EmaState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        count = optax.safe_increment(state.count)
        rate = jnp.minimum(decay, (1 + count) / (10 + count))

        def mix(average, param, change):
            return (rate * average + (1 - rate) * (param + change)).astype(param.dtype)

        average = jax.tree.map(mix, state.average, params, updates)
        return updates, EmaState(count, average)

    return optax.GradientTransformation(init, update)


def set_schedule_step(opt_state, step):
    """The optimizer's state with the schedule at `step`.

    optax counts updates, and an update that is not finite is skipped and not counted.
    The schedule follows the steps, so a skipped update does not delay the decay.
    """
    is_schedule = lambda state: isinstance(state, optax.ScaleByScheduleState)
    set_count = lambda state: (
        state._replace(count=step) if is_schedule(state) else state
    )
    return jax.tree.map(set_count, opt_state, is_leaf=is_schedule)


def ema_params(opt_state, params):
    """The weights to evaluate: the average if there is one, else `params`."""
    for state in opt_state:
        if isinstance(state, EmaState):
            return state.average
    return params


def _check_matrices(params):
    """Refuses a matrix of the layers that INPUT_AXES does not name.

    Muon, LoRA and the count of FLOPs would leave it out.
    """
    for path, param in jax.tree_util.tree_leaves_with_path(params):
        names = {key.key for key in path}  # LoRA adds a name, 'a' or 'b'
        matrix = 'layers' in names and is_decayed(path, param)
        assert not matrix or names & INPUT_AXES.keys(), (
            f'{jax.tree_util.keystr(path)} is a matrix of the layers that is not in '
            'INPUT_AXES of gptjax/models/linear.py: add it there'
        )
