"""Our weights with the names and shapes of Hugging Face `transformers`.

The model has to be a Llama, possibly with Qwen 3's norms of queries and keys, or with
Arcee's feed-forward, a squared ReLU without a gate. The default model has both.
"""

from pathlib import Path

import numpy as np

from gptjax.core.console import UserError

# The values of model fields that each library supports.
TORCH = dict(position=['rotary'], norm=['rmsnorm'], bias=[False], windows=[(0,)])
TORCH |= dict(tie_embeddings=[False], attention_softcap=[0.0], logit_softcap=[0.0])
TORCH |= dict(dtype=['float32'], mlp=['swiglu', 'relu2'], qk_norm=[False, True])
LLAMA_CPP = TORCH | dict(mlp=['swiglu'], qk_norm=[False])
SUPPORTED = {'torch': TORCH, 'llama.cpp': LLAMA_CPP}


def check(settings, against: str) -> None:
    """Refuses a model that the library does not support."""
    for field, values in SUPPORTED[against].items():
        if settings[field] not in values:
            supported = ' or '.join(map(repr, values))
            raise UserError(
                f'model.{field}={settings[field]!r} is not supported by '
                f'--against={against}, which has {supported}: use '
                'configs/bench.py:llama'
            )


def state_dict(params: dict) -> dict[str, np.ndarray]:
    """The parameters with Hugging Face's names, float32, layers unstacked.

    PyTorch stores a linear map as (outputs, inputs), with all heads in one axis. Rotary
    positions rotate the same pairs in both.
    """
    import jax  # the other library's environment may not have it

    params = jax.tree.map(np.asarray, params)
    layers = params['layers']
    D = params['embed']['token'].shape[1]
    from_width = lambda weight: weight.reshape(D, -1).T  # (D, …) -> (…, D)
    to_width = lambda weight: weight.reshape(-1, D).T  # (…, D) -> (D, …)
    named = {
        'model.embed_tokens.weight': params['embed']['token'],
        'model.norm.weight': params['final_norm']['scale'],
        'lm_head.weight': from_width(params['head']['kernel']),
    }
    for i in range(len(layers['mlp']['up'])):
        attention, mlp = layers['attention'], layers['mlp']
        weights = {
            'input_layernorm': layers['attention_norm']['scale'][i],
            'self_attn.q_proj': from_width(attention['query'][i]),
            'self_attn.k_proj': from_width(attention['key'][i]),
            'self_attn.v_proj': from_width(attention['value'][i]),
            'self_attn.o_proj': to_width(attention['out'][i]),
            'post_attention_layernorm': layers['mlp_norm']['scale'][i],
            'mlp.up_proj': from_width(mlp['up'][i]),
            'mlp.down_proj': to_width(mlp['down'][i]),
        }
        if 'gate' in mlp:
            weights['mlp.gate_proj'] = from_width(mlp['gate'][i])
        if 'query_norm' in attention:
            weights['self_attn.q_norm'] = attention['query_norm']['scale'][i]
            weights['self_attn.k_norm'] = attention['key_norm']['scale'][i]
        named |= {f'model.layers.{i}.{k}.weight': v for k, v in weights.items()}
    return {k: np.ascontiguousarray(v, np.float32) for k, v in named.items()}


def sizes(settings) -> dict:
    """The fields of Hugging Face's config, and `qk_norm`."""
    return dict(
        hidden_act={'swiglu': 'silu', 'relu2': 'relu2'}[settings.mlp],
        qk_norm=settings.qk_norm,
        vocab_size=settings.vocab_size,
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.context,
        rope_theta=settings.rotary_base,
        rms_norm_eps=settings.norm_epsilon,
    )


def write(path: Path, settings, params: dict) -> None:
    """Writes `state_dict` and `sizes` (as 'config.NAME') to an .npz file."""
    fields = {f'config.{name}': value for name, value in sizes(settings).items()}
    np.savez(path, **fields, **state_dict(params))


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(`sizes`, `state_dict`) of a file of `write`."""
    arrays = dict(np.load(path))
    fields = [name for name in arrays if name.startswith('config.')]
    sizes = {name.removeprefix('config.'): arrays.pop(name).item() for name in fields}
    return sizes, arrays
