"""The trained parameters of a policy: all weights or LoRA's, and PPO's critic.

Without LoRA the policy is a copy of the model of `start.run`, which is the reference.
With LoRA the policy and the reference share one copy of these weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core.console import UserError
from gptjax.models import heads, lora
from gptjax.optim.optimizer import EmaState
from gptjax.train.load_model import Trained, trained_shapes, uses_lora


def apply_compute_settings(config: ConfigDict, trained: Trained) -> Trained:
    """The model with the dtype, remat and unroll of `config.model`.

    In another dtype the reference would differ from an untrained policy.
    """
    computed = {name: config.model[name] for name in ('dtype', 'remat', 'unroll')}
    settings = FrozenConfigDict({**trained.settings.to_dict(), **computed})
    return trained._replace(settings=settings)


class PolicyModel(NamedTuple):
    """Maps the trained parameters and the reference to parameters of a model.

    shapes, axes: of the trained parameters.
    init: `(reference, key[, reward model])` → trained parameters. The reward model's
        parameters initialise PPO's critic.
    compute: `(trained, reference)` → parameters for `gpt.bind`, inside a jitted
        function, without a second copy of the weights.
    merge: `(trained, reference)` → arrays for the engine.
    """

    shapes: Any
    axes: Any
    init: Callable
    compute: Callable
    merge: Callable


def freeze_policy(optimizer: optax.GradientTransformation):
    """The same optimizer, but the policy and its moving average stay constant.

    Zero gradients are not enough: weight decay would still change the policy.
    """

    def with_policy_of(tree, before):
        return {**tree, **heads.without_critic(before)}

    def update(gradients, state, params):
        updates, new = optimizer.update(gradients, state, params)
        zeros = jax.tree.map(jnp.zeros_like, heads.without_critic(updates))
        new = [
            inner._replace(average=with_policy_of(inner.average, old.average))
            if isinstance(inner, EmaState)
            else inner
            for inner, old in zip(new, state, strict=True)
        ]
        return with_policy_of(updates, zeros), tuple(new)

    return optax.GradientTransformation(optimizer.init, update)


def make_policy_model(config: ConfigDict, settings: FrozenConfigDict) -> PolicyModel:
    """The policy model for the config sections `lora` and `ppo`."""
    shapes, axes = trained_shapes(config, settings)
    kind = config.ppo.critic if 'ppo' in config else None
    if not uses_lora(config):

        def init(reference, key, reward=None):
            del key
            if kind:
                return heads.init_critic(settings, kind, reference, reward)
            return jax.tree.map(jnp.copy, reference)

        whole = lambda params, reference: heads.without_critic(params)
        return PolicyModel(shapes, axes, init, compute=whole, merge=whole)

    if kind == 'network':
        raise UserError(
            f'ppo.critic=network and lora.rank={config.lora.rank}: all parameters of a '
            'critic network are trained: use ppo.critic=head, or lora.rank=0'
        )
    scale = lora.lora_scale(config.lora)

    def init_adapters(reference, key):
        del reference
        head = heads.init_critic(settings, kind, {}) if kind else {}
        return {**lora.init_params(settings, config.lora, key), **head}

    return PolicyModel(
        shapes,
        axes,
        init_adapters,
        compute=lambda params, reference: lora.adapt(
            reference, heads.without_critic(params), scale
        ),
        merge=jax.jit(
            lambda params, reference: lora.merge(
                reference, heads.without_critic(params), scale
            )
        ),
    )
