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

    `changes` are fields of these sections that were given another value, as
    'model.residual_dropout'; those that decide the weights' shapes are refused.
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
    step = config.start.step
    earlier = _inherited_before(workdir, run, step)
    if earlier is None:
        earlier = read_start_config(run)
        earlier.start = ConfigDict(dict(run=str(run), step=_choose_step(run, step)))
        multihost.run_on_first_process(workdir, lambda: _copy_tokenizer(run, workdir))
    for name in (*SECTIONS, 'start'):
        config[name] = earlier[name]
    config.update_from_flattened_dict(changes)
    if config.data.context == 0:
        config.data.context = config.model.context
    return config


def load_start(config: ConfigDict, mesh: Mesh) -> Trained:
    """The model that the run begins with, laid out on the mesh."""
    with console.progress_bar('reading the model that this starts from', 0):
        return load_start_run(config.start, mesh)


def first_params(
    config: ConfigDict, model: FrozenConfigDict, start: Trained | None, mesh: Mesh
) -> tuple:
    """`Stage.init()`: the weights of `start` (None: read here), or new LoRA A and B."""
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
    if not (run / 'config.json').exists():
        raise UserError(
            f'start.run={run}: no run directory there: name one that a stage has '
            'trained, as --config.start.run=runs/chitchat'
        )
    try:
        return run_dir.read_config(run)
    except UserError as error:
        raise UserError(f'start.run={run}: {error}') from error


def _choose_step(run: Path, step: int) -> int:
    """The checkpoint's number: `step`, or for -1 the best or the newest."""
    checkpoints = Checkpoints(run / 'checkpoints', {}, read_only=True)
    steps, best = checkpoints.steps(), checkpoints.best_step()
    checkpoints.close()
    if not steps:
        raise UserError(f'start.run={run} has no checkpoint: train it first')
    if step == -1:
        return steps[-1] if best is None else best
    if step not in steps:
        raise UserError(
            f'start.step={step}: {run} has no such checkpoint, it has '
            f'{", ".join(map(str, steps))}'
        )
    return step


def _copy_tokenizer(run: Path, workdir: Path) -> None:
    source = run / 'tokenizer' / 'tokenizer.model'
    target = workdir / 'tokenizer' / 'tokenizer.model'
    if not source.exists():
        raise UserError(
            f'start.run={run} has no tokenizer: name a run that has trained'
        )
    if target.exists():
        if storage.sha256_of_file(target) != storage.sha256_of_file(source):
            raise UserError(
                f'--workdir={workdir} has another tokenizer than start.run={run}: use '
                'another --workdir'
            )
        return
    for path in sorted(source.parent.iterdir(), key=lambda path: path == source):
        # The model last: its file says that all are there.
        storage.write_bytes(target.with_name(path.name), path.read_bytes())
