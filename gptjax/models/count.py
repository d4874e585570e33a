"""Parameters and floating-point operations of a model, by arithmetic."""

import math

import jax
from ml_collections import FrozenConfigDict

from gptjax.models import gpt


def num_params(settings: FrozenConfigDict, positions: bool = True) -> int:
    """Parameters; without learned position vectors for nanoGPT's way to count."""
    shapes = gpt.abstract_params(settings)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if not positions and settings.position == 'learned':
        count -= settings.context * settings.width
    return count


def matrix_params(settings: FrozenConfigDict) -> int:
    """Parameters that every token is multiplied with: layers and head."""
    D, H = settings.width, settings.head_dim
    attention = D * H * (2 * settings.num_heads + 2 * settings.num_kv_heads)
    maps = 3 if settings.mlp == 'swiglu' else 2
    feed_forward = maps * D * settings.mlp_width
    return settings.num_layers * (attention + feed_forward) + D * settings.vocab_size


def train_flops_per_token(settings: FrozenConfigDict, context: int, causal: bool):
    """Of a forward and a backward pass (PaLM, appendix B).

        6 P + 12 L N H S

    P are the parameters of matrices, S the keys a query is compared with:
    the whole context in the full convention, which counts the upper triangle
    of the scores that no token needs, and half of it in the causal one. A
    layer's window bounds S in both.
    """
    keys = 0.0
    for window in gpt.layer_windows(settings):
        seen = min(window or context, context)
        # Of `context` queries the first `seen` see half of them on average.
        mean = seen - seen * (seen - 1) / (2 * context) if causal else seen
        keys += mean
    N, H = settings.num_heads, settings.head_dim
    return 6 * matrix_params(settings) + 12 * N * H * keys
