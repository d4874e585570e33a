"""What is refused of the sections after fine-tuning: numbers, and what does nothing."""

import re

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.train.ranges import (
    AMOUNT,
    COUNT,
    INNER_SHARE,
    POSITIVE,
    SHARE,
    TWO_OR_MORE,
    Range,
    numbers_of,
)

FINITE = Range(lambda x: True, 'a finite number')
UP_TO_HALF = Range(lambda x: 0 <= x <= 0.5, 'a share from 0 to 0.5')
BELOW_HALF = Range(lambda x: 0 <= x < 0.5, 'a share from 0 to below 0.5')

HELD_OUT = Range(
    lambda x: 0 < x < 0.5, 'a share above 0 and below 0.5: validation takes as much'
)

# Every number of these sections in configs/common.py.
RANGES = {
    'policy.prompts': COUNT,
    'policy.replies': COUNT,
    'policy.epochs': COUNT,
    'policy.max_tokens': COUNT,
    'policy.temperature': POSITIVE,
    'policy.top_k': AMOUNT,
    'policy.top_p': SHARE,
    'policy.min_p': SHARE,
    'policy.slots': COUNT,
    'policy.generation_tensor': COUNT,
    'policy.kl_reward': AMOUNT,
    'policy.kl_loss': AMOUNT,
    'policy.kl_target': POSITIVE,
    'policy.kl_horizon': AMOUNT,
    'policy.entropy': AMOUNT,
    'policy.missing_eos_penalty': AMOUNT,
    'policy.overlong_buffer': AMOUNT,
    'policy.reward_scale': POSITIVE,
    'policy.reward_clip': AMOUNT,
    'ppo.gamma': SHARE,
    'ppo.lam': SHARE,
    'ppo.clip_low': POSITIVE,
    'ppo.clip_high': POSITIVE,
    'ppo.value_clip': AMOUNT,
    'ppo.value_coefficient': POSITIVE,
    'ppo.warm_up': AMOUNT,
    'ppo.ptx': AMOUNT,
    'ppo.ptx_rows': COUNT,
    'grpo.clip_low': POSITIVE,
    'grpo.clip_high': POSITIVE,
    'grpo.resampling': AMOUNT,
    'reward.epochs': AMOUNT,
    'reward.test_fraction': INNER_SHARE,
    'reward.validation_fraction': INNER_SHARE,
    'reward.group': TWO_OR_MORE,
    'reward.margin': AMOUNT,
    'reward.centring': AMOUNT,
    'preference.validation_fraction': INNER_SHARE,
    'preference.epochs': AMOUNT,
    'preference.beta': POSITIVE,
    'preference.label_smoothing': BELOW_HALF,
    'preference.margin': AMOUNT,
    'preference.odds_weight': AMOUNT,
    'preference.desirable_weight': AMOUNT,
    'preference.undesirable_weight': AMOUNT,
    'preference.nll': AMOUNT,
    'select.problems': COUNT,
    'select.replies': TWO_OR_MORE,
    'select.keep': AMOUNT,
    'select.pairs': AMOUNT,
    'select.noise': UP_TO_HALF,
    'select.max_tokens': COUNT,
    'select.temperature': POSITIVE,
    'select.slots': COUNT,
    'select.generation_tensor': COUNT,
    'best_of.problems': TWO_OR_MORE,
    'best_of.samples': TWO_OR_MORE,
    'best_of.max_tokens': COUNT,
    'best_of.temperature': POSITIVE,
    'best_of.slots': COUNT,
    'best_of.generation_tensor': COUNT,
    'task.held_out_fraction': HELD_OUT,
    'task.problems': COUNT,
    'task.demonstrations': AMOUNT,
    'task.validation': COUNT,
    'task.held_out': COUNT,
    'task.samples': COUNT,
    'task.rewards.*.weight': FINITE,
}


def check_section(section: ConfigDict, name: str) -> None:
    """Refuses numbers of the section of that name that mean nothing.

    Raises:
        UserError: a field is out of its range, or infinite.
    """
    for field, value in numbers_of(section, f'{name}.'):
        pattern = re.sub(r'^task\.rewards\.[^.]+\.', 'task.rewards.*.', field)
        allowed = RANGES.get(pattern)
        if allowed and not (abs(value) < float('inf') and allowed.holds(value)):
            raise UserError(f'{field}={value}: use {allowed.words}')
