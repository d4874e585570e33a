"""The tokens of replies: sums over them, and what each weighs in the loss.

`mask_BT` is not 0 where a target belongs to the row's reply. With it

    loss = sum over the batch of weights x loss / sum over the batch of counts

`train.step.make_train_step` divides once, by the counts of all micro-batches and
devices together (its metric 'tokens'). So weights and counts have a row for each reply
and are split as the batch is: nothing is normalised within a part of the batch.
"""

import jax.numpy as jnp


def reply_lengths(mask_BT):
    """Tokens of each reply, int32 (B,)."""
    return jnp.sum(jnp.asarray(mask_BT) != 0, axis=-1, dtype=jnp.int32)


def last_token_mask(mask_BT):
    """Where each reply ends: bool (B, T), one place a row, none in an empty reply."""
    mask_BT = jnp.asarray(mask_BT) != 0
    later_BT = jnp.cumsum(mask_BT[:, ::-1], axis=-1)[:, ::-1]
    return mask_BT & (later_BT == 1)


def reply_sums(x_BT, mask_BT):
    """The sum over each reply, float32 (B,): of log-probabilities, ln P(reply)."""
    return jnp.sum(jnp.where(mask_BT, x_BT, 0), axis=-1, dtype=jnp.float32)


def reply_means(x_BT, mask_BT):
    """The mean over each reply, float32 (B,); 0 of an empty one."""
    return reply_sums(x_BT, mask_BT) / jnp.maximum(reply_lengths(mask_BT), 1)


# ---- weights (B, T) and counts (B,), float32


def token_weights(mask_BT):
    """Every token of the batch weighs the same (DAPO, PPO); counts are lengths."""
    weights_BT = (jnp.asarray(mask_BT) != 0).astype(jnp.float32)
    return weights_BT, jnp.sum(weights_BT, axis=-1)


def sequence_weights(mask_BT):
    """Every reply weighs the same, its n tokens 1 / n each (GRPO, GSPO).

    Counts are 1, of empty replies 0.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    weights_BT = weights_BT / jnp.maximum(lengths_B, 1.0)[:, None]
    return weights_BT, jnp.minimum(lengths_B, 1.0)


def constant_weights(mask_BT, length):
    """Every token weighs 1 / length, whatever its reply's length (Dr. GRPO).

    With length 1 the loss is the mean over replies of the sum over tokens: the
    policy gradient itself (REINFORCE, RLOO). Another length only scales it. Counts
    are 1, of empty replies 0.

    Args:
        length: the same for all batches, as the most tokens that a reply may have.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    return weights_BT / length, jnp.minimum(lengths_B, 1.0)


def second_loss_weights(other_mask_BT, counts_B):
    """Weights with which a second loss in the same step becomes a mean of its own.

    The step divides everything by the sum of `counts_B`, of the replies. With these
    weights the second loss (the language loss of PPO-ptx) comes out divided by its own
    tokens. Computed of a whole batch, before it is split into micro-batches.

    Args:
        other_mask_BT: of the second loss, 1 where it counts.
        counts_B: of the first.
    """
    other_mask_BT = other_mask_BT.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(other_mask_BT), 1e-9)
    return other_mask_BT * (jnp.sum(counts_B) / total)


def sum_losses(loss_BT, metrics_BT, mask_BT, weights_BT, counts_B):
    """(loss, metrics) as a `loss_fn` of `make_train_step` returns them.

    Metrics are summed over the replies' tokens, whatever the loss weighs; of what the
    step returns `metrics_per_token` makes means.

    Args:
        loss_BT: of an objective.
        metrics_BT: from names to (B, T).
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


def metrics_per_token(metrics: dict, names) -> dict:
    """The step's metrics, those of `names` as means over the replies' tokens."""
    tokens = metrics['reply_tokens']
    means = {name: metrics[name] / jnp.where(tokens > 0, tokens, 1.0) for name in names}
    return {**metrics, **means}
