"""The loss of a language model."""

import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.kernels.cross_entropy import cross_entropy
from gptjax.models import gpt


def make_language_loss(
    settings: FrozenConfigDict, train: ConfigDict, neftune_alpha: float = 0.0
):
    """The `loss_fn` of next-token prediction for `make_train_step`.

    It is `(params, batch, key) -> (loss, metrics)`. The loss includes z-loss and label
    smoothing; `metrics['loss']` is the cross-entropy alone. Both are sums over the
    tokens. With key=None, as in validation, there is no dropout and no NEFTune noise.
    """
    options = dict(
        chunk=train.loss_chunk,
        softcap=settings.logit_softcap,
        z_loss=train.z_loss,
        label_smoothing=train.label_smoothing,
    )
    is_random = neftune_alpha > 0 or any(
        settings[f'{place}_dropout'] for place in ('embedding', 'attention', 'residual')
    )

    def loss_fn(params, batch, key):
        model = gpt.bind(settings, params)
        hidden = model.hidden(
            batch['inputs'],
            batch['segments'],
            batch['positions'],
            key if is_random else None,
            neftune_alpha,
        )
        shape = hidden.shape[:-1]
        targets, weights = (
            batch[name].reshape(shape) for name in ('targets', 'weights')
        )
        head = model.head_DV(hidden.dtype)
        total, plain = cross_entropy(hidden, head, targets, weights, **options)
        return total, dict(loss=plain, tokens=jnp.sum(weights))

    return loss_fn
