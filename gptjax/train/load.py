"""A trained model out of a run directory."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax import files
from gptjax.errors import UserError
from gptjax.infer.engine import Engine
from gptjax.models import gpt, settings
from gptjax.optim.build import ema_params, make_optimizer
from gptjax.parallel.mesh import make_mesh
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.checksums import checksums
from gptjax.train.state import abstract_state


class Trained(NamedTuple):
    """A model ready to compute: its settings, parameters, tokenizer and step."""

    settings: FrozenConfigDict
    params: Any
    tokenizer: Tokenizer
    step: int


def load(
    config: ConfigDict, workdir: Path, mesh: Mesh, step: int | None = None
) -> Trained:
    """A checkpoint of RUN: of `step`, or the best by validation loss, or the newest.

    The averaged weights where the run kept an average.

    Raises:
        UserError: there is no checkpoint, none of that step, or none that fits.
    """
    folder = workdir / 'checkpoints'
    path = workdir / 'tokenizer' / 'tokenizer.model'
    if not folder.is_dir() or not path.exists():
        raise UserError(
            f'--workdir={workdir}: no checkpoint there: run the stage pretrain first'
        )
    tokenizer = Tokenizer.load(path)
    model = settings.resolve(config.model, tokenizer.vocab_size)
    with jax.set_mesh(mesh):
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
        checkpoints = Checkpoints(
            folder, dict(tokenizer=tokenizer.fingerprint), read_only=True
        )
        if step is not None and step not in checkpoints.steps():
            there = ', '.join(map(str, checkpoints.steps()))
            raise UserError(f'{folder} has no checkpoint {step}: there are {there}')
        chosen = checkpoints.best_step() if step is None else step
        restored = checkpoints.restore(abstract, chosen)
        checkpoints.close()
    if restored is None:
        raise UserError(f'{folder} is empty: run the stage pretrain first')
    state = restored[0]
    return Trained(
        model, ema_params(state.opt_state, state.params), tokenizer, int(state.step)
    )


def load_engine(
    config: ConfigDict, workdir: Path, step: int | None = None, **options
) -> Engine:
    """An engine for a checkpoint of RUN, chosen as `load` does.

    Args:
        config: of the run.
        workdir: RUN.
        step: of the checkpoint.
        **options: of `Engine`.
    """
    trained = load(config, workdir, inference_mesh(config), step)
    return Engine(
        trained.settings,
        trained.params,
        trained.tokenizer,
        fingerprint=fingerprint_of(trained),
        trained_step=trained.step,
        **options,
    )


def fingerprint_of(trained: Trained) -> str:
    """A hash of all that decides what a model says: settings, weights, tokenizer."""
    return files.fingerprint(
        [
            trained.settings.to_dict(),
            checksums(trained.params),
            trained.tokenizer.fingerprint,
        ]
    )


def inference_mesh(config: ConfigDict) -> Mesh:
    """The tensor axis alone, where there are devices for it; else one device."""
    devices = jax.devices()
    tensor = len(devices) if config.mesh.tensor == -1 else config.mesh.tensor
    section = ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1))
    if tensor <= len(devices):
        section.tensor = tensor
    return make_mesh(section, devices[: section.tensor])
