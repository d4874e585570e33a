"""Supervised fine-tuning on conversations, of all parameters or by LoRA."""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.data import dataloader, packed_conversations, training_checks
from gptjax.data.augmentation.augmentations import (
    augmentation_identity,
    check_augmentations,
)
from gptjax.data.augmentation.augmented_dataset import augment_dataset
from gptjax.models import lora, parameter_count, settings
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import batch_sharding
from gptjax.train import config_checks, loop
from gptjax.train.init_from import first_params, read_start_config
from gptjax.train.load_model import (
    load_base,
    load_run_tokenizer,
    model_identity,
    trained_shapes,
    uses_lora,
)
from gptjax.train.loop import Command, Setup, Stage, Training, fit
from gptjax.train.losses import make_language_loss
from gptjax.train.pretrain import documents_of, make_validation, throughput


def fine_tune(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/dialogue, from `start.run` or RUN's newest checkpoint.

    The loss is that of pretraining, over the assistant's tokens and the tokens that end
    its messages. Under LoRA the weights of `start.run` are frozen; the matrices A and B
    are trained, and checkpoints contain only these.
    """
    # ---- model --------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer, model = load_run_tokenizer(config, workdir)
    rows = packed_conversations.open_training_dataset(config, workdir)
    if not run_dir.has_checkpoint(workdir):
        template = config.chat.template
        training_checks.check_conversations(rows, tokenizer, template, config.seed)
    config = with_steps(config, rows)
    loss_fn = make_language_loss(model, config.train, config.sft.neftune_alpha)
    base = load_base(config, mesh)
    frozen = () if base is None else (base.params,)
    if base is not None:
        loss_fn = make_adapted_loss(loss_fn, lora.lora_scale(config.lora))
    shapes, axes = trained_shapes(config, model)
    num_params = parameter_count.size(shapes)

    # ---- data ---------------------------------------------------------------
    def make_training(setup: Setup) -> Training:
        print_once(
            f'model: {num_params:,} of {parameter_count.num_params(model):,} '
            f'parameters are trained, {config.train.num_steps:,} steps of '
            f'{config.train.batch_size} rows of {config.data.context} tokens'
        )
        batches = dataloader.training_batches(
            augment_dataset(rows, config, tokenizer),
            config.seed,
            config.train.batch_size,
            batch_sharding(mesh),
            start_step=int(setup.state.step),
        )
        return Training(
            update=lambda state, step, _: setup.step(state, next(batches), *frozen),
            validate=make_validation(
                config, workdir / 'dialogue', loss_fn, mesh, *frozen
            ),
            documents_of=partial(documents_of, config, workdir),
            **throughput(config, model, mesh),
        )

    stage = Stage(
        name='model',
        mesh=mesh,
        shapes=shapes,
        axes=axes,
        loss_fn=loss_fn,
        init=lambda: first_params(config, model, base, mesh),
        identity=dict(
            model_identity(tokenizer, base),
            data=rows.fingerprint,
            **augmentation_identity(config.data),
        ),
        make_training=make_training,
    )
    return fit(config, workdir, stage).summary(parameters=num_params)


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot train, before any data is built."""
    config_checks.check_config(config)
    config_checks.check_start_template(config)
    check_augmentations(config.data, dialogue=True)
    trained_shapes(config, settings.resolve(config.model, config.tokenizer.vocab_size))
    if uses_lora(config) and config.chat.template == 'turns':
        if read_start_config(Path(config.start.run)).chat.template == 'text':
            print_once(
                f'lora.rank={config.lora.rank}: LoRA cannot train the special tokens '
                f'of chat.template=turns, which {config.start.run} has never seen: '
                'start from a fine-tuned run, or use --config.chat.template=text'
            )


def with_steps(config: ConfigDict, rows) -> ConfigDict:
    """The config with `train.num_steps` for `sft.epochs` passes over conversations.

        steps = epochs rows / (batch_size (1 - pretraining_share))

    With epochs=0, `train.num_steps` stays. The warm-up is at most a tenth of the steps.
    """
    num_rows = sum(
        source.num_rows
        for source in rows.sources
        if not source.name.startswith('pretraining/')
    )
    num_rows /= 1 - config.sft.pretraining_share
    return loop.with_steps(config, config.sft.epochs, num_rows, warmup_fraction=10)


def make_adapted_loss(loss_fn, scale: float):
    """`(params, batch, key, base) -> (loss, metrics)`, where `params` are A and B."""

    def adapted(params, batch, key, base):
        return loss_fn(lora.adapt(base, params, scale), batch, key)

    return adapted


COMMAND = Command(
    fine_tune,
    check_config,
    artifacts=lambda config: (packed_conversations.DIALOGUE,),
    sections=('sft', 'start', 'dialogue'),
    example='configs/sft.py',
    unit='bits per byte of replies',
)
