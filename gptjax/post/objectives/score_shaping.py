"""Changes to the scores of replies before these become rewards or advantages."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.post.objectives.reply_tokens import reply_lengths


def as_scores(scores):
    """Scores of any numeric dtype as float32, in which all later arithmetic is done."""
    return jnp.asarray(scores, jnp.float32)


def missing_eos_penalty(scores_B, ended_B, penalty: float):
    """Subtracts `penalty` from the score of each reply that was cut off.

    Args:
        ended_B: bool, whether the policy ended the reply.
    """
    return as_scores(scores_B) - jnp.where(ended_B, 0.0, penalty)


def overlong_penalty(mask_BT, longest: int, buffer: int):
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13), float32 (B,).

        0                  if n <= L - C
        (L - C - n) / C    if L - C < n <= L
        -1                 if L < n

    n is the number of tokens in the reply, L is `longest`, C is `buffer` (at least 1).
    """
    beyond_B = reply_lengths(mask_BT) - (longest - buffer)
    return -jnp.clip(beyond_B / buffer, 0.0, 1.0)


class RunningMoments(NamedTuple):
    """Mean and variance of all scores so far (Chan et al. 1979), as Python floats.

    squares: the sum of (score - mean)^2.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, scores) -> 'RunningMoments':
        """The moments with these scores included."""
        new = np.asarray(scores, np.float64).ravel()
        if not new.size:
            return self
        count = self.count + new.size
        difference = new.mean() - self.mean
        return RunningMoments(
            count,
            self.mean + difference * new.size / count,
            self.squares
            + float(np.sum((new - new.mean()) ** 2))
            + difference**2 * self.count * new.size / count,
        )

    @property
    def std(self) -> float:
        """The standard deviation; 1 while all scores are equal."""
        variance = self.squares / self.count if self.count else 0.0
        return float(np.sqrt(variance)) if variance > 1e-12 else 1.0


def scale_scores(scores_B, scale: float, clip: float = 0.0):
    """clip(score / scale), float32 (B,).

    With scale = `RunningMoments.std`, scores keep their sign and have about unit
    variance (Engstrom et al. 2020).

    Args:
        clip: largest absolute value; 0 means no limit.
    """
    scaled_B = as_scores(scores_B) / scale
    return jnp.clip(scaled_B, -clip, clip) if clip else scaled_B
