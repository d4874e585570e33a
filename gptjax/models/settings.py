"""A model's settings: zeros filled in, and everything that cannot work refused."""

from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core.console import UserError

CHOICES = {
    'position': ('rotary', 'learned', 'none'),
    'norm': ('rmsnorm', 'layernorm'),
    'mlp': ('gelu', 'swiglu', 'relu2'),
    'dtype': ('float32', 'bfloat16', 'float16'),
    'remat': ('none', 'full', 'dots', 'block_outputs'),
}

SIZES = ('num_layers', 'width', 'num_heads', 'context')
# What a run has that is older than the field: the model as it was without it.
BEFORE = dict(
    num_kv_heads=0,
    head_dim=0,
    mlp_width=0,
    position='rotary',
    rotary_base=10_000.0,
    norm='rmsnorm',
    norm_epsilon=1e-5,
    mlp='relu2',
    qk_norm=True,
    windows=(0,),
    attention_softcap=0.0,
    logit_softcap=0.0,
    bias=False,
    tie_embeddings=False,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
    init_std=0.02,
    embedding_std=0.02,
    dtype='float32',
    remat='none',
    unroll=1,
)


def resolve(model: ConfigDict, vocab_size: int) -> FrozenConfigDict:
    """The model section with `vocab_size` and every default worked out.

    Fills `num_kv_heads` (num_heads), `head_dim` (width / num_heads) and
    `mlp_width` (4 width; for SwiGLU the next multiple of 64 above 8/3 width,
    which costs the same). A field that is missing, as the run is older, is BEFORE's.

    Raises:
        UserError: a field or a choice that does not exist, or sizes that do not
            divide.
    """
    config = ConfigDict({**BEFORE, **model.to_dict()})
    missing = [field for field in SIZES if field not in config]
    if missing:
        raise UserError(f'model.{missing[0]} is missing: give it a number')
    unknown = sorted({*config} - {*BEFORE, *SIZES})
    if unknown:
        raise UserError(
            f'model.{unknown[0]}={config[unknown[0]]!r}: no such field here: use the '
            'version of gptjax that has it, or leave it out'
        )
    for field, choices in CHOICES.items():
        if config[field] not in choices:
            raise UserError(
                f'model.{field}={config[field]!r}: use one of {", ".join(choices)}'
            )
    for field in SIZES:
        if config[field] < 1:
            raise UserError(f'model.{field}={config[field]}: use a positive number')
    for field in ('num_kv_heads', 'head_dim', 'mlp_width'):
        if config[field] < 0:
            raise UserError(
                f'model.{field}={config[field]}: use a positive number, or 0'
            )
    config.windows = tuple(config.windows)
    for window in config.windows or (-1,):
        if window < 0:
            raise UserError(
                f'model.windows={config.windows}: give the tokens each layer sees, '
                '0 for all'
            )
    if not config.head_dim:
        if config.width % config.num_heads:
            raise UserError(
                f'model.num_heads={config.num_heads} does not divide '
                f'model.width={config.width}: use a divisor, or set model.head_dim'
            )
        config.head_dim = config.width // config.num_heads
    if config.position == 'rotary' and config.head_dim % 2:
        raise UserError(
            f'model.head_dim={config.head_dim} is odd, and rotary positions turn '
            'pairs: use an even one'
        )
    config.num_kv_heads = config.num_kv_heads or config.num_heads
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f'model.num_kv_heads={config.num_kv_heads} does not divide '
            f'model.num_heads={config.num_heads}: use a divisor'
        )
    if not config.mlp_width:
        swiglu = -(-8 * config.width // 3 // 64) * 64
        config.mlp_width = swiglu if config.mlp == 'swiglu' else 4 * config.width
    for field in ('embedding_dropout', 'attention_dropout', 'residual_dropout'):
        if not 0 <= config[field] < 1:
            raise UserError(f'model.{field}={config[field]}: use a share from 0 to 1')
    config.vocab_size = vocab_size
    return FrozenConfigDict(config)
