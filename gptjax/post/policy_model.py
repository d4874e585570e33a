"""What a policy trains, and how a model is made of it: whole, or by LoRA.

Whole, the policy begins as a copy of the weights that the run starts from, and these
stay as the reference. Under LoRA only A and B are trained, and the reference's weights
are the policy's too: there is one copy of them. PPO's critic stands beside either.
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

    Its numbers are compared with those of the model that is trained, which computes
    so: in another dtype a policy that has not moved would differ from its reference.
    """
    computed = {name: config.model[name] for name in ('dtype', 'remat', 'unroll')}
    settings = FrozenConfigDict({**trained.settings.to_dict(), **computed})
    return trained._replace(settings=settings)


class PolicyModel(NamedTuple):
    """Functions between what is trained, the reference, and a model's parameters.

    shapes, axes: of what is trained.
    init: from the reference, a key and, if PPO's critic begins as one, a reward model's
        parameters to what is trained.
    compute: from (what is trained, the reference) to parameters that a model is
        bound to, inside a jitted function; no second copy is made.
    merge: the same as arrays of their own, for the engine.
    """

    shapes: Any
    axes: Any
    init: Callable
    compute: Callable
    merge: Callable


def freeze_policy(optimizer: optax.GradientTransformation):
    """The same optimizer, but neither the policy nor its average moves.

    A policy without a gradient would still be moved by weight decay.
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
    """The policy model of a config, by its sections `lora` and `ppo`.

    Raises:
        UserError: LoRA with a critic that is a network of its own.
    """
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
            f'ppo.critic=network and lora.rank={config.lora.rank}: a network of its '
            'own is trained as a whole: use ppo.critic=head, or lora.rank=0'
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
