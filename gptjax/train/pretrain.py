"""Pretraining: packed text to a language model."""

import math
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax import files
from gptjax.data import ledger, pipeline
from gptjax.errors import UserError
from gptjax.models import count, gpt, settings
from gptjax.optim.build import ema_params, make_optimizer
from gptjax.optim.schedules import make_schedule
from gptjax.parallel.mesh import batch_shards, make_mesh
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
        A summary: why it ended, steps, parameters, the newest validation.

    Raises:
        UserError: the config does not fit itself, the data or the devices.
    """
    # ---- mesh -------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)

    # ---- model ------------------------------------------------------------
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    model = settings.resolve(config.model, tokenizer.vocab_size)
    if config.data.context > model.context:
        raise UserError(
            f'data.context={config.data.context} is longer than the '
            f'model.context={model.context} positions of the model: make them equal'
        )
    loss_fn = make_language_loss(model, config.train)

    with jax.set_mesh(mesh):
        # ---- state --------------------------------------------------------
        shapes = gpt.abstract_params(model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, gpt.param_axes(model), mesh)
        checkpoints = Checkpoints(
            workdir / 'checkpoints',
            identity=dict(tokenizer=tokenizer.fingerprint),
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
        restored = checkpoints.restore(abstract)
        if restored is None:
            key = jax.random.key(config.seed)
            init = lambda key: gpt.init_params(model, key)
            state = create_state(init, key, optimizer, abstract)
            record = loop.new_record(config)
        else:
            state, record = restored
            print(f'going on from the checkpoint of step {int(state.step)}')
        if record['reason'] is not None:
            return _summary(record['reason'], state, record, model)

        # ---- data and step ------------------------------------------------
        prepared = workdir / 'prepared'
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
            documents_of=lambda step: ledger.batch_documents(config, workdir, step),
        )

        # ---- train --------------------------------------------------------
        print(
            f'{count.num_params(model):,} parameters, {mesh.size} devices, '
            f'{config.train.batch_size * config.data.context:,} tokens a step'
        )
        outcome = loop.run(config, workdir, task, state, record, checkpoints)
        checkpoints.close()
    return _summary(outcome.reason, outcome.state, outcome.record, model)


def make_validation(config: ConfigDict, prepared: Path, loss_fn, mesh):
    """A function from the state to `loss` and `bits_per_byte` on validation.

    They are over packed examples, where a document that an example's edge
    cuts loses its context: a quick figure for the curve. `eval` has the exact
    one, over whole documents.
    """
    manifest = files.read_json(prepared / 'manifest.json')
    sources = manifest['splits']['validation'].values()
    bytes_per_token = sum(s['bytes'] for s in sources) / sum(
        s['predicted_tokens'] for s in sources
    )
    evaluate = jax.jit(lambda params, batch: loss_fn(params, batch, None)[1])

    def validate(state):
        params = ema_params(state.opt_state, state.params)
        sums = np.zeros(2)
        batches = pipeline.epoch(
            prepared, 'validation', config.train.batch_size, batch_sharding(mesh)
        )
        for number, batch in enumerate(batches):
            if number == config.train.eval_batches > 0:
                break
            metrics = evaluate(params, batch)
            sums += float(metrics['loss']), float(metrics['tokens'])
        loss = sums[0] / sums[1]
        return dict(loss=loss, bits_per_byte=loss / math.log(2) / bytes_per_token)

    return validate


def check_batch(config: ConfigDict, mesh) -> None:
    """Refuses a batch that does not divide into micro-batches and devices."""
    train, shards = config.train, batch_shards(mesh)
    if train.accumulation < 1 or train.batch_size % train.accumulation:
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


def _summary(reason, state, record, model):
    return dict(
        reason=reason,
        step=int(state.step),
        parameters=count.num_params(model),
        skipped=record['skipped'],
        validation=record['validation'],
    )
