"""What a policy trains, and how a model is made of it: whole, or by LoRA.

Whole, everything begins as a copy of the weights that the run starts from, and these
stay as the reference. Under LoRA only A and B are trained, and the reference's weights
are the policy's too: there is one copy of them. PPO's critic stands beside either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.errors import UserError
from gptjax.models import critic, lora
from gptjax.train.load import adapts, trained_part


class Actor(NamedTuple):
    """Functions between what is trained, the reference, and a model's parameters.

    shapes, axes: of what is trained.
    init: from the reference and a key to what is trained.
    compute: from (what is trained, the reference) to parameters that a model is
        bound to, inside a jitted function; no second copy is made.
    plain: the same as arrays of their own, for the engine.
    """

    shapes: Any
    axes: Any
    init: Callable
    compute: Callable
    plain: Callable


def make_actor(config: ConfigDict, settings: FrozenConfigDict) -> Actor:
    """The actor of a config, by its sections `lora` and `ppo`.

    Raises:
        UserError: LoRA with a critic that is a network of its own.
    """
    shapes, axes = trained_part(config, settings)
    kind = config.ppo.critic if 'ppo' in config else None
    if not adapts(config):

        def init(reference, key):
            del key
            if kind:
                return critic.init(settings, kind, reference)
            return jax.tree.map(jnp.copy, reference)

        whole = lambda params, reference: critic.policy_of(params)
        return Actor(shapes, axes, init, compute=whole, plain=whole)

    if kind == 'network':
        raise UserError(
            f'ppo.critic=network and lora.rank={config.lora.rank}: a network of its '
            'own is trained as a whole: use ppo.critic=head, or lora.rank=0'
        )
    scale = lora.scale_of(config.lora)

    def init_adapters(reference, key):
        del reference
        head = critic.init(settings, kind, {}) if kind else {}
        return {**lora.init_params(settings, config.lora, key), **head}

    return Actor(
        shapes,
        axes,
        init_adapters,
        compute=lambda params, reference: lora.adapt(
            reference, critic.policy_of(params), scale
        ),
        plain=jax.jit(
            lambda params, reference: lora.merge(
                reference, critic.policy_of(params), scale
            )
        ),
    )
