"""Heads of reward and value: results, initial values, shardings."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models import gpt, heads
from gptjax.parallel.sharding import state_shardings
from tests import helpers


def test_reward_is_read_at_the_last_token():
    hidden_BTD = jnp.arange(12, dtype=jnp.float32).reshape(2, 3, 2)
    head = dict(kernel=jnp.array([1.0, 10.0]), bias=jnp.array(0.5))
    # Row 0 ends at token 1, whose vector is (2, 3); row 1 at token 2, (10, 11).
    expected = [2 + 30 + 0.5, 10 + 110 + 0.5]
    last_B = jnp.array([1, 2], jnp.int32)
    for hidden in (hidden_BTD, hidden_BTD.reshape(6, 2)):
        np.testing.assert_array_equal(
            heads.compute_rewards(head, hidden, last_B), expected
        )


def test_accelerators_do_not_round_the_inputs_of_the_product():
    head = dict(kernel=jnp.ones(2), bias=jnp.zeros(()))
    jaxpr = str(jax.make_jaxpr(heads.project)(head, jnp.ones((3, 2), jnp.bfloat16)))
    assert jaxpr.count('HIGHEST') == 2 * jaxpr.count('dot_general') == 2


def compute_values(head, hidden):
    """The values of two rows, with a value head on the policy."""
    batch = dict(inputs=np.zeros((2, len(hidden) // 2)))
    return heads.compute_values(None, {heads.VALUE_HEAD: head}, hidden, batch)


def test_every_token_has_a_value():
    hidden = jnp.arange(12, dtype=jnp.bfloat16).reshape(6, 2)
    values_BT = compute_values(dict(kernel=jnp.array([1.0, 0.0]), bias=0.25), hidden)
    assert values_BT.dtype == jnp.float32
    np.testing.assert_array_equal(values_BT, [[0.25, 2.25, 4.25], [6.25, 8.25, 10.25]])


def test_first_values_are_zero_and_first_rewards_of_unit_variance():
    settings = helpers.model_settings(width=1024)
    hidden = jax.random.normal(jax.random.key(0), (4, 1024))
    head = heads.init_value_head(settings)[heads.VALUE_HEAD]
    np.testing.assert_array_equal(compute_values(head, hidden), np.zeros((2, 2)))
    head = heads.init_reward_head(settings, jax.random.key(1))[heads.REWARD_HEAD]
    # A sum of 1,024 squares of N(0, 1/1025): its standard deviation is 0.044.
    assert abs(float(jnp.sum(head['kernel'] ** 2)) - 1) < 0.2


def test_split_undoes_joining():
    settings = helpers.model_settings()
    model = gpt.init_params(settings, jax.random.key(0))
    both = dict(heads.init_reward_head(settings, jax.random.key(1)))
    both.update(heads.init_value_head(settings))
    assert heads.split_heads(dict(model, **both)) == (model, both)
    assert heads.split_heads(model) == (model, {})


def test_heads_are_sharded_by_width():
    mesh = helpers.mesh_of(fsdp=8)
    settings = helpers.model_settings(width=32)
    params, axes = heads.init_value_head(settings), heads.head_axes(heads.VALUE_HEAD)
    shardings = state_shardings(params, axes, mesh)[heads.VALUE_HEAD]
    assert shardings['kernel'].spec == jax.sharding.PartitionSpec('fsdp')
    assert shardings['bias'].spec == jax.sharding.PartitionSpec()
    assert shardings['kernel'].shard_shape((32,)) == (4,)
