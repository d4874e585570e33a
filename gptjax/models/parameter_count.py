"""The number of parameters and of floating-point operations of a model."""

import math

import jax
from ml_collections import FrozenConfigDict

from gptjax.models import gpt
from gptjax.models.linear import INPUT_AXES


def num_params(settings: FrozenConfigDict, positions: bool = True) -> int:
    """All parameters; positions=False leaves out learned positions, as nanoGPT does."""
    count = size(gpt.abstract_params(settings))
    if not positions and settings.position == 'learned':
        count -= settings.context * settings.width
    return count


def size(shapes) -> int:
    """The number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matrix_params(settings: FrozenConfigDict) -> int:
    """Parameters of matrix products: the layers and the head, tied or not."""
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
    """FLOPs of a forward and a backward pass, (causal, full) (PaLM, appendix B).

        6 P + 12 L N H S

    P is `matrix_params`, S the number of keys per query: in `full` the whole context,
    in `causal` the average of about half of it, without the masked upper triangle. The
    window of a layer bounds S in both.
    """
    causal = full = 0.0
    for window in gpt.layer_windows(settings):
        seen = min(window or context, context)
        # The first `seen` queries see half as many keys on average.
        causal += seen - seen * (seen - 1) / (2 * context)
        full += seen
    N, H = settings.num_heads, settings.head_dim
    matrices = 6 * matrix_params(settings)
    return matrices + 12 * N * H * causal, matrices + 12 * N * H * full
