"""Refuses a config that cannot train, before any data is built."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.core.fields import Field
from gptjax.core.schema import SCHEMA
from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.parallel.mesh import batch_shards, make_mesh
from gptjax.train.state import abstract_state

DROPOUT = ('embedding_dropout', 'attention_dropout', 'residual_dropout')


def check_config(config: ConfigDict) -> None:
    """Refuses fields that do not fit each other or the devices.

    Builds the shapes of the whole training state, and no arrays.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    check_context(config, mesh)
    # Training a tokenizer gives exactly this vocabulary size, or fails.
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)


def check_start_template(config: ConfigDict) -> None:
    """Refuses plain text for a model that has learned the tokens of its chat template.

    It would learn another format than it is asked in, and forget its own.
    """
    run = Path(config.start.run)
    if config.chat.template != 'text' or not (run / 'config.json').exists():
        return  # a run that resumes does not need the earlier run
    if run_dir.read_config(run).chat.template == 'turns':
        raise UserError(
            f'chat.template=text: the model of start.run={run} has learned '
            "chat.template='turns', which its replies need: use "
            '--config.chat.template=turns, or start from a model that is not fine-tuned'
        )


def check_batch(config: ConfigDict, mesh) -> None:
    """Refuses a batch that does not divide into micro-batches and devices."""
    train, shards = config.train, batch_shards(mesh)
    if train.batch_size % train.accumulation:
        raise UserError(
            f'train.accumulation={train.accumulation} does not divide '
            f'train.batch_size={train.batch_size}: use a divisor'
        )
    if train.batch_size // train.accumulation % shards:
        raise UserError(
            f'train.batch_size={train.batch_size} in {train.accumulation} '
            f'micro-batches is not divisible by mesh.data * mesh.fsdp = {shards}: use '
            f'a multiple of {shards * train.accumulation}'
        )


def check_context(config: ConfigDict, mesh) -> None:
    """Refuses a data.context that the model or the mesh cannot take."""
    context = config.data.context
    if not context:
        raise UserError('data.context=0: use a number of at least 1')
    if context > config.model.context:
        raise UserError(
            f'data.context={context} is longer than the '
            f'model.context={config.model.context} positions of the model: make them '
            'equal'
        )
    if context % mesh.shape['context']:
        raise UserError(
            f'data.context={context} is not divisible by '
            f'mesh.context={mesh.shape["context"]}: change one of them'
        )


# ---- fields without an effect


class Used(NamedTuple):
    """When a field has an effect.

    name: of the field, such as 'ppo.ptx_rows'.
    by: the fields that decide, as 'ppo.ptx', or several with spaces between them.
    where: whether the field is used, from the values of those fields.
    otherwise: what the field does if it is not used.
    section: whose check refuses it; '': that of the field.
    """

    name: str
    by: str
    where: Callable[..., bool]
    otherwise: str = 'does nothing'
    section: str = ''


def either(*choices: str) -> Callable[[str], bool]:
    return lambda value: value in choices


def given(*values) -> bool:
    return any(values)


def absent(value) -> bool:
    return not value


def never(*values) -> bool:
    return False


WITH_REFERENCE = ('dpo', 'ipo', 'kto')  # losses of preferences
USED = (
    Used('reward.target', 'reward.preferences', absent),
    Used('reward.group', 'reward.preferences', absent),
    Used('reward.clean', 'reward.preferences', given),
    Used('reward.margin', 'reward.loss', either('pairwise')),
    Used('reward.centring', 'reward.loss', either('pairwise')),
    Used('preference.beta', 'preference.loss', either(*WITH_REFERENCE, 'simpo')),
    Used('preference.label_smoothing', 'preference.loss', either('dpo')),
    Used('preference.margin', 'preference.loss', either('simpo')),
    Used('preference.odds_weight', 'preference.loss', either('orpo')),
    Used('preference.desirable_weight', 'preference.loss', either('kto')),
    Used('preference.undesirable_weight', 'preference.loss', either('kto')),
    Used(
        'preference.nll',
        'preference.loss',
        either(*WITH_REFERENCE, 'simpo'),
        otherwise='counts the loss of chosen replies twice',
    ),
    Used('preference.reference', 'preference.loss', either(*WITH_REFERENCE)),
    Used('policy.kl_estimator', 'policy.kl_reward policy.kl_loss', given),
    Used('policy.kl_horizon', 'policy.kl_reward policy.kl_loss', given),
    Used('policy.kl_target', 'policy.kl_horizon', given),
    Used('ppo.critic_run', 'ppo.critic', either('network')),
    Used('ppo.ptx_run', 'ppo.ptx', given),
    Used('ppo.ptx_rows', 'ppo.ptx', given),
    Used('grpo.clip_low', 'grpo.objective', either('clipped', 'gspo')),
    Used('grpo.clip_high', 'grpo.objective', either('clipped', 'gspo')),
    Used('grpo.resampling', 'policy.replies', lambda replies: replies > 1),
    *(  # of the loss of text, which these stages do not have; PPO-ptx has it
        Used(f'train.{name}', by, where, section=by.split('.')[0])
        for name in ('z_loss', 'label_smoothing')
        for by, where in (
            *(('reward.loss', never), ('preference.loss', never)),
            *(('grpo.objective', never), ('ppo.ptx', given)),
        )
    ),
)


def check_unused(config: ConfigDict, section: str) -> None:
    """Refuses fields that have no effect in a section's stage, by `USED`."""
    for name, by, where, otherwise, checked in USED:
        if (checked or name.split('.')[0]) != section:
            continue
        deciding = {field: _read(config, field) for field in by.split()}
        if not where(*deciding.values()):
            values = ' and '.join(f'{field}={deciding[field]}' for field in deciding)
            choices = _field(by.split()[0]).range.choices
            fitting = ' or '.join(choice for choice in choices if where(choice))
            other = f', or {by}={fitting}' if fitting else ''
            refuse_unused(config, name, f'{otherwise} where {values}', other)


def refuse_unused(config: ConfigDict, name: str, effect: str, other='') -> None:
    """Refuses a field with the given effect, unless it has the default.

    Args:
        effect: such as 'does nothing in ppo and grpo'.
        other: another way to mend the config than the default.
    """
    value, default = _read(config, name), _field(name).default
    if type(default)(value) != default:
        raise UserError(f'{name}={value} {effect}: use {name}={default!r}{other}')


def _read(config: ConfigDict, name: str):
    section, field = name.split('.')
    return config[section][field]


def _field(name: str) -> Field:
    section, field = name.split('.')
    return SCHEMA[section][field]


# ---- dropout


def check_dropout(config: ConfigDict) -> None:
    """Refuses dropout given as a flag: replies are generated and compared without it.

    Dropout that is inherited from `start.run` is not refused, and not applied.
    """
    if not (Path(config.start.run) / 'config.json').exists():
        return  # a run that resumes does not need the earlier run
    earlier = run_dir.read_config(Path(config.start.run)).model
    for name in DROPOUT:
        if config.model[name] and config.model[name] != earlier[name]:
            raise UserError(
                f'model.{name}={config.model[name]} does nothing here: replies are '
                'generated and compared without dropout: leave it out'
            )
