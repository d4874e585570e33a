"""Pretraining: trains a language model on packed text."""

import itertools
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import artifact, run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import dataloader, ledger, training_checks
from gptjax.data.augmentation.augmentations import (
    augmentation_identity,
    check_augmentations,
)
from gptjax.data.augmentation.augmented_dataset import augment_dataset
from gptjax.data.documents import DOCUMENTS
from gptjax.data.packed_dataset import PackedDataset
from gptjax.data.packed_documents import PACKED_DOCUMENTS
from gptjax.models import gpt, parameter_count
from gptjax.optim.optimizer import ema_params
from gptjax.optim.parametrization import scale_initial
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.train_tokenizer import TOKENIZER
from gptjax.train import config_checks
from gptjax.train.init_from import float32_params, load_start
from gptjax.train.load_model import load_run_tokenizer, uses_lora
from gptjax.train.loop import Command, Setup, Stage, Training, fit
from gptjax.train.losses import make_language_loss
from gptjax.train.peak_flops import peak_tflops


def pretrain(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/prepared, and resumes from RUN's newest checkpoint.

    The weights are initialised at random or, with a config section `start`, from an
    earlier run (continued pretraining).
    """
    # ---- model --------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer, model = load_run_tokenizer(config, workdir)
    num_params = parameter_count.num_params(model)
    loss_fn = make_language_loss(model, config.train)
    prepared = workdir / 'prepared'
    if not run_dir.has_checkpoint(workdir):
        rows = PackedDataset(prepared, 'train')
        training_checks.check_text(rows, tokenizer, config.seed)

    def init():
        if 'start' in config:
            return float32_params, load_start(config, mesh).params
        init_params = lambda key: scale_initial(config, gpt.init_params(model, key))
        return init_params, jax.random.key(config.seed)

    # ---- data ---------------------------------------------------------------
    def make_training(setup: Setup) -> Training:
        print_once(
            f'model: {num_params:,} parameters on {mesh.size} '
            f'{"device" if mesh.size == 1 else "devices"}, '
            f'{config.train.batch_size * config.data.context:,} tokens a step'
        )
        batches = dataloader.training_batches(
            augment_dataset(PackedDataset(prepared, 'train'), config, tokenizer),
            config.seed,
            config.train.batch_size,
            batch_sharding(mesh),
            start_step=int(setup.state.step),
        )
        return Training(
            update=lambda state, step, record: setup.step(state, next(batches)),
            validate=make_validation(config, prepared, loss_fn, mesh),
            documents_of=partial(documents_of, config, workdir),
            **throughput(config, model, mesh),
        )

    stage = Stage(
        name='model',
        mesh=mesh,
        shapes=gpt.abstract_params(model),
        axes=gpt.param_axes(model),
        loss_fn=loss_fn,
        init=init,
        identity=dict(
            tokenizer=tokenizer.fingerprint,
            data=artifact.require(prepared, 'prepare')['inputs'],
            **augmentation_identity(config.data),
        ),
        make_training=make_training,
    )
    return fit(config, workdir, stage).summary(parameters=num_params)


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot train, before any data is built."""
    config_checks.check_config(config)
    check_augmentations(config.data)
    if uses_lora(config):
        raise UserError(
            f'lora.rank={config.lora.rank}: `pretrain` trains all parameters: use '
            'lora.rank=0, or the stage `sft`'
        )


def documents_of(config: ConfigDict, workdir: Path, step: int) -> list[str]:
    """The ids of the documents in the batch of a step, without repeats."""
    rows = ledger.batch_documents(config, workdir, step)
    return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def throughput(config: ConfigDict, model: FrozenConfigDict, mesh: Mesh) -> dict:
    """The fields of `Training` from which the loop computes MFU."""
    return dict(
        flops_per_token=parameter_count.train_flops_per_token(
            model, config.data.context
        ),
        peak_flops=peak_tflops(config.train.peak_tflops) * 1e12 * mesh.size,
    )


def make_validation(config: ConfigDict, prepared: Path, loss_fn, mesh, *frozen):
    """Returns `validate` of `Training`, with `loss` and `bits_per_byte`.

    Validation reads packed examples, where a document that continues in the next
    example loses its context. It is a quick estimate; `eval` measures whole documents.
    For RUN/dialogue only the tokens and bytes of the assistant count. `frozen` are
    further arguments of `loss_fn`.
    """
    manifest = storage.read_json(prepared / 'manifest.json')
    sources = manifest['splits']['validation'].values()
    bytes_per_token = sum(s['bytes'] for s in sources) / sum(
        s['predicted_tokens'] for s in sources
    )
    evaluate = jax.jit(
        lambda params, batch, *frozen: loss_fn(params, batch, None, *frozen)[1]
    )

    def validate(state, done):
        del done
        params = ema_params(state.opt_state, state.params)
        sums = np.zeros(2)
        batches = dataloader.validation_batches(
            PackedDataset(prepared, 'validation'),
            config.train.batch_size,
            batch_sharding(mesh),
        )
        for number, batch in enumerate(batches):
            if number == config.train.eval_batches > 0:
                break
            metrics = evaluate(params, batch, *frozen)
            sums += float(metrics['loss']), float(metrics['tokens'])
        loss = sums[0] / sums[1]
        return dict(loss=loss, bits_per_byte=loss / math.log(2) / bytes_per_token)

    return validate


def pretraining_artifacts(config: ConfigDict) -> tuple:
    """What is built before pretraining; with `start.run`, its tokenizer is used."""
    tokenizer = () if 'start' in config else (TOKENIZER,)
    return DOCUMENTS, *tokenizer, PACKED_DOCUMENTS


COMMAND = Command(pretrain, check_config, pretraining_artifacts, unit='bits per byte')
