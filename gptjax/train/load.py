"""A trained model out of a run directory."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.errors import UserError
from gptjax.models import gpt, settings
from gptjax.optim.build import ema_params, make_optimizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.state import abstract_state


class Trained(NamedTuple):
    """A model ready to compute: its settings, parameters, tokenizer and step."""

    settings: FrozenConfigDict
    params: Any
    tokenizer: Tokenizer
    step: int


def load(config: ConfigDict, workdir: Path, mesh) -> Trained:
    """The best checkpoint of RUN by validation loss, or its newest.

    The averaged weights where the run kept an average.

    Raises:
        UserError: there is no checkpoint, or none that fits.
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
        restored = checkpoints.restore(abstract, checkpoints.best_step())
        checkpoints.close()
    if restored is None:
        raise UserError(f'{folder} is empty: run the stage pretrain first')
    state = restored[0]
    return Trained(
        model, ema_params(state.opt_state, state.params), tokenizer, int(state.step)
    )
