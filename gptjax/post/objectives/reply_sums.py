"""Which places of a row are the reply, told by lengths and never by token ids."""

import jax.numpy as jnp


def reply_mask(prompt_lengths_B, reply_lengths_B, num_targets: int):
    """Which targets belong to the reply: bool (B, T).

    A prompt `B a b` and a reply `c END` are the row `B a b c END PAD`:

        inputs   B a b c   END
        targets  a b c END PAD
        mask     0 0 1 1   0

    The token that ends a reply is part of it: without it nothing teaches the model
    to stop. Padding is known by its place, so it may share an id with END.

    Args:
        prompt_lengths_B: int, tokens of the prompt, at least 1 (BOS).
        reply_lengths_B: int, tokens drawn, the one that ends the reply included. A
            truncated reply has none and is simply as long as it is; 0 masks a row.
        num_targets: T.
    """
    place_T = jnp.arange(num_targets)
    first_B1 = jnp.asarray(prompt_lengths_B)[:, None] - 1
    end_B1 = first_B1 + jnp.asarray(reply_lengths_B)[:, None]
    return (place_T >= first_B1) & (place_T < end_B1)


def reply_lengths(mask_BT):
    """Tokens of each reply, int32 (B,)."""
    return jnp.sum(jnp.asarray(mask_BT) != 0, axis=-1, dtype=jnp.int32)


def last_places(mask_BT):
    """Where each reply ends: bool (B, T), one place a row, none in an empty reply."""
    mask_BT = jnp.asarray(mask_BT) != 0
    later_BT = jnp.cumsum(mask_BT[:, ::-1], axis=-1)[:, ::-1]
    return mask_BT & (later_BT == 1)


def ended(targets_BT, mask_BT, stop_tokens):
    """Whether each reply ends in a stop token, bool (B,); if not, it was truncated.

    Args:
        targets_BT: int32.
        mask_BT: of the reply.
        stop_tokens: ids, as `request.Parameters.stop_tokens` and EOS.
    """
    stops_BT = jnp.isin(jnp.asarray(targets_BT), jnp.asarray(stop_tokens))
    return jnp.any(stops_BT & last_places(mask_BT), axis=-1)


def reply_sums(x_BT, mask_BT):
    """The sum over each reply, float32 (B,): of log-probabilities, ln P(reply)."""
    return jnp.sum(jnp.where(mask_BT, x_BT, 0), axis=-1, dtype=jnp.float32)


def reply_means(x_BT, mask_BT):
    """The mean over each reply, float32 (B,); 0 of an empty one."""
    return reply_sums(x_BT, mask_BT) / jnp.maximum(reply_lengths(mask_BT), 1)
