"""The training step: gradient accumulation, the optimizer, and skipped bad steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gptjax.optim.optimizer import set_schedule_step
from gptjax.train.state import TrainState


def make_train_step(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    accumulation: int = 1,
    seed: int = 0,
):
    """A jitted `step(state, batch, *frozen) -> (state, metrics)`; donates the state.

    If the loss or the gradient is not finite, or no token of the batch has weight,
    parameters and optimizer state stay, and only the step number and the learning
    rate's schedule advance.

    Args:
        loss_fn: `(params, batch, key, *frozen) -> (loss, metrics)`. Both are sums over
            the batch, and `metrics['tokens']` is the sum of the tokens' weights, so
            that micro-batches can be added. `frozen` are arrays that are not trained,
            such as the base weights under LoRA.
        state: shapes with shardings, from `abstract_state`.
        accumulation: the number of micro-batches.
        seed: of dropout; the key of a micro-batch follows from (seed, step, number).

    Returns:
        The step. Its metrics are float32 scalars: those of `loss_fn` divided by
        `tokens`, `tokens`, `grad_norm` (before clipping), and `good`, which is 1.0 if
        loss and gradient are finite.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def constrain(gradients):
        # Without this, the compiler may replicate gradients on every device.
        return jax.lax.with_sharding_constraint(gradients, shardings.params)

    def gradients_of(params, batch, key, frozen):
        (loss, metrics), gradients = differentiate(params, batch, key, *frozen)
        return (loss, metrics), constrain(gradients)

    def accumulated(params, batch, key, frozen):
        if accumulation == 1:
            return gradients_of(params, batch, key, frozen)
        parts = jax.tree.map(lambda x: _microbatches(x, accumulation), batch)
        shapes = jax.eval_shape(
            gradients_of, params, jax.tree.map(lambda x: x[0], parts), key, frozen
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total, part):
            number, batch = part
            new = gradients_of(params, batch, jax.random.fold_in(key, number), frozen)
            total = jax.tree.map(jnp.add, total, new)
            return (total[0], constrain(total[1])), None

        numbers = jnp.arange(accumulation)
        return jax.lax.scan(add, zeros, (numbers, parts))[0]

    def step(state: TrainState, batch, *frozen):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradients = accumulated(state.params, batch, key, frozen)
        weight = metrics.pop('tokens')
        tokens = jnp.maximum(weight, 1.0)
        gradients = jax.tree.map(lambda g: g / tokens, gradients)
        grad_norm = optax.tree.norm(gradients)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update(state):
            updates, opt_state = optimizer.update(
                gradients, set_schedule_step(state.opt_state, state.step), state.params
            )
            return optax.apply_updates(state.params, updates), opt_state

        def keep(state):
            return state.params, set_schedule_step(state.opt_state, state.step + 1)

        params, opt_state = jax.lax.cond(good & (weight > 0), update, keep, state)
        metrics = {name: value / tokens for name, value in metrics.items()}
        metrics.update(
            tokens=tokens, grad_norm=grad_norm, good=good.astype(jnp.float32)
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _microbatches(x, count):
    """(B, ...) → (count, B / count, ...): micro-batch i has rows i, i + count, ...

    Neighbouring rows are on one device. With a stride, each micro-batch has rows of
    every device, and no row moves to another device.
    """
    split = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    return jnp.moveaxis(split, 1, 0)
