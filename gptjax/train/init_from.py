"""Initialises a later stage from an earlier run: its config, tokenizer and weights.

`config.start` names the run directory and the checkpoint. The new run copies the
tokenizer and the config sections `model` and `tokenizer`. Once the new run has a
checkpoint, it needs the earlier run only as LoRA's frozen weights or as the reference
model.
"""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.config import default_context
from gptjax.core.console import UserError
from gptjax.models import lora
from gptjax.parallel import multihost
from gptjax.tokenizer.load_tokenizer import find_tokenizer
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.config_checks import DROPOUT
from gptjax.train.load_model import Trained, load_start_run, uses_lora

INHERITED = ('model', 'tokenizer')  # sections taken from the earlier run
# Fields of these sections that a later stage may change: they keep the weights' shapes.
CHANGEABLE = (
    *(f'model.{name}' for name in DROPOUT),
    *('model.dtype', 'model.remat', 'model.unroll'),
)

# The commands that make the runs which the configs start from.
MADE_BY = {
    'runs/base': 'run launch/local.sh',
    'runs/sft': 'run launch/local.sh, or the stage `sft --config configs/sft.py '
    '--workdir runs/sft`',
    'runs/skills': 'run launch/local.sh',
    'runs/sums': 'configs/sums.py has the commands',
    'runs/sums_sft': 'configs/sums.py has the commands',
}


def inherit_config(
    config: ConfigDict, workdir: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> ConfigDict:
    """The config completed from the run `start.run`; copies the tokenizer of that run.

    The sections `model` and `tokenizer` become those of that run, except dropout rates
    above 0 in the config. `start.run` becomes absolute, `start.step=-1` becomes the
    number of a checkpoint, and `data.context=0` becomes the context of the model, at
    most `default_context`. Once RUN has a checkpoint, these values are read from RUN's
    own config, because the earlier run may have been deleted or changed.

    `changes` are inherited fields that flags set, as {'model.residual_dropout': 0.1}.

    Raises:
        UserError: `start.run` is no trained run, or `changes` has a field that cannot
            change.
    """
    for name in changes:
        if name not in CHANGEABLE:
            raise UserError(
                f'--config.{name}: model and tokenizer are those of start.run: leave '
                f'it out; you can change only {", ".join(CHANGEABLE)}'
            )
    config = config.copy_and_resolve_references()
    rates = {f'model.{name}': config.model[name] for name in DROPOUT}
    changes = {name: rate for name, rate in rates.items() if rate} | dict(changes)
    if not config.start.run:
        raise UserError('start.run is empty: name the run directory to initialise from')
    run = Path(config.start.run).expanduser().absolute()
    step = config.start.step
    earlier = _inherited_before(workdir, run, step)
    if earlier is None:
        earlier = read_start_config(run)
        earlier.start = ConfigDict(dict(run=str(run), step=_choose_step(run, step)))
        multihost.run_on_first_process(workdir, lambda: _copy_tokenizer(run, workdir))
    for name in (*INHERITED, 'start'):
        config[name] = earlier[name]
    config.update_from_flattened_dict(changes)
    if config.data.context == 0:
        longest = config.model.context
        config.data.context = default_context(longest, earlier.data.context)
        if config.data.context < longest:
            multihost.print_once(
                f'data.context=0: rows have {config.data.context:,} of the '
                f'{longest:,} tokens of the model: use --config.data.context=N for '
                'more, which takes more memory'
            )
    return config


def load_start(config: ConfigDict, mesh: Mesh) -> Trained:
    """The model of `start.run`, laid out on the mesh."""
    with console.progress_bar('reading the model of start.run', 0):
        return load_start_run(config.start, mesh)


def first_params(
    config: ConfigDict, model: FrozenConfigDict, start: Trained | None, mesh: Mesh
) -> tuple:
    """`Stage.init()`: the weights of `start`, or new matrices A and B under LoRA.

    With start=None the weights of `start.run` are read here.
    """
    if uses_lora(config):
        init = partial(lora.init_params, model, config.lora)
        return init, jax.random.key(config.seed)
    return float32_params, (start or load_start(config, mesh)).params


def float32_params(params):
    """The weights that are trained; those of an imported run may be bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def _inherited_before(workdir: Path, run: Path, step: int) -> ConfigDict | None:
    """RUN's config, if RUN has checkpoints and was initialised from the same run."""
    if not run_dir.has_checkpoint(workdir):
        return None
    config = run_dir.read_config(workdir)
    if 'start' not in config or config.start.run != str(run):
        return None
    return config if step in (-1, config.start.step) else None


def read_start_config(run: Path) -> ConfigDict:
    if not (run / 'config.json').exists():
        advice = MADE_BY.get(os.path.relpath(run), 'run the stage that makes it')
        raise UserError(
            f'start.run={run}: no run directory there: {advice}, or name another '
            'trained run with --config.start.run'
        )
    try:
        return run_dir.read_config(run)
    except UserError as error:
        raise UserError(f'start.run={run}: {error}') from error


def _choose_step(run: Path, step: int) -> int:
    """The step of a checkpoint of `run`; step=-1: the best, or else the newest."""
    checkpoints = Checkpoints(run / 'checkpoints', {}, read_only=True)
    steps, best = checkpoints.steps(), checkpoints.best_step()
    checkpoints.close()
    if not steps:
        raise UserError(f'start.run={run} has no checkpoint: train that run first')
    if step == -1:
        return steps[-1] if best is None else best
    if step not in steps:
        raise UserError(
            f'start.step={step}: {run} has no such checkpoint; its checkpoints are '
            f'{", ".join(map(str, steps))}'
        )
    return step


def _copy_tokenizer(run: Path, workdir: Path) -> None:
    source, folder = find_tokenizer(run / 'tokenizer'), workdir / 'tokenizer'
    target = find_tokenizer(folder)
    if source is None:
        raise UserError(f'start.run={run} has no tokenizer: name a trained run')
    if target is not None:
        if storage.sha256_of_file(target) == storage.sha256_of_file(source):
            return
        if (workdir / 'config.json').exists():
            raise UserError(
                f'--workdir={workdir} has another tokenizer than start.run={run}: use '
                'another --workdir'
            )
        shutil.rmtree(folder)  # a command copied it, and then refused its data
    # The file that `find_tokenizer` finds is copied last: then the copy is complete.
    for path in sorted(source.parent.rglob('*'), key=lambda path: path == source):
        if path.is_file():
            copy = folder / path.relative_to(source.parent)
            storage.write_bytes(copy, path.read_bytes())
