"""Where a run begins: its checkpoints, and the newest of them if there is one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import console
from gptjax.models import lora
from gptjax.parallel.multihost import print_once
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import Trained, adapts
from gptjax.train.state import TrainState, create_state


@contextlib.contextmanager
def opened(config: ConfigDict, workdir: Path, identity: dict) -> Iterator[Checkpoints]:
    """RUN's checkpoints. Whatever happens, what is being saved is saved to its end.

    Args:
        config: its section `checkpoint` says how many stay.
        workdir: RUN.
        identity: of `Checkpoints`.
    """
    with contextlib.closing(
        Checkpoints(
            workdir / 'checkpoints',
            identity=identity,
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
    ) as checkpoints:
        yield checkpoints


def newest(
    checkpoints: Checkpoints, abstract: TrainState, about: str
) -> tuple[TrainState, dict] | None:
    """(state, record) of the newest checkpoint that is whole; None in a new run.

    Prints that training goes on from there, unless it had come to its end.

    Args:
        checkpoints: of RUN.
        abstract: of `abstract_state`.
        about: the word before what is said.

    Raises:
        UserError: they do not fit, or all are damaged.
    """
    with console.progress_bar('reading the newest checkpoint', 0):
        restored = checkpoints.restore(abstract, report=print_once)
    if restored is not None and restored[1]['reason'] is None:
        step = int(restored[0].step)
        print_once(f'{about}: going on from the checkpoint of step {step:,}')
    return restored


def first_state(
    config: ConfigDict,
    model: FrozenConfigDict,
    start: Trained,
    optimizer,
    abstract: TrainState,
) -> TrainState:
    """The state of step 0: the earlier run's weights, or new A and B of LoRA."""
    with console.progress_bar('making the model', 0):
        if adapts(config):
            init = lambda key: lora.init_params(model, config.lora, key)
            key = jax.random.key(config.seed)
            return create_state(init, optimizer, abstract, key)
        # Nothing is drawn: what there is to begin with is passed in.
        return create_state(lambda params: params, optimizer, abstract, start.params)
