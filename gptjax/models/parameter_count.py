"""Parameters and floating-point operations of a model, by arithmetic."""

import math

import jax
from ml_collections import FrozenConfigDict

from gptjax.models import gpt
from gptjax.models.linear import INPUT_AXES


def num_params(settings: FrozenConfigDict, positions: bool = True) -> int:
    """Parameters; without learned position vectors for nanoGPT's way to count."""
    count = size(gpt.abstract_params(settings))
    if not positions and settings.position == 'learned':
        count -= settings.context * settings.width
    return count


def size(shapes) -> int:
    """Numbers in a tree of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matrix_params(settings: FrozenConfigDict) -> int:
    """Parameters that every token is multiplied with: layers and head."""
    leaves = jax.tree_util.tree_leaves_with_path(
        gpt.abstract_params(settings)['layers']
    )
    layers = sum(
        math.prod(leaf.shape) for path, leaf in leaves if path[-1].key in INPUT_AXES
    )
    return layers + settings.width * settings.vocab_size


def train_flops_per_token(
    settings: FrozenConfigDict, context: int
) -> tuple[float, float]:
    """(causal, full) of a forward and a backward pass (PaLM, appendix B).

        6 P + 12 L N H S

    P are the parameters of matrices, S the keys a query is compared with:
    the whole context in the full convention, which counts the upper triangle
    of the scores that no token needs, and half of it in the causal one. A
    layer's window bounds S in both.
    """
    causal = full = 0.0
    for window in gpt.layer_windows(settings):
        seen = min(window or context, context)
        # Of `context` queries the first `seen` see half of them on average.
        causal += seen - seen * (seen - 1) / (2 * context)
        full += seen
    N, H = settings.num_heads, settings.head_dim
    matrices = 6 * matrix_params(settings)
    return matrices + 12 * N * H * causal, matrices + 12 * N * H * full
