"""Fields that a loss does not use are refused, with the field, its value and a fix."""

import pytest

from configs import common
from configs import dpo as dpo_configs
from gptjax.core.console import UserError
from gptjax.core.schema import SCHEMA
from gptjax.train.config_checks import check_unused

LOSSES = ('dpo', 'ipo', 'kto', 'orpo', 'simpo')
# The losses that use a field, and another value than the default.
PREFERENCE = dict(
    beta=(('dpo', 'ipo', 'kto', 'simpo'), 0.5),
    label_smoothing=(('dpo',), 0.1),
    margin=(('simpo',), 0.5),
    odds_weight=(('orpo',), 0.5),
    desirable_weight=(('kto',), 2.0),
    undesirable_weight=(('kto',), 2.0),
    nll=(('dpo', 'ipo', 'kto', 'simpo'), 1.0),
    reference=(('dpo', 'ipo', 'kto'), 'runs/other'),
)


def config_of(changes):
    config = common.base()
    for name in ('reward', 'preference', 'policy', 'ppo', 'grpo'):
        config[name] = getattr(common, f'{name}_section')()
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('field', PREFERENCE)
def test_fields_of_preference_losses(field, loss):
    losses, value = PREFERENCE[field]
    config = config_of({'preference.loss': loss, f'preference.{field}': value})
    if loss in losses:
        check_unused(config, 'preference')
        return
    default = SCHEMA['preference'][field].default
    effect = 'counts the loss of chosen replies twice' if field == 'nll' else 'does'
    with pytest.raises(UserError) as error:
        check_unused(config, 'preference')
    message = str(error.value)
    assert message.startswith(f'preference.{field}={value} {effect}')
    assert f' where preference.loss={loss}: use preference.{field}={default!r}' in (
        message
    )
    assert message.endswith(f', or preference.loss={" or ".join(losses)}')


@pytest.mark.parametrize(
    ('name', 'value', 'unused', 'used'),
    [
        ('reward.target', 'witty', {'reward.preferences': 'a.jsonl'}, {}),
        ('reward.group', 4, {'reward.preferences': 'a.jsonl'}, {}),
        ('reward.clean', ['default'], {}, {'reward.preferences': 'a.jsonl'}),
        ('reward.margin', 0.5, {'reward.loss': 'regression'}, {}),
        ('reward.centring', 0.5, {'reward.loss': 'binary'}, {}),
        ('policy.kl_estimator', 'k3', {}, {'policy.kl_loss': 0.1}),
        ('policy.kl_estimator', 'k1', {}, {'policy.kl_reward': 0.1}),
        ('policy.kl_horizon', 9, {}, {'policy.kl_reward': 0.1}),
        (
            *('policy.kl_target', 3.0, {'policy.kl_reward': 0.1}),
            {'policy.kl_reward': 0.1, 'policy.kl_horizon': 9},
        ),
        ('ppo.critic_run', 'runs/a', {}, {'ppo.critic': 'network'}),
        ('ppo.ptx_run', 'runs/a', {}, {'ppo.ptx': 0.5}),
        ('ppo.ptx_rows', 4, {}, {'ppo.ptx': 0.5}),
        ('grpo.clip_low', 0.1, {'grpo.objective': 'reinforce'}, {}),
        ('grpo.clip_high', 0.1, {'grpo.objective': 'reinforce'}, {}),
        ('grpo.resampling', 3, {'policy.replies': 1}, {}),
        ('train.z_loss', 0.1, {}, {'ppo.ptx': 0.5}),
        ('train.label_smoothing', 0.1, {}, {'ppo.ptx': 0.5}),
    ],
)
def test_fields_of_other_losses(name, value, unused, used):
    section = name.split('.')[0].replace('train', 'ppo')
    check_unused(config_of(unused), section)  # with the default
    check_unused(config_of({**used, name: value}), section)
    with pytest.raises(UserError, match=f'^{name}=.* does nothing where .*use {name}='):
        check_unused(config_of({**unused, name: value}), section)


@pytest.mark.parametrize('name', ('train.z_loss', 'train.label_smoothing'))
@pytest.mark.parametrize('section', ('preference', 'reward', 'grpo'))
def test_fields_of_the_loss_of_text(section, name):
    with pytest.raises(UserError, match=f'^{name}=0.1 does nothing .*{name}=0.0$'):
        check_unused(config_of({name: 0.1}), section)


def test_experiments_use_all_their_fields():
    for variant in dpo_configs.VARIANTS:
        check_unused(dpo_configs.get_config(variant), 'preference')
