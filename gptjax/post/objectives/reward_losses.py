"""Losses of a reward model as functions of its scores.

Each takes float32 scores and values (B, G) of B groups of G conversations, and returns
(loss, metrics), all sums. The training step divides them by the metric `tokens`: the
number of pairs for `pairwise` (of groups with `by_group`), else of conversations.
"""

import jax
import jax.numpy as jnp


def pairwise(
    scores_BG,
    values_BG,
    margin: float = 0.0,
    centring: float = 0.0,
    margins_BG=None,
    by_group: bool = False,
):
    """Bradley–Terry over the pairs (i, j) of a group with v_i > v_j:

        -ln sigmoid(r_i - r_j - margin (v_i - v_j) - m_i + m_j) + centring (r_i + r_j)^2

    With a margin, the rewards must differ more where the values do (Touvron et al.
    2023, section 3.2.2); `margins_BG` are the m of single conversations. Differences do
    not fix the mean reward; centring moves it to zero (Eisenstein et al. 2023, section
    3) and is not part of the metric `loss`.

    With `by_group`, each group counts once, as the mean over its pairs: of K different
    replies each pair has the weight 1 / C(K, 2) (Ouyang et al. 2022, eq. 1). Where a
    group has fewer than G conversations, values are NaN.
    """
    first, second = scores_BG[:, :, None], scores_BG[:, None, :]
    gap_BGG = values_BG[:, :, None] - values_BG[:, None, :]
    better_BGG = (gap_BGG > 0).astype(jnp.float32)
    gap_BGG = margin * jnp.where(gap_BGG > 0, gap_BGG, 0.0)  # no NaN, also as gradient
    if margins_BG is not None:
        gap_BGG += margins_BG[:, :, None] - margins_BG[:, None, :]
    if by_group:
        pairs_B11 = jnp.sum(better_BGG, axis=(1, 2), keepdims=True)
        better_BGG /= jnp.maximum(pairs_B11, 1.0)
    difference_BGG = first - second
    loss_BGG = jax.nn.softplus(gap_BGG - difference_BGG)
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
    """(r - v)^2 / 2, for standardised values v."""
    loss = jnp.sum(jnp.square(scores_BG - values_BG)) / 2
    return loss, dict(loss=loss, **_row_metrics(scores_BG))


def binary(scores_BG, values_BG):
    """-ln sigmoid(r) where v = 1, -ln sigmoid(-r) where v = 0."""
    loss = jnp.sum(jax.nn.softplus(scores_BG) - values_BG * scores_BG)
    right_BG = jnp.where(scores_BG == 0, 0.5, (scores_BG > 0) == (values_BG > 0.5))
    return loss, dict(loss=loss, accuracy=jnp.sum(right_BG), **_row_metrics(scores_BG))


def _row_metrics(scores_BG):
    rows = jnp.asarray(scores_BG.size, jnp.float32)
    return dict(reward=jnp.sum(scores_BG), tokens=rows)
