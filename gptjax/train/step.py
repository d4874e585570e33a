"""One update: gradients over micro-batches, the optimizer, and a guard."""

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

    An update whose loss or gradient is not finite is not applied: the
    parameters and the optimizer's state stay, and only the step counts on, which
    the learning rate's schedule follows.

    Args:
        loss_fn: `(params, batch, key, *frozen) -> (loss, metrics)`. Both are sums
            over the batch's tokens, and `metrics['tokens']` is the sum of their
            weights: micro-batches can then be added up. `frozen` is what is not
            trained, as the weights under LoRA.
        state: shapes with shardings, from `abstract_state`.
        accumulation: micro-batches whose gradients are added before the update.
        seed: of dropout; its keys come from (seed, step, micro-batch).

    Returns:
        The step. Its metrics are float32 scalars: those of `loss_fn` divided by the
        tokens, `tokens`, `grad_norm` (before clipping) and `good`, 1.0 where the
        update was applied.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def constrain(gradients):
        # Unsaid, the compiler may leave whole gradients on every device.
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
        tokens = jnp.maximum(metrics.pop('tokens'), 1.0)
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

        params, opt_state = jax.lax.cond(good, update, keep, state)
        metrics = {name: value / tokens for name, value in metrics.items()}
        metrics.update(
            tokens=tokens, grad_norm=grad_norm, good=good.astype(jnp.float32)
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _microbatches(x, count):
    """(B, ...) to (count, B / count, ...): part i has rows i, i + count, ...

    Neighbouring rows lie on one device; taken with a stride every part has
    rows of every device, and nothing moves between them.
    """
    split = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    return jnp.moveaxis(split, 1, 0)
