"""The KL by config: which estimator PPO and GRPO compute, where, and warnings."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post import grpo, ppo
from gptjax.post.experience import describe_kl_pitfall
from gptjax.post.objectives.kl import ESTIMATORS, PITFALLS, RIGHT
from gptjax.train.load_model import Trained
from tests import helpers
from tests.post import starts

# Two replies to one prompt: ln p when they were drawn, ln p now, and ln q.
MASK_BT = np.float32([[0, 1, 1], [1, 1, 0]])
OLD_BT = np.float32([[0, -1, -2], [-1, -3, 0]])
NOW_BT = np.float32([[0, -1.5, -2], [-1, -2.5, 0]])
REFERENCE_BT = np.float32([[0, -2, -1.5], [-2, -2, 0]])
SCORES_B = np.float32([1, 0])


def numpy_kl(name, logprobs_BT):
    d_BT = logprobs_BT - REFERENCE_BT
    values = dict(k1=d_BT, k2=d_BT**2 / 2, k3=np.exp(-d_BT) - 1 + d_BT)
    return values[name] * MASK_BT


def algorithm_of(monkeypatch, section, **policy):
    """The algorithm with log-probabilities in place of parameters."""
    config = starts.bare_config(section)
    config.policy.update(policy, replies=2)
    if section == 'grpo':
        config.grpo.update(advantage='dr_grpo', normaliser='sum')
    logprobs = lambda settings, params, *rest, **options: (params, jnp.zeros((2, 3)))
    monkeypatch.setattr(grpo, 'token_logprobs', logprobs)
    model = SimpleNamespace(compute=lambda params, reference: params)
    module = dict(grpo=grpo, ppo=ppo)[section]
    trained = Trained(helpers.model_settings(), None, None, 0)
    return module.make_algorithm(config, trained, model, None)


@pytest.mark.parametrize(
    ('chosen', 'name'), [('', 'k1'), ('k1', 'k1'), ('k2', 'k2'), ('k3', 'k3')]
)
@pytest.mark.parametrize('section', ['grpo', 'ppo'])
def test_the_estimator_in_the_reward(monkeypatch, section, chosen, name):
    algorithm = algorithm_of(monkeypatch, section, kl_reward=0.5, kl_estimator=chosen)
    batch = dict(weights=MASK_BT, old=OLD_BT, reference=REFERENCE_BT)
    batch['values'] = np.zeros_like(OLD_BT)
    batch, _ = algorithm.compute_advantages(batch, SCORES_B, 0.5)
    penalty_BT = 0.5 * numpy_kl(name, OLD_BT)
    if section == 'grpo':
        scores_B = SCORES_B - penalty_BT.sum(axis=1)
        wanted_BT = (scores_B - scores_B.mean())[:, None] * MASK_BT
        np.testing.assert_allclose(batch['advantages'], wanted_BT, rtol=1e-5)
    else:  # values are 0: A[t] = r[t] + 0.95 A[t + 1]
        first, last = [(0, 1), (1, 0)], [(0, 2), (1, 1)]
        for reply, (one, two) in enumerate(zip(first, last, strict=True)):
            end = SCORES_B[reply] - penalty_BT[two]
            returns = batch['returns'][one], batch['returns'][two]
            wanted = -penalty_BT[one] + 0.95 * end, end
            np.testing.assert_allclose(returns, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ('policy', 'name'),
    [
        (dict(kl_loss=0.5), 'k2'),
        (dict(kl_loss=0.5, kl_estimator='k1'), 'k1'),
        (dict(kl_loss=0.5, kl_estimator='k2'), 'k2'),
        (dict(kl_loss=0.5, kl_estimator='k3'), 'k3'),
        (dict(kl_reward=0.5, kl_estimator='k3'), ''),  # the loss has none
    ],
)
def test_the_estimator_in_the_loss_and_its_gradient(monkeypatch, policy, name):
    algorithm = algorithm_of(monkeypatch, 'grpo', **policy)
    batch = dict(weights=MASK_BT, old=OLD_BT, reference=REFERENCE_BT)
    batch['advantages'] = np.zeros_like(OLD_BT)
    control = dict(coefficient=np.float32(0.5), policy=np.float32(1))
    (total, metrics), gradient_BT = jax.value_and_grad(algorithm.loss_fn, has_aux=True)(
        jnp.array(NOW_BT), batch, None, control
    )
    d_BT = NOW_BT - REFERENCE_BT
    gradients = dict(k1=np.ones_like(d_BT), k2=d_BT, k3=1 - np.exp(-d_BT))
    wanted_BT = 0.5 * MASK_BT * gradients[name] if name else 0 * MASK_BT
    np.testing.assert_allclose(gradient_BT, wanted_BT, rtol=1e-5, atol=1e-7)
    value = float(numpy_kl(name or 'k2', NOW_BT).sum())
    assert float(metrics['kl_loss']) == pytest.approx(value, rel=1e-5)
    assert float(total) == pytest.approx(0.5 * value if name else 0, rel=1e-5)


def test_a_run_warns_of_an_estimator_that_is_wrong_in_its_place():
    def warning(**policy):
        config = starts.bare_config()
        config.policy.update(policy)
        return describe_kl_pitfall(config.policy)

    for place, right in RIGHT.items():
        assert PITFALLS[place].keys() == ESTIMATORS.keys() - {right}
        assert warning(**{place: 0.1}) == ''
        assert warning(**{place: 0.1, 'kl_estimator': right}) == ''
    assert warning() == ''
    assert warning(kl_loss=0.1, kl_estimator='k1') == (
        'warning: policy.kl_estimator=k1 with policy.kl_loss=0.1: its gradient is 0 on '
        'average: it is only noise: use policy.kl_estimator=k2, unless you mean this'
    )
    assert 'KL(reference, policy), as' in warning(kl_loss=0.1, kl_estimator='k3')
    for name in ('k2', 'k3'):
        assert 'use policy.kl_estimator=k1' in warning(kl_reward=1, kl_estimator=name)
