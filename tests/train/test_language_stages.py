"""Pretraining and fine-tuning: the updates that their configs make, in plain NumPy."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax.core import artifact
from gptjax.data import dataloader, packed_conversations
from gptjax.train import pretrain, sft
from tests.post import by_hand
from tests.post.by_hand import SETTINGS, TOKENIZER, TRAINED

ROWS, ALPHA, RANK = 4, 6.0, 2
TRAIN = dict(batch_size=ROWS, num_steps=2, z_loss=0.02, label_smoothing=0.15)
ROWS_OF_DATA = SimpleNamespace(
    sources=[SimpleNamespace(name='chats', num_rows=8)], fingerprint='of the rows'
)
forward = by_hand.Forward(ROWS)
adapted = by_hand.Forward(
    ROWS, whole=lambda params, base: by_hand.adapt(params, base, ALPHA / RANK)
)


@pytest.fixture(autouse=True)
def without_files(monkeypatch, tmp_path):
    """Random text; rows 0 and 1 are trained on, 2 and 3 are for validation."""

    def batches(first):
        return lambda *args, **more: iter([text(first), text(first + 1)])

    monkeypatch.setattr(artifact, 'require', lambda *_: dict(inputs='of the data'))
    monkeypatch.setattr(dataloader, 'training_batches', batches(0))
    monkeypatch.setattr(dataloader, 'validation_batches', batches(2))
    monkeypatch.setattr(pretrain, 'PackedDataset', lambda folder, split: None)
    monkeypatch.setattr(
        packed_conversations, 'open_training_dataset', lambda *_: ROWS_OF_DATA
    )
    counts = dict(a=dict(bytes=700, predicted_tokens=300))
    manifest = json.dumps(dict(splits=dict(validation=counts)))
    for name in ('prepared', 'dialogue'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'manifest.json').write_text(manifest)


def text(number):
    return by_hand.text_rows(number, ROWS)


@pytest.mark.parametrize(
    'module, train, sections',
    [
        (pretrain, pretrain.pretrain, dict(train=dict(TRAIN, loss_chunk=16))),
        (sft, sft.fine_tune, dict(train=TRAIN, sft=dict(epochs=0))),
        (
            *(sft, sft.fine_tune),
            dict(train=TRAIN, sft=dict(epochs=0), lora=dict(rank=RANK, alpha=ALPHA)),
        ),
    ],
    ids=['pretrain', 'sft', 'lora'],
)
def test_updates_and_validation(module, train, sections, tmp_path, monkeypatch):
    config = by_hand.make_config(**sections)
    lora = 'lora' in sections
    patches = dict(load_run_tokenizer=lambda config, workdir: (TOKENIZER, SETTINGS))
    unchecked = lambda *_: None  # the rows have no files
    patches['training_checks'] = SimpleNamespace(
        check_text=unchecked, check_conversations=unchecked
    )
    if module is sft:
        patches['load_base'] = lambda config, mesh: TRAINED if lora else None
        patches['first_params'] = lambda *_: None
    config, stage = by_hand.capture(
        monkeypatch, module, train, config, tmp_path, **patches
    )
    compute, frozen = (adapted, (TRAINED.params,)) if lora else (forward, ())
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), stage.shapes)
    params = by_hand.moved(zeros if lora else TRAINED.params, 2)
    state, training, steps = by_hand.start(config, stage, params)
    for number in range(2):
        state, metrics = training.update(state, number, {})
        batch, step = text(number), steps[number]
        weights = batch['weights']
        key = jax.random.fold_in(jax.random.key(config.seed), number)  # of dropout
        gradient = compute.gradient(
            step.params,
            batch,
            lambda found, w=weights: by_hand.language_loss(found, w, config.train),
            *frozen,
            key=key,
        )
        by_hand.assert_gradient(step.gradient, gradient)
        found = compute(step.params, batch, *frozen, key=key)
        plain = -np.sum(weights * found['logprob']) / weights.sum()
        assert metrics['loss'] == pytest.approx(plain, rel=1e-4)
    # Validation has no dropout, and reports the plain loss of all tokens.
    total, count = 0.0, 0.0
    for number in (2, 3):
        found = compute(by_hand.host(state.params), text(number), *frozen)
        total -= np.sum(text(number)['weights'] * found['logprob'])
        count += text(number)['weights'].sum()
    found = training.validate(state, 2)
    assert found['loss'] == pytest.approx(total / count, rel=1e-4)
    bits = total / count / math.log(2) * 300 / 700
    assert found['bits_per_byte'] == pytest.approx(bits, rel=1e-4)
