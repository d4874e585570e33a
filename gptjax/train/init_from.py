"""What a later stage begins with: an earlier run's model and tokenizer.

`config.start` names the run directory and the checkpoint. The new run has a copy of
the tokenizer and, in its config, the model's section, so that everything that opens
a run directory opens it too. Once it has a checkpoint of its own it needs the earlier
run no more, save under LoRA, where that holds the frozen weights, and where that is
the reference.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.models import lora
from gptjax.parallel import multihost
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import Trained, load_start_run, uses_lora

SECTIONS = ('model', 'tokenizer')  # taken from the earlier run
# Of these what a later stage may change: how it is trained and computed.
CHANGEABLE = (
    *('model.embedding_dropout', 'model.attention_dropout', 'model.residual_dropout'),
    *('model.dtype', 'model.remat', 'model.unroll'),
)


def inherit_config(
    config: ConfigDict, workdir: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> ConfigDict:
    """The config with what it takes from the run `start.run`; copies its tokenizer.

    `model` and `tokenizer` are that run's, `start.run` becomes absolute, `start.step`
    the number of a checkpoint, and a `data.context` of 0 the model's context. Doing
    it again changes nothing; where RUN has checkpoints, what it took then stands,
    though the earlier run may be gone or have a better checkpoint now.

    Args:
        config: of the new run.
        workdir: RUN.
        changes: fields of what is taken that were given another value, as
            'model.residual_dropout'.

    Raises:
        UserError: `start.run` is no run with a checkpoint, RUN has another tokenizer,
            or a changed field decides the shape of the weights.
    """
    for name in changes:
        if name not in CHANGEABLE:
            raise UserError(
                f'--config.{name}: model and tokenizer are those of start.run: leave '
                f'it out; what can be changed is {", ".join(CHANGEABLE)}'
            )
    config = config.copy_and_resolve_references()
    if not config.start.run:
        raise UserError('start.run is empty: name the run directory to begin with')
    run = Path(config.start.run).expanduser().absolute()
    asked = config.start.step
    taken = _inherited_before(workdir, run, asked)
    if taken is None:
        taken = read_start_config(run)
        taken.start = ConfigDict(dict(run=str(run), step=_choose_step(run, asked)))
        multihost.run_on_first_process(workdir, lambda: _copy_tokenizer(run, workdir))
    for name in (*SECTIONS, 'start'):
        config[name] = taken[name]
    config.update_from_flattened_dict(changes)
    if config.data.context == 0:
        config.data.context = config.model.context
    return config


def load_start(config: ConfigDict, mesh: Mesh) -> Trained:
    """The model that the run begins with, laid out on the mesh.

    Raises:
        UserError: the earlier run has no such checkpoint.
    """
    with console.progress_bar('reading the model that this starts from', 0):
        return load_start_run(config.start, mesh)


def first_params(
    config: ConfigDict, model: FrozenConfigDict, start: Trained | None, mesh: Mesh
) -> tuple:
    """`Stage.init()`: the earlier run's weights, or new A and B of LoRA.

    Args:
        config: of the run.
        model: its settings.
        start: what the run starts from; None: it is read.
        mesh: where it lives.
    """
    if uses_lora(config):
        init = partial(lora.init_params, model, config.lora)
        return init, jax.random.key(config.seed)
    # Nothing is drawn: what there is to begin with is passed in.
    return lambda params: params, (start or load_start(config, mesh)).params


def _inherited_before(workdir: Path, run: Path, step: int) -> ConfigDict | None:
    """RUN's own config, if it has checkpoints that began with the same run."""
    if not run_dir.has_checkpoint(workdir):
        return None
    config = run_dir.read_config(workdir)
    if 'start' not in config or config.start.run != str(run):
        return None
    return config if step in (-1, config.start.step) else None


def read_start_config(run: Path) -> ConfigDict:
    """The config of an earlier run."""
    try:
        return run_dir.read_config(run)
    except UserError as error:
        raise UserError(
            f'start.run={run}: no run directory there: name one that a stage has '
            'trained, as --config.start.run=runs/chitchat'
        ) from error


def _choose_step(run: Path, asked: int) -> int:
    """The checkpoint's number: the one asked for, the best, or the newest."""
    checkpoints = Checkpoints(run / 'checkpoints', {}, read_only=True)
    steps, best = checkpoints.steps(), checkpoints.best_step()
    checkpoints.close()
    if not steps:
        raise UserError(f'start.run={run} has no checkpoint: train it first')
    if asked == -1:
        return steps[-1] if best is None else best
    if asked not in steps:
        raise UserError(
            f'start.step={asked}: {run} has no such checkpoint, it has '
            f'{", ".join(map(str, steps))}'
        )
    return asked


def _copy_tokenizer(run: Path, workdir: Path) -> None:
    source, target = run / 'tokenizer', workdir / 'tokenizer'
    if not (source / 'tokenizer.model').exists():
        raise UserError(
            f'start.run={run} has no tokenizer: name a run that has trained'
        )
    if (target / 'tokenizer.model').exists():
        if storage.sha256_of_file(target / 'tokenizer.model') != storage.sha256_of_file(
            source / 'tokenizer.model'
        ):
            raise UserError(
                f'--workdir={workdir} has another tokenizer than start.run={run}: use '
                'another --workdir'
            )
        return
    for path in sorted(source.iterdir(), key=lambda path: path.suffix == '.model'):
        storage.write_bytes(target / path.name, path.read_bytes())  # the model last
