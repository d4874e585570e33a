"""Refuses a config that cannot train, before any data is built."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.core.console import UserError
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


def check_unused(
    config: ConfigDict, section: str, fields: Sequence[str], why: str
) -> None:
    """Refuses fields of a section that have no effect, unless they have the default.

    `why` is part of the message: 'train.profile_step=3 does nothing in ppo and grpo'.
    """
    for field in fields:
        value, default = config[section][field], SCHEMA[section][field].default
        if value != default:
            raise UserError(
                f'{section}.{field}={value} does nothing {why}: use '
                f'{section}.{field}={default!r}'
            )


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
