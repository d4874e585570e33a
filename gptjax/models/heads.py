"""Heads that map a hidden vector to a number: a reward, or the value of a critic.

Heads and the critic's network are top-level entries of the parameter dict,

    {'embed': …, 'layers': …, 'reward_head': {'kernel', 'bias'}}  a reward model
    {'embed': …, 'layers': …, 'value_head': …}                    critic 'head'
    {'embed': …, 'layers': …, 'value_head': …, 'critic': {…}}     critic 'network'

so that the optimizer, checkpoints and sharding rules cover them.
"""

import jax
import jax.numpy as jnp

from gptjax.models import gpt

REWARD_HEAD, VALUE_HEAD, CRITIC = 'reward_head', 'value_head', 'critic'
HEADS = (REWARD_HEAD, VALUE_HEAD)


def init_reward_head(settings, key) -> dict:
    """{'reward_head': …} with weights from N(0, 1 / (D + 1)) (Stiennon et al. 2020).

    Hidden vectors are normalised, so the first rewards have a variance of about 1.
    """
    D = settings.width
    kernel_D = jax.random.normal(key, (D,), jnp.float32) / (D + 1) ** 0.5
    return {REWARD_HEAD: dict(kernel=kernel_D, bias=jnp.zeros((), jnp.float32))}


def init_value_head(settings) -> dict:
    """{'value_head': …} of zeros, so that the first values are 0."""
    kernel_D = jnp.zeros((settings.width,), jnp.float32)
    return {VALUE_HEAD: dict(kernel=kernel_D, bias=jnp.zeros((), jnp.float32))}


def head_axes(name: str) -> dict:
    """{name: …} with a tuple of axis names at each leaf."""
    return {name: dict(kernel=('embed',), bias=())}


def split_heads(params) -> tuple[dict, dict]:
    """Separates parameters into (the model, its heads)."""
    model = {name: tree for name, tree in params.items() if name not in HEADS}
    return model, {name: params[name] for name in HEADS if name in params}


def project(head, hidden):
    """float32 numbers (…) of hidden vectors (…, D), computed in float32."""
    # By default TPUs and GPUs round the inputs of a product.
    product = jnp.matmul(
        hidden.astype(jnp.float32), head['kernel'], precision='highest'
    )
    return product + head['bias']


def compute_rewards(head, hidden, last_B):
    """The reward (B,) float32 of each row, from the hidden vector at its last token.

    `hidden` of `GPT.hidden` is (B T, D) or (B, T, D). last_B, int32, is the index of
    the last token of the conversation.
    """
    B = last_B.shape[0]
    hidden_BTD = hidden.reshape(B, -1, hidden.shape[-1])
    last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    return project(head, last_BD)


# ---- the critic of PPO


def with_critic(settings, kind: str, shapes: dict, axes: dict) -> tuple[dict, dict]:
    """(shapes, axes) of the trained parameters, with those of the critic added."""
    network, network_axes = {}, {}
    if kind == 'network':
        network = {CRITIC: gpt.abstract_params(settings)}
        network_axes = {CRITIC: gpt.param_axes(settings)}
    head = jax.eval_shape(lambda: init_value_head(settings))
    return (
        {**shapes, **network, **head},
        {**axes, **network_axes, **head_axes(VALUE_HEAD)},
    )


def without_critic(params) -> dict:
    """The parameters of the model alone."""
    critic = (CRITIC, VALUE_HEAD)
    return {name: tree for name, tree in params.items() if name not in critic}


def init_critic(settings, kind: str, params, reward_params=None) -> dict:
    """A copy of a model's parameters with a critic: a 'head' or a 'network'.

    A network is initialised from the model, with values of 0; or from a reward model,
    whose value before a token is the reward of a reply that ends there (Ouyang et al.
    2022, C.4).
    """
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    network, head = {}, init_value_head(settings)
    if kind == 'network':
        model, model_heads = split_heads(
            params if reward_params is None else reward_params
        )
        network = {CRITIC: copy(model)}
        if reward_params is not None:
            head = {VALUE_HEAD: copy(model_heads[REWARD_HEAD])}
    return {**copy(params), **network, **head}


def compute_values(settings, params, hidden, batch, policy_on=1.0):
    """The critic's value (B, T) float32 of the text before each target.

    `hidden` of `GPT.hidden` is the policy's for this batch. With policy_on=0 no
    gradient flows from the head into the policy.
    """
    if CRITIC in params:
        hidden = gpt.bind(settings, params[CRITIC]).hidden(
            batch['inputs'], batch['segments'], batch['positions']
        )
    else:
        constant = jax.lax.stop_gradient(hidden)
        hidden = constant + policy_on * (hidden - constant)
    values = project(params[VALUE_HEAD], hidden)
    return values.reshape(len(batch['inputs']), -1)
