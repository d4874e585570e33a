"""What is refused of the sections after fine-tuning: numbers, and what does nothing."""

import re
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import run_dir
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
DROPOUT = ('embedding_dropout', 'attention_dropout', 'residual_dropout')


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


def check_unused(section: ConfigDict, name: str, unused: dict, why: str) -> None:
    """Refuses another value than the section's own of fields that would do nothing.

    Args:
        section: of that name.
        name: of the section.
        unused: from fields to the values that they have of themselves.
        why: they do nothing, for the message.

    Raises:
        UserError: a field was given another value.
    """
    for field, own in unused.items():
        if section[field] != own:
            raise UserError(
                f'{name}.{field}={section[field]} does nothing {why}: use '
                f'{name}.{field}={own!r}'
            )


def updates_of(config: ConfigDict) -> int:
    """Updates that a rollout gives."""
    replies = config.policy.prompts * config.policy.replies
    return config.policy.epochs * (replies // config.train.batch_size)


def check_policy(config: ConfigDict) -> None:
    """Refuses a section `policy` that makes no sense.

    Raises:
        UserError: it names the field and the fix.
    """
    policy, train = config.policy, config.train
    check_section(policy, 'policy')
    check_unused(train, 'train', dict(profile_step=-1), 'in ppo and grpo')
    if not policy.kl_reward and not policy.kl_loss:
        why = 'where policy.kl_reward and policy.kl_loss are 0'
        check_unused(policy, 'policy', dict(kl_horizon=0), why)
    if policy.kl_reward and policy.kl_loss:
        raise UserError(
            f'policy.kl_reward={policy.kl_reward} and policy.kl_loss={policy.kl_loss} '
            'would count the KL twice: set one of them to 0'
        )
    if policy.overlong_buffer > policy.max_tokens:
        raise UserError(
            f'policy.overlong_buffer={policy.overlong_buffer} is more than '
            f'policy.max_tokens={policy.max_tokens}: use at most that'
        )
    replies = policy.prompts * policy.replies
    if train.batch_size < 1 or replies % train.batch_size:
        raise UserError(
            f'train.batch_size={train.batch_size} does not divide the policy.prompts * '
            f'policy.replies = {replies} replies of a rollout: use a divisor'
        )
    if train.num_steps < 1 or train.num_steps % updates_of(config):
        raise UserError(
            f'train.num_steps={train.num_steps} is no multiple of the '
            f'{updates_of(config)} updates that a rollout gives (policy.epochs * '
            'replies / train.batch_size): use a multiple'
        )


def check_dropout(config: ConfigDict) -> None:
    """Refuses dropout where nothing is dropped: the reference has none, nor has the
    engine. What the run that this starts from was trained with is no matter.

    Raises:
        UserError: it was given in a flag.
    """
    if not (Path(config.start.run) / 'config.json').exists():
        return  # gone, and RUN goes on
    earlier = run_dir.read_config(Path(config.start.run)).model
    for name in DROPOUT:
        if config.model[name] and config.model[name] != earlier[name]:
            raise UserError(
                f'model.{name}={config.model[name]} does nothing here: replies are '
                'drawn and compared without dropout: leave it out'
            )
