"""Heads that read a number from hidden vectors: the reward's and the value's.

A head is a further top-level entry of the parameter dict, beside the model's own:

    {'embed': …, 'layers': …, 'final_norm': …, 'reward_head': {'kernel', 'bias'}}

so one optimizer, one checkpoint and one set of sharding rules hold all of them.
"""

import jax
import jax.numpy as jnp

REWARD, VALUE = 'reward_head', 'value_head'
HEADS = (REWARD, VALUE)


def init_reward(settings, key) -> dict:
    """{'reward_head': …}: weights of N(0, 1 / (D + 1)) (Stiennon et al. 2020).

    Final hidden vectors are normalised, so the first scores have a variance of about
    one whatever the width.
    """
    D = settings.width
    kernel_D = jax.random.normal(key, (D,), jnp.float32) / (D + 1) ** 0.5
    return {REWARD: dict(kernel=kernel_D, bias=jnp.zeros((), jnp.float32))}


def init_value(settings) -> dict:
    """{'value_head': …}, zeros: the first values are 0."""
    kernel_D = jnp.zeros((settings.width,), jnp.float32)
    return {VALUE: dict(kernel=kernel_D, bias=jnp.zeros((), jnp.float32))}


def axes(name: str) -> dict:
    """{name: …} with a tuple of axis names at each leaf, as `gpt.param_axes`."""
    return {name: dict(kernel=('embed',), bias=())}


def split(params) -> tuple[dict, dict]:
    """(the model's parameters, the heads) of parameters with or without heads."""
    model = {name: its for name, its in params.items() if name not in HEADS}
    return model, {name: params[name] for name in HEADS if name in params}


def project(head, hidden):
    """float32 numbers (…) of hidden vectors (…, D), computed in float32."""
    # By default TPUs and GPUs would round what enters the product.
    product = jnp.matmul(
        hidden.astype(jnp.float32), head['kernel'], precision='highest'
    )
    return product + head['bias']


def rewards(head, hidden, last_B):
    """One reward a row, (B,) float32: of the hidden vector at the row's last token.

    Args:
        head: of `init_reward`.
        hidden: (B T, D) or (B, T, D), from `GPT.hidden`.
        last_B: int32, the place of the token that ends the row's conversation.
    """
    B = last_B.shape[0]
    hidden_BTD = hidden.reshape(B, -1, hidden.shape[-1])
    last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    return project(head, last_BD)


def values(head, hidden, batch_size: int):
    """A value at each token, (B, T) float32.

    Args:
        head: of `init_value`.
        hidden: (B T, D) or (B, T, D), from `GPT.hidden`.
        batch_size: B.
    """
    return project(head, hidden).reshape(batch_size, -1)
