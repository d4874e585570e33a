"""Losses of a reward model, from its scores: pure functions of arrays.

Each takes scores and values (B, G), float32, of B groups of G conversations, and
returns the sum that is minimised and metrics, sums as well; `tokens` is what they are
divided by: pairs for `pairwise`, rows for the others.
"""

import jax
import jax.numpy as jnp


def pairwise(scores_BG, values_BG, margin: float = 0.0, centring: float = 0.0):
    """Bradley–Terry: -ln sigma(r_i - r_j - margin (v_i - v_j)) where v_i > v_j.

    With a margin, a pair that differs by more has to be further apart (Touvron et
    al. 2023, section 3.2.2). Differences say nothing of the level: `centring` times
    (r_i + r_j)^2 draws it to zero (Eisenstein et al. 2023, section 3). Pairs of equal
    value are not counted.
    """
    first, second = scores_BG[:, :, None], scores_BG[:, None, :]
    gap_BGG = values_BG[:, :, None] - values_BG[:, None, :]
    better_BGG = (gap_BGG > 0).astype(jnp.float32)
    difference_BGG = first - second
    loss_BGG = jax.nn.softplus(margin * gap_BGG - difference_BGG)
    centre_BGG = jnp.square(first + second)
    right_BGG = jnp.where(difference_BGG == 0, 0.5, difference_BGG > 0)

    def total(x_BGG):
        return jnp.sum(better_BGG * x_BGG)

    loss = total(loss_BGG)
    return loss + centring * total(centre_BGG), dict(
        loss=loss,
        accuracy=total(right_BGG),
        reward=total((first + second) / 2),
        reward_gap=total(difference_BGG),
        tokens=jnp.sum(better_BGG),
    )


def regression(scores_BG, values_BG):
    """(r - v)^2 / 2 of standardised values."""
    loss = jnp.sum(jnp.square(scores_BG - values_BG)) / 2
    return loss, dict(loss=loss, **_of_rows(scores_BG))


def binary(scores_BG, values_BG):
    """-ln sigma(r) where v = 1, -ln sigma(-r) where v = 0."""
    loss = jnp.sum(jax.nn.softplus(scores_BG) - values_BG * scores_BG)
    right_BG = jnp.where(scores_BG == 0, 0.5, (scores_BG > 0) == (values_BG > 0.5))
    return loss, dict(loss=loss, accuracy=jnp.sum(right_BG), **_of_rows(scores_BG))


def _of_rows(scores_BG):
    rows = jnp.asarray(scores_BG.size, jnp.float32)
    return dict(reward=jnp.sum(scores_BG), tokens=rows)
