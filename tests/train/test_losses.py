"""The loss of a language model: sums over tokens that can be added up."""

import jax
import numpy as np
import pytest

from gptjax.models import gpt
from gptjax.parallel.sharding import batch_sharding
from gptjax.train.losses import make_language_loss
from tests import helpers


@pytest.fixture(scope='module')
def model():
    """(settings, parameters, batch)."""
    settings = helpers.model_settings()
    params = gpt.init_params(settings, jax.random.key(0))
    return settings, params, helpers.packed_batch(batch=4)


def losses(model, batch, key=None, neftune_alpha=0.0, **train):
    settings, params, _ = model
    config = helpers.config()
    config.train.update(train)
    loss_fn = make_language_loss(settings, config.train, neftune_alpha)
    loss, metrics = jax.jit(loss_fn)(params, batch, key)
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


def test_neftune_is_a_function_of_its_key_and_off_in_validation(model):
    batch, key = model[2], jax.random.key(1)
    noisy = losses(model, batch, key, neftune_alpha=5.0)
    assert noisy == losses(model, batch, key, neftune_alpha=5.0)
    assert noisy != losses(model, batch, jax.random.key(2), neftune_alpha=5.0)
    assert noisy[0] != pytest.approx(losses(model, batch)[0], rel=1e-5)
    assert losses(model, batch, None, neftune_alpha=5.0) == losses(model, batch)


def test_neftune_is_the_same_on_every_mesh(model):
    settings, params, batch = model
    loss_fn = make_language_loss(settings, helpers.config().train, 5.0)
    found = []
    for sizes in (dict(), dict(fsdp=2, tensor=2, context=2)):
        mesh = helpers.mesh_of(**sizes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(batch, batch_sharding(mesh))
            found.append(float(jax.jit(loss_fn)(params, placed, jax.random.key(1))[0]))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_label_smoothing_is_not_in_the_validation_loss(model):
    smooth, plain = (
        losses(model, model[2], label_smoothing=0.2),
        losses(model, model[2]),
    )
    assert smooth[1] == plain[1] and smooth[0] != pytest.approx(plain[0], rel=1e-4)
