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


def test_sums_of_minus_log_probabilities(model):
    settings, params, batch = model
    logits = jax.jit(lambda p, b: gpt.bind(settings, p)(*b))(
        params, (batch['inputs'], batch['segments'], batch['positions'])
    )
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, batch['targets'][..., None], -1)[..., 0]
    loss, metrics = losses(model, batch)
    assert loss == pytest.approx(-(chosen * batch['weights']).sum(), rel=1e-5)
    assert metrics == dict(loss=loss, tokens=batch['weights'].sum())


def test_parts_add_up(model):
    batch = model[2]
    whole = losses(model, batch)
    parts = [
        losses(model, {name: value[part] for name, value in batch.items()})
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert sum(p[0] for p in parts) == pytest.approx(whole[0], rel=1e-6)
    assert sum(p[1]['tokens'] for p in parts) == whole[1]['tokens']


@pytest.mark.parametrize('train', (dict(z_loss=0.1), dict(label_smoothing=0.2)))
def test_what_is_reported_is_the_plain_loss(train, model):
    batch = model[2]
    plain = losses(model, batch)
    loss, metrics = losses(model, batch, **train)
    assert loss > 1.001 * plain[0]
    assert metrics['loss'] == pytest.approx(plain[0], rel=1e-6)


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
