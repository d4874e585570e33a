"""Sums over the tokens of replies, and the weight of each token in the loss.

`mask_BT` is not 0 where a target belongs to the reply of its row. The batch's loss is

    sum of weights x token losses / sum of counts

`train.step.make_train_step` divides once, by the counts of all micro-batches and
devices together (the metric 'tokens'). Weights and counts have one row per reply and
are split like the batch; no part of the batch is normalised alone.

A row without reply tokens has the count 0, with every normaliser: the loss of a batch
that is partly filled is the mean over the rows that are there, as strong as that of a
full batch, only noisier. A reply whose advantage is 0 does count, and weakens the term
of the advantages.

    rows of one token, losses of the advantages    1 3      1 3 0 0     1 3 - -
    weight of the rows                             1 1      1 1 1 1     1 1 0 0
    loss                                           4 / 2    4 / 4       4 / 2
"""

import jax.numpy as jnp


def reply_lengths(mask_BT):
    """Number of tokens in each reply, int32 (B,)."""
    return jnp.sum(jnp.asarray(mask_BT) != 0, axis=-1, dtype=jnp.int32)


def last_token_mask(mask_BT):
    """The last token of each reply: bool (B, T).

    0 1 1 0  ->  0 0 1 0        an empty reply has none
    """
    mask_BT = jnp.asarray(mask_BT) != 0
    later_BT = jnp.cumsum(mask_BT[:, ::-1], axis=-1)[:, ::-1]
    return mask_BT & (later_BT == 1)


def reply_sums(x_BT, mask_BT):
    """The sum over each reply, float32 (B,): ln P(reply) of log-probabilities."""
    return jnp.sum(jnp.where(mask_BT, x_BT, 0), axis=-1, dtype=jnp.float32)


def reply_means(x_BT, mask_BT):
    """The mean over each reply, float32 (B,); 0 for an empty reply."""
    return reply_sums(x_BT, mask_BT) / jnp.maximum(reply_lengths(mask_BT), 1)


# ---- (weights (B, T), counts (B,)), both float32


def token_weights(mask_BT):
    """Every token of the batch has weight 1 (DAPO, PPO); counts are lengths."""
    weights_BT = (jnp.asarray(mask_BT) != 0).astype(jnp.float32)
    return weights_BT, jnp.sum(weights_BT, axis=-1)


def sequence_weights(mask_BT):
    """Each token of a reply of n tokens has weight 1 / n (GRPO, GSPO).

    Counts are 1, or 0 for empty replies.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    weights_BT = weights_BT / jnp.maximum(lengths_B, 1.0)[:, None]
    return weights_BT, jnp.minimum(lengths_B, 1.0)


def constant_weights(mask_BT, length):
    """Every token has weight 1 / length, with one length for all batches (Dr. GRPO).

    With length 1 the loss is the mean over replies of the sum over tokens: the policy
    gradient itself (REINFORCE, RLOO). Other lengths only scale it, for example the
    maximum number of tokens of a reply. Counts are 1, or 0 for empty replies.
    """
    weights_BT, lengths_B = token_weights(mask_BT)
    return weights_BT / length, jnp.minimum(lengths_B, 1.0)


def second_loss_weights(other_mask_BT, counts_B):
    """Weights that make a second loss in the same step the mean over its own tokens.

    The step divides everything by the sum of `counts_B`, the counts of the replies. For
    the language loss of PPO-ptx these weights contain the factor that undoes this. Give
    a whole batch, before it is split into micro-batches.

    Args:
        other_mask_BT: the tokens of the second loss.
    """
    other_mask_BT = other_mask_BT.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(other_mask_BT), 1e-9)
    return other_mask_BT * (jnp.sum(counts_B) / total)


def sum_losses(loss_BT, metrics_BT, mask_BT, weights_BT, counts_B):
    """(loss, metrics) summed over the batch, as `make_train_step` needs them.

    Metrics are sums over all reply tokens without weights; `metrics_per_token` turns
    the metrics that the step returns into means.

    Args:
        metrics_BT: {name: (B, T)}.
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
    """The metrics of a step, where those in `names` become means over reply tokens."""
    tokens = metrics['reply_tokens']
    means = {name: metrics[name] / jnp.where(tokens > 0, tokens, 1.0) for name in names}
    return {**metrics, **means}
