"""Supervised fine-tuning: conversations to a model that answers, in full or by LoRA."""

import contextlib
import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.data import dataloader, packed_conversations
from gptjax.models import lora, parameter_count, settings
from gptjax.optim.optimizer import make_learning_rate, make_optimizer
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import begin, config_checks, loop
from gptjax.train.epochs import with_steps as steps_of_epochs
from gptjax.train.init_from import config_of, load_start
from gptjax.train.load_model import adapts, identity_of, load_base, trained_part
from gptjax.train.losses import make_language_loss
from gptjax.train.peak_flops import peak_tflops
from gptjax.train.pretrain import documents_of, make_validation
from gptjax.train.state import abstract_state
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
    rows = packed_conversations.training_rows(config, workdir)
    config = with_steps(config, rows)
    loss_fn = make_language_loss(model, config.train)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # ---- state --------------------------------------------------------
        base, frozen = load_base(config, mesh), ()
        if base is not None:
            frozen = (base.params,)
            loss_fn = make_adapted_loss(loss_fn, lora.scale_of(config.lora))
        shapes, axes = trained_part(config, model)
        parameters = parameter_count.size(shapes)
        optimizer = make_optimizer(config, shapes)
        abstract = abstract_state(shapes, optimizer, axes, mesh)
        identity = dict(identity_of(tokenizer, base), data=rows.fingerprint)
        checkpoints = stack.enter_context(begin.opened(config, workdir, identity))
        restored = begin.newest(checkpoints, abstract, 'model')
        if restored is None:
            start = base or load_start(config, mesh)
            state = begin.first_state(config, model, start, optimizer, abstract)
            restored = state, loop.new_record(config)
        state, record = restored
        if record['reason'] is not None:  # it had come to its end
            return loop.Outcome(state, record).summary(parameters=parameters)

        # ---- data and step ------------------------------------------------
        step = make_train_step(
            loss_fn, optimizer, abstract, config.train.accumulation, config.seed
        )
        task = loop.Task(
            step=lambda state, batch: step(state, batch, *frozen),
            batches=lambda step: dataloader.batches_of(
                rows,
                config.seed,
                config.train.batch_size,
                batch_sharding(mesh),
                start_step=step,
            ),
            validate=make_validation(
                config, workdir / 'dialogue', loss_fn, mesh, *frozen
            ),
            learning_rate=make_learning_rate(config),
            flops_per_token=parameter_count.train_flops_per_token(
                model, config.data.context
            ),
            peak_flops=peak_tflops(config.train.peak_tflops) * 1e12 * mesh.size,
            documents_of=lambda step: documents_of(config, workdir, step),
        )

        # ---- train --------------------------------------------------------
        print_once(
            f'model: {parameters:,} of {parameter_count.num_params(model):,} '
            f'parameters are trained, {config.train.num_steps:,} steps of '
            f'{config.train.batch_size} rows of {config.data.context} tokens'
        )
        outcome = loop.run(config, workdir, task, state, record, checkpoints)
    return outcome.summary(parameters=parameters)


def check_sft(config: ConfigDict) -> None:
    """Refuses, before minutes go into data, a config that cannot train."""
    config_checks.check_config(config)
    _check_epochs(config.sft.epochs)
    packed_conversations.check_share(config.sft.pretraining_share)
    trained_part(config, settings.resolve(config.model, config.tokenizer.vocab_size))
    if adapts(config) and config.chat.template == 'turns':
        if config_of(Path(config.start.run)).chat.template == 'text':
            print_once(
                f'lora.rank={config.lora.rank}: adapters cannot teach the special '
                f'tokens of turns, which {config.start.run} has never seen: better '
                'start from a fine-tuned run, or add --config.chat.template=text'
            )


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
    own = [s for s in rows.sources if not s.name.startswith('pretraining/')]
    num_rows = sum(source.num_rows for source in own)
    return steps_of_epochs(config, epochs, num_rows / (1 - share), warmup_part=10)


def _check_epochs(epochs):
    if not 0 <= epochs < math.inf:
        raise UserError(f'sft.epochs={epochs}: use a positive number, or 0')


def make_adapted_loss(loss_fn, scale: float):
    """`(params, batch, key, base) -> (loss, metrics)` of A and B beside the base."""

    def adapted(params, batch, key, base):
        return loss_fn(lora.adapt(base, params, scale), batch, key)

    return adapted
