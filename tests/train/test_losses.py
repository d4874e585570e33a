"""The loss of a language model: sums over tokens that can be added up."""

import jax
import numpy as np
import pytest

from gptjax.models import gpt
from gptjax.train.losses import make_language_loss
from tests import helpers


@pytest.fixture(scope='module')
def model():
    """(settings, parameters, batch)."""
    settings = helpers.model_settings()
    params = gpt.init_params(settings, jax.random.key(0))
    return settings, params, helpers.packed_batch(batch=4)


def losses(model, batch, key=None, **train):
    settings, params, _ = model
    config = helpers.config()
    config.train.update(train)
    loss, metrics = jax.jit(make_language_loss(settings, config.train))(
        params, batch, key
    )
    return float(loss), {name: float(value) for name, value in metrics.items()}


def test_parts_add_up(model):
    batch = model[2]
    whole = losses(model, batch)
    parts = [
        losses(model, {name: value[part] for name, value in batch.items()})
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert sum(p[0] for p in parts) == pytest.approx(whole[0], rel=1e-6)
    assert sum(p[1]['tokens'] for p in parts) == whole[1]['tokens']


def test_without_weight_there_is_no_loss(model):
    batch = dict(model[2], weights=np.zeros_like(model[2]['weights']))
    assert losses(model, batch) == (0.0, dict(loss=0.0, tokens=0.0))


def test_dropout_needs_a_key_and_a_rate(model):
    batch, key = model[2], jax.random.key(1)
    assert losses(model, batch, key) == losses(model, batch)
    settings = helpers.model_settings(residual_dropout=0.5)
    dropping = (settings, *model[1:])
    assert losses(dropping, batch)[0] == pytest.approx(losses(model, batch)[0])
    assert losses(dropping, batch, key)[0] != pytest.approx(losses(model, batch)[0])
