"""Supervised fine-tuning: conversations to a model that answers, in full or by LoRA."""

import contextlib
import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax import progress
from gptjax.data import pipeline, turns
from gptjax.errors import UserError
from gptjax.models import count, lora, settings
from gptjax.optim.build import make_optimizer
from gptjax.optim.schedules import make_schedule
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import check, loop
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.hardware import peak_tflops
from gptjax.train.load import adapts, fingerprint_of, trained_part
from gptjax.train.losses import make_language_loss
from gptjax.train.pretrain import documents_of, make_validation, say
from gptjax.train.start import load_start
from gptjax.train.state import abstract_state, create_state
from gptjax.train.step import make_train_step


def fine_tune(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/dialogue, from `start.run` or RUN's newest checkpoint.

    The loss is that of pretraining over what the assistant says and the ends of its
    turns. Under LoRA the weights of `start.run` stay as they are, and A and B are
    what trains and what checkpoints hold.

    Args:
        config: adopted from the run that it starts from; see `start.adopt`.
        workdir: RUN.

    Returns:
        A summary: why it ended and by which signal, steps, parameters that were
        trained, the newest validation.

    Raises:
        UserError: the config does not fit the run's checkpoints, or itself.
    """
    # ---- model ------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    model = settings.resolve(config.model, tokenizer.vocab_size)
    rows = turns.training_rows(config, workdir)
    config = with_steps(config, rows)
    loss_fn = make_language_loss(model, config.train)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # ---- state --------------------------------------------------------
        identity, frozen, base = dict(tokenizer=tokenizer.fingerprint), (), None
        if adapts(config):
            base = load_start(config, mesh)
            identity['start'] = fingerprint_of(base)
            frozen = (base.params,)
            loss_fn = make_adapted_loss(loss_fn, lora.scale_of(config.lora))
        shapes, axes = trained_part(config, model)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, axes, mesh)
        checkpoints = Checkpoints(
            workdir / 'checkpoints',
            identity=identity,
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
        # Whatever happens, what is being saved is saved to its end.
        stack.enter_context(contextlib.closing(checkpoints))
        with progress.bar('reading the newest checkpoint', 0):
            restored = checkpoints.restore(abstract, say=say)
        if restored is None:
            state = _first_state(config, model, mesh, base, optimizer, abstract)
            record = loop.new_record(config)
        else:
            state, record = restored
            if record['reason'] is not None:  # it had come to its end
                return _summary(record['reason'], state, record, shapes)
            say(f'model: going on from the checkpoint of step {int(state.step):,}')

        # ---- data and step ------------------------------------------------
        schedule = jax.jit(make_schedule(config.optim, config.train.num_steps))
        step = make_train_step(
            loss_fn, optimizer, abstract, config.train.accumulation, config.seed
        )
        task = loop.Task(
            step=lambda state, batch: step(state, batch, *frozen),
            batches=lambda step: pipeline.batches_of(
                rows,
                config.seed,
                config.train.batch_size,
                batch_sharding(mesh),
                start_step=step,
            ),
            validate=make_validation(
                config, workdir / 'dialogue', loss_fn, mesh, *frozen
            ),
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
            f'model: {_size(shapes):,} of {count.num_params(model):,} parameters are '
            f'trained, {config.train.num_steps:,} steps of {config.train.batch_size} '
            f'rows of {config.data.context} tokens'
        )
        outcome = loop.run(config, workdir, task, state, record, checkpoints)
    return _summary(
        outcome.reason, outcome.state, outcome.record, shapes, outcome.signal
    )


def check_sft(config: ConfigDict) -> None:
    """Refuses, before minutes go into data, a config that cannot train."""
    check.check_config(config)
    _check_epochs(config.sft.epochs)
    turns.check_share(config.sft.pretraining_share)
    trained_part(config, settings.resolve(config.model, config.tokenizer.vocab_size))


def with_steps(config: ConfigDict, rows) -> ConfigDict:
    """The config with `train.num_steps` for `sft.epochs` passes over conversations.

        steps = epochs rows / (batch_size (1 - pretraining_share))

    Where that is little, the warm-up is a tenth of it at most.

    Args:
        config: of the run; epochs 0: its `train.num_steps` stay.
        rows: of `turns.training_rows`.
    """
    epochs, share = config.sft.epochs, config.sft.pretraining_share
    _check_epochs(epochs)
    config = config.copy_and_resolve_references()
    if epochs:
        own = sum(s.num_rows for s in rows.sources if not s.name.startswith('pretrain'))
        steps = epochs * own / (config.train.batch_size * (1 - share))
        config.train.num_steps = max(1, math.ceil(steps))
        warmup = min(config.optim.warmup_steps, config.train.num_steps // 10)
        config.optim.warmup_steps = warmup
    return config


def _check_epochs(epochs):
    if not 0 <= epochs < math.inf:
        raise UserError(f'sft.epochs={epochs}: use a positive number, or 0')


def make_adapted_loss(loss_fn, scale: float):
    """`(params, batch, key, base) -> (loss, metrics)` of A and B beside the base."""

    def adapted(params, batch, key, base):
        return loss_fn(lora.adapt(base, params, scale), batch, key)

    return adapted


def _first_state(config, model, mesh, base, optimizer, abstract):
    """The state of step 0: the earlier run's weights, or new A and B."""
    with progress.bar('making the model', 0):
        if base is not None:
            return create_state(
                lambda key: lora.init_params(model, config.lora, key),
                jax.random.key(config.seed),
                optimizer,
                abstract,
            )
        start = load_start(config, mesh)
        # Nothing is drawn: what there is to begin with is passed in.
        return create_state(lambda params: params, start.params, optimizer, abstract)


def _size(shapes) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _summary(reason, state, record, shapes, signal=None):
    return dict(
        reason=reason,
        signal=signal,
        step=int(state.step),
        parameters=_size(shapes),
        skipped=record['skipped'],
        validation=record['validation'],
    )
