"""Learning-rate schedules. A schedule gives the factor that multiplies the peak.

With s the step (from 0), W = warmup_steps, N = num_steps, f = final_scale and
p = (s - W) / (N - W) the progress after the warm-up, the factor is

    warm-up       (s + 1) / (W + 1)            for s < W: above 0 from step 0, 1 at W
    constant      1
    cosine        f + (1 - f) (1 + cos(pi p)) / 2
    linear        1 - (1 - f) p
    inverse_sqrt  max(f, sqrt((W + 1) / (s + 1)))
    wsd           1, then over the last R = decay_fraction N steps (none of them
                  in the warm-up) linearly to f: 1 - (1 - f) (s - N + R) / R

The factor reaches f at s = N, one step after the last update, so that with f = 0 the
last update still changes the weights. It stays f after that.
"""

import jax.numpy as jnp
import optax

from gptjax.core.console import UserError


def make_schedule(optim, num_steps: int) -> optax.Schedule:
    """The schedule that `optim.schedule` names.

    It maps a step (an integer or a traced int32 scalar) to a float32 scalar from 0 to
    1.
    """
    warmup, final = optim.warmup_steps, optim.final_scale
    if warmup >= num_steps:
        raise UserError(
            f'optim.warmup_steps={warmup} is not below train.num_steps={num_steps}: '
            f'use 0 to {num_steps - 1}'
        )
    decay_start = warmup
    if optim.schedule == 'wsd':
        decay_start = max(warmup, num_steps - round(optim.decay_fraction * num_steps))

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rising = (step + 1) / (warmup + 1)
        progress = (step - decay_start) / max(num_steps - decay_start, 1)
        progress = jnp.clip(progress, 0.0, 1.0)
        if optim.schedule == 'constant':
            falling = jnp.ones_like(step)
        elif optim.schedule == 'cosine':
            falling = final + (1 - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        elif optim.schedule == 'inverse_sqrt':
            steps = jnp.maximum(step, warmup)
            falling = jnp.maximum(final, jnp.sqrt((warmup + 1) / (steps + 1)))
        else:  # 'linear' and 'wsd' differ in where the decay starts
            falling = 1 - (1 - final) * progress
        return jnp.where(step < warmup, rising, falling)

    return schedule
