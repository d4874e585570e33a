"""The models that `bench train` and `bench decode` measure on a CPU.

    python -m gptjax bench train --config configs/bench.py --against torch
    python -m gptjax bench decode --config configs/bench.py:llama --against torch

The default has the layers of GPT-2. The variant `llama` has the layers of Llama at the
same size; both Hugging Face and llama.cpp can run it.
"""

from configs import common


def get_config(variant: str = ''):
    if variant == 'llama':
        return llama()
    if variant:
        raise ValueError(f'configs/bench.py has no variant {variant!r}: use llama')
    config = common.base()
    config.data.context = 256
    config.tokenizer.vocab_size = 8192
    config.model.update(
        num_layers=6,
        width=384,
        num_heads=6,
        context=256,
        position='learned',
        norm='layernorm',
        mlp='gelu',
        qk_norm=False,
        bias=True,
        tie_embeddings=True,
        unroll=6,  # the compiler can fuse operations of neighbouring layers
    )
    config.optim.update(
        name='adamw',
        learning_rate=1e-3,
        beta2=0.999,
        weight_decay=0.01,  # as torch.optim.AdamW
        clip_norm=0.0,
        schedule='constant',
    )
    config.train.update(batch_size=8, loss_chunk=512)
    return config


def llama():
    """Rotary positions, RMS norm, SwiGLU, no bias, untied head; 16.9M parameters."""
    config = common.base()
    config.data.context = 512
    config.tokenizer.vocab_size = 8192
    config.model.update(
        num_layers=6,
        width=384,
        num_heads=6,
        context=512,
        position='rotary',
        norm='rmsnorm',
        mlp='swiglu',
        qk_norm=False,
        bias=False,
        tie_embeddings=False,
    )
    return config
