"""Freezing the policy during the warm-up, and the dtype of the reference."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from gptjax.optim.optimizer import ema_params, make_optimizer
from gptjax.post.policy_model import apply_compute_settings, freeze_policy
from gptjax.train.load_model import Trained
from tests import helpers


@pytest.mark.parametrize('kind', ['value_head', 'critic'])
def test_weight_decay_does_not_change_a_frozen_policy(kind):
    config = common.base()
    config.optim.update(name='adamw', learning_rate=0.1, schedule='constant')
    config.optim.update(weight_decay=0.5, warmup_steps=0, ema=0.9)
    ones = dict(kernel=jnp.full((2, 2), 0.3))
    params = {'embed': ones, kind: ones}
    gradients = {'embed': dict(kernel=jnp.zeros((2, 2))), kind: ones}
    after = {}
    for frozen in (False, True):
        optimizer = make_optimizer(config, params)
        optimizer = freeze_policy(optimizer) if frozen else optimizer
        state = optimizer.init(params)
        updates, state = optimizer.update(gradients, state, params)
        new, average = optax.apply_updates(params, updates), ema_params(state, params)
        after[frozen] = [new['embed'], average['embed'], new[kind], average[kind]]
    for tree in after[True][:2]:
        np.testing.assert_array_equal(tree['kernel'], params['embed']['kernel'])
    assert np.all(after[False][0]['kernel'] < 0.3)
    # The critic is trained in the same way as without freezing.
    for tree, unfrozen in zip(after[True][2:], after[False][2:], strict=True):
        np.testing.assert_array_equal(tree['kernel'], unfrozen['kernel'])
        assert np.all(tree['kernel'] < 0.3)


def test_the_reference_has_the_dtype_of_the_run():
    config = common.base()
    config.model.update(dtype='bfloat16', remat='full')
    settings = helpers.model_settings(num_layers=1)
    found = apply_compute_settings(config, Trained(settings, None, None, 0)).settings
    assert (found.dtype, found.remat) == ('bfloat16', 'full')
    assert found.width == settings.width
