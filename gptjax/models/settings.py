"""The settings of a model: `config.model` with derived sizes filled in and checked."""

from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core.console import UserError
from gptjax.kernels.activations import GATED


def resolve(model: ConfigDict, vocab_size: int) -> FrozenConfigDict:
    """`config.model` with `vocab_size`, and sizes of 0 replaced by their defaults.

    `num_kv_heads` is num_heads, `head_dim` width / num_heads, `mlp_width` 4 width. For
    SwiGLU, which has three matrices instead of two, `mlp_width` is 8/3 width rounded up
    to a multiple of 64.
    """
    config = ConfigDict(model.to_dict())
    config.windows = tuple(config.windows)
    config.rotary_frequencies = tuple(config.rotary_frequencies)
    if not config.head_dim:
        if config.width % config.num_heads:
            raise UserError(
                f'model.num_heads={config.num_heads} does not divide '
                f'model.width={config.width}: use a divisor, or set model.head_dim'
            )
        config.head_dim = config.width // config.num_heads
    rotated = rotated_size(config)
    if config.position == 'rotary' and rotated % 2:
        raise UserError(
            f'model.head_dim={config.head_dim} times model.rotary_share is odd, and '
            'rotary positions rotate pairs: use an even number'
        )
    if config.rotary_frequencies and 2 * len(config.rotary_frequencies) != rotated:
        raise UserError(
            f'model.rotary_frequencies has {len(config.rotary_frequencies)} numbers: '
            f'use {rotated // 2}, one for each rotated pair of a head, or none'
        )
    config.num_kv_heads = config.num_kv_heads or config.num_heads
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f'model.num_kv_heads={config.num_kv_heads} does not divide '
            f'model.num_heads={config.num_heads}: use a divisor'
        )
    if not config.mlp_width:
        swiglu = -(-8 * config.width // 3 // 64) * 64
        config.mlp_width = swiglu if config.mlp in GATED else 4 * config.width
    config.vocab_size = vocab_size
    return FrozenConfigDict(config)


def rotated_size(config) -> int:
    """How many numbers of each head rotary positions rotate."""
    return int(config.head_dim * config.rotary_share)
