"""The loss of a language model."""

import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.kernels.cross_entropy import cross_entropy
from gptjax.models import gpt


def make_language_loss(settings: FrozenConfigDict, train: ConfigDict):
    """The `loss_fn` of next-token prediction for `make_train_step`.

    `(params, batch, key) -> (loss, metrics)`: the sum that is minimised, and with it
    the plain cross-entropy `loss` and `tokens`, all summed. Dropout is off where key
    is None.
    """
    options = dict(
        chunk=train.loss_chunk,
        softcap=settings.logit_softcap,
        z_loss=train.z_loss,
        label_smoothing=train.label_smoothing,
    )
    dropout = any(
        settings[f'{place}_dropout'] for place in ('embedding', 'attention', 'residual')
    )

    def loss_fn(params, batch, key):
        model = gpt.bind(settings, params)
        hidden = model.hidden(
            batch['inputs'],
            batch['segments'],
            batch['positions'],
            key if dropout else None,
        )
        shape = hidden.shape[:-1]
        targets, weights = (
            batch[name].reshape(shape) for name in ('targets', 'weights')
        )
        head = model.head_DV(hidden.dtype)
        total, plain = cross_entropy(hidden, head, targets, weights, **options)
        return total, dict(loss=plain, tokens=jnp.sum(weights))

    return loss_fn
