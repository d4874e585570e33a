"""Pretraining: packed text to a language model."""

import contextlib
import functools
import itertools
import math
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax import files, progress
from gptjax.data import ledger, pipeline, stage
from gptjax.models import count, gpt, settings
from gptjax.optim.build import ema_params, make_optimizer
from gptjax.optim.schedules import make_schedule
from gptjax.parallel import multihost
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import loop
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.hardware import peak_tflops
from gptjax.train.losses import make_language_loss
from gptjax.train.state import abstract_state, create_state
from gptjax.train.step import make_train_step


def pretrain(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/prepared, from RUN's newest checkpoint if it has one.

    Returns:
        A summary: why it ended and by which signal, steps, parameters, the
        newest validation.

    Raises:
        UserError: the config does not fit the run's checkpoints, or itself
            (`check.check_config` says so before there is data).
    """
    # ---- model ------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    model = settings.resolve(config.model, tokenizer.vocab_size)
    loss_fn = make_language_loss(model, config.train)
    prepared = workdir / 'prepared'

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # ---- state --------------------------------------------------------
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
        checkpoints = Checkpoints(
            workdir / 'checkpoints',
            identity=dict(
                tokenizer=tokenizer.fingerprint,
                data=stage.require(prepared, 'prepare')['inputs'],
            ),
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
        # Whatever happens, what is being saved is saved to its end.
        stack.enter_context(contextlib.closing(checkpoints))
        with progress.bar('reading the newest checkpoint', 0):
            restored = checkpoints.restore(abstract, say=say)
        if restored is None:
            with progress.bar('making the model', 0):
                state = create_state(
                    functools.partial(gpt.init_params, model),
                    jax.random.key(config.seed),
                    optimizer,
                    abstract,
                )
            record = loop.new_record(config)
        else:
            state, record = restored
            if record['reason'] is not None:  # it had come to its end
                return _summary(record['reason'], state, record, model)
            say(f'model: going on from the checkpoint of step {int(state.step):,}')

        # ---- data and step ------------------------------------------------
        schedule = jax.jit(make_schedule(config.optim, config.train.num_steps))
        task = loop.Task(
            step=make_train_step(
                loss_fn, optimizer, abstract, config.train.accumulation, config.seed
            ),
            batches=lambda step: pipeline.batches(
                prepared,
                'train',
                config.seed,
                config.train.batch_size,
                batch_sharding(mesh),
                start_step=step,
            ),
            validate=make_validation(config, prepared, loss_fn, mesh),
            learning_rate=lambda step: config.optim.learning_rate * schedule(step),
            flops_per_token=tuple(
                count.train_flops_per_token(model, config.data.context, causal)
                for causal in (True, False)
            ),
            peak_flops=peak_tflops(config.train.peak_tflops) * 1e12 * mesh.size,
            documents_of=lambda step: documents_of(config, workdir, step),
        )

        # ---- train --------------------------------------------------------
        say(
            f'model: {count.num_params(model):,} parameters on {mesh.size} '
            f'{"device" if mesh.size == 1 else "devices"}, '
            f'{config.train.batch_size * config.data.context:,} tokens a step'
        )
        outcome = loop.run(config, workdir, task, state, record, checkpoints)
    return _summary(
        outcome.reason, outcome.state, outcome.record, model, outcome.signal
    )


def documents_of(config: ConfigDict, workdir: Path, step: int) -> list[str]:
    """The ids of the documents in the batch of a step, each once."""
    rows = ledger.batch_documents(config, workdir, step)
    return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if multihost.is_first():
        print(line, flush=True)


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
    manifest = files.read_json(prepared / 'manifest.json')
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
        batches = pipeline.epoch(
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


def _summary(reason, state, record, model, signal=None):
    return dict(
        reason=reason,
        signal=signal,
        step=int(state.step),
        parameters=count.num_params(model),
        skipped=record['skipped'],
        validation=record['validation'],
    )
