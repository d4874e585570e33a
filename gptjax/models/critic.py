"""What PPO trains beside a policy: a value head, and maybe a network of its own.

Further top-level entries of the parameter dict, as other heads are:

    {'embed': …, 'layers': …, 'value_head': …}                  critic 'head'
    {'embed': …, 'layers': …, 'value_head': …, 'critic': {…}}   critic 'network'
"""

import jax
import jax.numpy as jnp

from gptjax.models import gpt, heads

KINDS = ('head', 'network')
NETWORK = 'critic'


def beside(settings, kind: str, shapes: dict, axes: dict) -> tuple[dict, dict]:
    """(shapes, axes) of what else is trained, with the critic's."""
    network, its = {}, {}
    if kind == 'network':
        network = {NETWORK: gpt.abstract_params(settings)}
        its = {NETWORK: gpt.param_axes(settings)}
    head = jax.eval_shape(lambda: heads.init_value(settings))
    return {**shapes, **network, **head}, {**axes, **its, **heads.axes(heads.VALUE)}


def init(settings, kind: str, params, reward=None) -> dict:
    """A copy of a model's parameters with a critic.

    A network begins as another copy of the model, and values all at 0; or as a reward
    model, and values what stands before a token as if the reply ended there (Ouyang et
    al. 2022, C.4).

    Args:
        settings: of the model.
        kind: in KINDS.
        params: of the model.
        reward: a reward model's, for a network.
    """
    copied = lambda its: jax.tree.map(jnp.copy, its)
    network, head = {}, heads.init_value(settings)
    if kind == 'network':
        model, its = heads.split(params if reward is None else reward)
        network = {NETWORK: copied(model)}
        if reward is not None:
            head = {heads.VALUE: copied(its[heads.REWARD])}
    return {**copied(params), **network, **head}


def policy_of(params) -> dict:
    """The model's parameters, without a critic's."""
    return {n: its for n, its in params.items() if n not in (NETWORK, heads.VALUE)}


def values(settings, params, hidden, batch, policy_on=1.0):
    """V of what stands before each target, (B, T) float32.

    Args:
        settings: of the model.
        params: with a critic.
        hidden: of the policy, from `GPT.hidden`.
        batch: what they are of.
        policy_on: 0: no gradient flows below a head on the policy.
    """
    if NETWORK in params:
        hidden = gpt.bind(settings, params[NETWORK]).hidden(
            batch['inputs'], batch['segments'], batch['positions']
        )
    else:
        still = jax.lax.stop_gradient(hidden)
        hidden = still + policy_on * (hidden - still)
    return heads.values(params[heads.VALUE], hidden, len(batch['inputs']))
