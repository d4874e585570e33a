"""The models of papers: fields of `config.model`, and the size of the vocabulary.

Comments give the number of parameters with the paper's vocabulary; tests check them.
"""

from typing import NamedTuple

from gptjax.core.console import UserError


class Preset(NamedTuple):
    model: dict  # fields of `config.model`
    vocab_size: int  # the paper's, for `config.tokenizer.vocab_size`


# ---- GPT-2 (Radford et al. 2019, table 2, as released) ------------------------

GPT2 = {  # (layers, width, heads)
    '124M': (12, 768, 12),  # 124,439,808
    '350M': (24, 1024, 16),  # 354,823,168
    '774M': (36, 1280, 20),  # 774,030,080
    '1558M': (48, 1600, 25),  # 1,557,611,200
}


def gpt2(name: str) -> Preset:
    """GPT-2: learned positions, layer norm, biases, tied embeddings."""
    return _gpt(*_row(GPT2, name, 'GPT-2'), context=1024)


# ---- GPT-3 (Brown et al. 2020, table 2.1) -------------------------------------

# Two rows of the table contradict themselves. XL: 24 heads of 128 are 3072, not the
# width of 2048, and give 1.5B parameters; 16 heads of 128 give 1.3B, and are used here.
# 13B: 40 heads of 128 are 5120, not the width of 5140; both are used here.
GPT3 = {  # (layers, width, heads, head size)
    'small': (12, 768, 12, 64),  # 125M
    'medium': (24, 1024, 16, 64),  # 350M in the paper; these sizes give 356M
    'large': (24, 1536, 16, 96),  # 760M
    'xl': (24, 2048, 16, 128),  # 1.3B
    '2.7B': (32, 2560, 32, 80),
    '6.7B': (32, 4096, 32, 128),
    '13B': (40, 5140, 40, 128),
    '175B': (96, 12288, 96, 128),
}


def gpt3(name: str) -> Preset:
    """GPT-3: GPT-2 with a context of 2048.

    The paper alternates dense and locally banded sparse layers and does not give the
    width of the band. Here all are dense; `windows=(0, 256)` makes every second local.
    """
    return _gpt(*_row(GPT3, name, 'GPT-3'), context=2048)


def _gpt(num_layers, width, num_heads, head_dim=0, *, context) -> Preset:
    model = dict(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=0,
        head_dim=head_dim,
        context=context,
        mlp_width=0,  # 4 width
        position='learned',
        norm='layernorm',
        norm_epsilon=1e-5,
        mlp='gelu',
        qk_norm=False,
        bias=True,
        tie_embeddings=True,
    )
    return Preset(model, vocab_size=50_257)


# ---- Llama (Touvron et al. 2023a and b, Llama Team 2024) ----------------------

LLAMA1 = {  # (layers, width, heads, key-value heads, feed-forward)
    '7B': (32, 4096, 32, 32, 11008),  # 6,738,415,616
    '13B': (40, 5120, 40, 40, 13824),  # 13,015,864,320
    '33B': (60, 6656, 52, 52, 17920),  # 32,528,943,616
    '65B': (80, 8192, 64, 64, 22016),  # 65,285,660,672
}
LLAMA2 = {
    '7B': (32, 4096, 32, 32, 11008),  # 6,738,415,616
    '13B': (40, 5120, 40, 40, 13824),  # 13,015,864,320
    '70B': (80, 8192, 64, 8, 28672),  # 68,976,648,192
}
LLAMA3 = {
    '8B': (32, 4096, 32, 8, 14336),  # 8,030,261,248
    '70B': (80, 8192, 64, 8, 28672),  # 70,553,706,496
    '405B': (126, 16384, 128, 8, 53248),  # 405,853,388,800
}


def llama1(name: str) -> Preset:
    """Llama 1: rotary positions, RMS norm, SwiGLU, no biases, untied embeddings."""
    fields = dict(context=2048, rotary_base=10_000.0, norm_epsilon=1e-6)
    return Preset(_llama(LLAMA1, name, 'Llama 1', **fields), vocab_size=32_000)


def llama2(name: str) -> Preset:
    """Llama 2: twice the context, and grouped key-value heads in the 70B model."""
    fields = dict(context=4096, rotary_base=10_000.0, norm_epsilon=1e-5)
    return Preset(_llama(LLAMA2, name, 'Llama 2', **fields), vocab_size=32_000)


def llama3(name: str) -> Preset:
    """Llama 3: 8 key-value heads, a larger vocabulary and a larger rotary base.

    The context is that of pretraining, without the scaling of rotary frequencies that
    Llama 3.1 adds.
    """
    fields = dict(context=8192, rotary_base=500_000.0, norm_epsilon=1e-5)
    return Preset(_llama(LLAMA3, name, 'Llama 3', **fields), vocab_size=128_256)


def _llama(table, name, family, **fields) -> dict:
    num_layers, width, num_heads, num_kv_heads, mlp_width = _row(table, name, family)
    return dict(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=0,
        mlp_width=mlp_width,
        position='rotary',
        norm='rmsnorm',
        mlp='swiglu',
        qk_norm=False,
        bias=False,
        tie_embeddings=False,
        **fields,
    )


# ---- models described by their depth, as in nanochat --------------------------


def depth(layers: int) -> dict:
    """Fields of a model with this number of layers.

    The width is 64 times the depth, so that models of all sizes have the same shape and
    hyperparameters of a small model transfer to a large one. With an odd depth, the
    heads of 128 together are 64 wider than the model.
    """
    if layers < 1:
        raise UserError(f'a depth of {layers}: use a positive number of layers')
    return dict(
        num_layers=layers,
        width=64 * layers,
        num_heads=-(-layers // 2),  # 64 layers / 128, rounded up
        num_kv_heads=0,
        head_dim=128,
        mlp_width=0,  # 4 width: a layer has 12 width^2 parameters
        context=2048,
        position='rotary',
        rotary_base=10_000.0,
        norm='rmsnorm',
        mlp='relu2',
        qk_norm=True,
        bias=False,
        tie_embeddings=False,
        logit_softcap=15.0,
    )


def _row(table: dict, name: str, family: str) -> tuple:
    if name not in table:
        raise UserError(
            f'{family} has no variant {name!r}: use one of {", ".join(table)}'
        )
    return table[name]
