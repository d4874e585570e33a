"""What a token of a reply weighs in the loss, and what the sum is divided by.

    loss = sum over the batch of weights x loss / sum over the batch of counts

`train.step.make_train_step` divides once, by the counts of all micro-batches and
devices together (its metric 'tokens'). So both are arrays with a row for each reply,
which are split as the batch is: nothing can be normalised in parts.
"""

import jax.numpy as jnp


def token_weights(mask_BT):
    """Every token of the batch weighs the same (DAPO, PPO).

    Returns:
        (weights (B, T), counts (B,)), float32; counts are the replies' tokens.
    """
    weights_BT = (jnp.asarray(mask_BT) != 0).astype(jnp.float32)
    return weights_BT, jnp.sum(weights_BT, axis=-1)


def sequence_weights(mask_BT):
    """Every reply weighs the same, its n tokens 1 / n each (GRPO, GSPO).

    Returns:
        (weights (B, T), counts (B,)), float32; counts are 1, of empty replies 0.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    weights_BT = weights_BT / jnp.maximum(lengths_B, 1.0)[:, None]
    return weights_BT, jnp.minimum(lengths_B, 1.0)


def constant_weights(mask_BT, length):
    """Every token weighs 1 / length, whatever its reply's length (Dr. GRPO).

    With length 1 the loss is the mean over replies of the sum over tokens: the
    policy gradient itself (REINFORCE, RLOO). Another length only scales it.

    Args:
        length: the same for all batches, as the most tokens that a reply may have.

    Returns:
        (weights (B, T), counts (B,)), float32; counts are 1, of empty replies 0.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    return weights_BT / length, jnp.minimum(lengths_B, 1.0)


def weights_beside(other_weights_BT, counts_B):
    """Weights of a second loss in one step, so that it becomes a mean of its own.

    The step divides everything by the sum of `counts_B`, of the replies. With these
    weights the second loss (language text in PPO-ptx, a value loss that is a mean
    over tokens beside replies that count 1) comes out divided by its own weights.
    Of the whole batch, before it is split into micro-batches.

    Args:
        other_weights_BT: of the second loss, 1 where it counts.
        counts_B: of the first.
    """
    other_weights_BT = other_weights_BT.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(other_weights_BT), 1e-9)
    return other_weights_BT * (jnp.sum(counts_B) / total)


def summed(loss_BT, metrics_BT, mask_BT, weights_BT, counts_B):
    """(loss, metrics) as a `loss_fn` of `make_train_step` returns them.

    Metrics are summed over the reply's tokens, each once, whatever the loss weighs:
    `per_token` makes means of what the step returns.

    Args:
        loss_BT: of an objective.
        metrics_BT: name to (B, T), of an objective and one's own.
        mask_BT: of the reply.
        weights_BT, counts_B: of a function above.
    """
    mask_BT = jnp.asarray(mask_BT) != 0
    metrics = {
        name: jnp.sum(jnp.where(mask_BT, value_BT, 0.0))
        for name, value_BT in metrics_BT.items()
    }
    metrics['reply_tokens'] = jnp.sum(mask_BT, dtype=jnp.float32)
    metrics['tokens'] = jnp.sum(counts_B)
    return jnp.sum(jnp.where(weights_BT != 0, weights_BT * loss_BT, 0.0)), metrics


def per_token(metrics: dict, names) -> dict:
    """The step's metrics with those of `names` as means over the replies' tokens.

    Args:
        metrics: of a step whose loss function returned `summed`.
        names: those that were summed over the mask.
    """
    tokens = metrics['reply_tokens']
    means = {name: metrics[name] / jnp.where(tokens > 0, tokens, 1.0) for name in names}
    return {**metrics, **means}
