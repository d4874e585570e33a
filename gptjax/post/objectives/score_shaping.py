"""What happens to a reply's score before it becomes a reward or an advantage."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.post.objectives.reply_tokens import reply_lengths


def as_scores(scores):
    """Scores of any numeric dtype as float32: in whole numbers 0.7 would become 0."""
    return jnp.asarray(scores, jnp.float32)


def missing_eos_penalty(scores_B, ended_B, penalty: float):
    """Scores less `penalty` where the reply never ended.

    Args:
        scores_B: any numeric dtype.
        ended_B: bool, whether the reply ended before it was cut off.
        penalty: positive.
    """
    return as_scores(scores_B) - jnp.where(ended_B, 0.0, penalty)


def overlong_penalty(mask_BT, longest: int, buffer: int):
    """DAPO's soft punishment (Yu et al. 2025, eq. 13), float32 (B,) from 0 to -1.

    With n the reply's tokens, L = `longest` and C = `buffer`,

        0                  n <= L - C
        (L - C - n) / C    L - C < n <= L
        -1                 L < n

    Args:
        mask_BT: of the reply. The tokens are counted here, from the mask, so that
            nothing else (characters, words) can be.
        longest: tokens a reply may have.
        buffer: tokens before that over which the punishment grows; at least 1.
    """
    beyond_B = reply_lengths(mask_BT) - (longest - buffer)
    return -jnp.clip(beyond_B / buffer, 0.0, 1.0)


class RunningMoments(NamedTuple):
    """Mean and variance of all scores so far (Chan et al. 1979); floats of the host.

    count: scores seen.
    mean: of them.
    squares: the sum of (score - mean)^2.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, scores) -> 'RunningMoments':
        """With these scores too."""
        new = np.asarray(scores, np.float64).ravel()
        if not new.size:
            return self
        count = self.count + new.size
        apart = new.mean() - self.mean
        return RunningMoments(
            count,
            self.mean + apart * new.size / count,
            self.squares
            + float(np.sum((new - new.mean()) ** 2))
            + apart**2 * self.count * new.size / count,
        )

    @property
    def std(self) -> float:
        """The standard deviation; 1 before there are two scores that differ."""
        variance = self.squares / self.count if self.count else 0.0
        return float(np.sqrt(variance)) if variance > 1e-12 else 1.0


def scale_scores(scores_B, scale: float, clip: float = 0.0):
    """clip(score / scale), float32 (B,).

    With a fixed scale a reward model is brought to a known range. With scale =
    `RunningMoments.std` rewards keep their sign and have about unit variance
    (Engstrom et al. 2020).

    Args:
        scores_B: any numeric dtype.
        scale: divides; positive.
        clip: the largest absolute value; 0: none.
    """
    scaled_B = as_scores(scores_B) / scale
    return jnp.clip(scaled_B, -clip, clip) if clip else scaled_B
