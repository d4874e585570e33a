"""Pretraining: packed text to a language model."""

import contextlib
import functools
import itertools
import math
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.data import dataloader, ledger
from gptjax.models import gpt, parameter_count, settings
from gptjax.optim.optimizer import ema_params, make_learning_rate, make_optimizer
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import begin, config_checks, loop
from gptjax.train.init_from import load_start
from gptjax.train.load_model import adapts
from gptjax.train.losses import make_language_loss
from gptjax.train.peak_flops import peak_tflops
from gptjax.train.state import TrainState, abstract_state, create_state
from gptjax.train.step import make_train_step


def pretrain(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/prepared, from RUN's newest checkpoint if it has one.

    It begins with new weights or, where the config has a section `start`, with those
    of an earlier run (continued pretraining).

    Returns:
        A summary: why it ended and by which signal, steps, parameters, the
        newest validation.

    Raises:
        UserError: the config does not fit the run's checkpoints, or itself
            (`check_pretrain` says so before there is data).
    """
    # ---- model ------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    model = settings.resolve(config.model, tokenizer.vocab_size)
    parameters = parameter_count.num_params(model)
    loss_fn = make_language_loss(model, config.train)
    prepared = workdir / 'prepared'

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # ---- state --------------------------------------------------------
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
        data = artifact.require(prepared, 'prepare')['inputs']
        identity = dict(tokenizer=tokenizer.fingerprint, data=data)
        checkpoints = stack.enter_context(begin.opened(config, workdir, identity))
        restored = begin.newest(checkpoints, abstract, 'model')
        if restored is None:
            state = first_state(config, model, optimizer, abstract, mesh)
            restored = state, loop.new_record(config)
        state, record = restored
        if record['reason'] is not None:  # it had come to its end
            return loop.Outcome(state, record).summary(parameters=parameters)

        # ---- data and step ------------------------------------------------
        task = loop.Task(
            step=make_train_step(
                loss_fn, optimizer, abstract, config.train.accumulation, config.seed
            ),
            batches=lambda step: dataloader.batches(
                prepared,
                'train',
                config.seed,
                config.train.batch_size,
                batch_sharding(mesh),
                start_step=step,
            ),
            validate=make_validation(config, prepared, loss_fn, mesh),
            learning_rate=make_learning_rate(config),
            flops_per_token=parameter_count.train_flops_per_token(
                model, config.data.context
            ),
            peak_flops=peak_tflops(config.train.peak_tflops) * 1e12 * mesh.size,
            documents_of=lambda step: documents_of(config, workdir, step),
        )

        # ---- train --------------------------------------------------------
        print_once(
            f'model: {parameters:,} parameters on {mesh.size} '
            f'{"device" if mesh.size == 1 else "devices"}, '
            f'{config.train.batch_size * config.data.context:,} tokens a step'
        )
        outcome = loop.run(config, workdir, task, state, record, checkpoints)
    return outcome.summary(parameters=parameters)


def check_pretrain(config: ConfigDict) -> None:
    """Refuses, before minutes go into data, a config that cannot train."""
    config_checks.check_config(config)
    if adapts(config):
        raise UserError(
            f'lora.rank={config.lora.rank}: `pretrain` trains all parameters: set it '
            'to 0, or use `sft`'
        )


def first_state(config: ConfigDict, model, optimizer, abstract, mesh) -> TrainState:
    """The state of step 0: new weights, or those of `start.run`."""
    if 'start' in config:
        start = load_start(config, mesh)
        return begin.first_state(config, model, start, optimizer, abstract)
    init = functools.partial(gpt.init_params, model)
    key = jax.random.key(config.seed)
    with console.progress_bar('making the model', 0):
        return create_state(init, optimizer, abstract, key)


def documents_of(config: ConfigDict, workdir: Path, step: int) -> list[str]:
    """The ids of the documents in the batch of a step, each once."""
    rows = ledger.batch_documents(config, workdir, step)
    return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def make_validation(config: ConfigDict, prepared: Path, loss_fn, mesh, *frozen):
    """A function from the state to `loss` and `bits_per_byte` on validation.

    They are over packed examples, where a document that an example's edge
    cuts loses its context: a quick figure for the curve. `eval` has the exact
    one, over whole documents.

    Args:
        config: of the run.
        prepared: RUN/prepared, or RUN/dialogue: then they are over what the
            assistant says and the ends of its turns, per byte that it says.
        loss_fn: as training has it.
        mesh: where batches are laid out.
        *frozen: weights that `loss_fn` takes besides.
    """
    manifest = storage.read_json(prepared / 'manifest.json')
    sources = manifest['splits']['validation'].values()
    bytes_per_token = sum(s['bytes'] for s in sources) / sum(
        s['predicted_tokens'] for s in sources
    )
    evaluate = jax.jit(
        lambda params, batch, *frozen: loss_fn(params, batch, None, *frozen)[1]
    )

    def validate(state):
        params = ema_params(state.opt_state, state.params)
        sums = np.zeros(2)
        batches = dataloader.epoch(
            prepared, 'validation', config.train.batch_size, batch_sharding(mesh)
        )
        for number, batch in enumerate(batches):
            if number == config.train.eval_batches > 0:
                break
            metrics = evaluate(params, batch, *frozen)
            sums += float(metrics['loss']), float(metrics['tokens'])
        loss = sums[0] / sums[1]
        return dict(loss=loss, bits_per_byte=loss / math.log(2) / bytes_per_token)

    return validate
