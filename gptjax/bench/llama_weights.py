"""Our Llama's weights under the names and shapes of Hugging Face `transformers`."""

from pathlib import Path

import numpy as np

from gptjax.errors import UserError

# What LlamaForCausalLM is, beside its sizes.
LLAMA = dict(position='rotary', norm='rmsnorm', mlp='swiglu', bias=False)
LLAMA |= dict(qk_norm=False, tie_embeddings=False, attention_softcap=0.0)
LLAMA |= dict(logit_softcap=0.0, windows=(0,), dtype='float32')


def check_llama(settings) -> None:
    """Refuses a model that is no Llama.

    Raises:
        UserError: naming the field.
    """
    for field, value in LLAMA.items():
        if settings[field] != value:
            raise UserError(
                f'--against needs a Llama, and model.{field} is {settings[field]!r}, '
                f'not {value!r}: use configs/bench.py:llama'
            )


def state_dict(params: dict) -> dict[str, np.ndarray]:
    """The parameters by `LlamaForCausalLM`'s names, float32, one layer each.

    PyTorch keeps a linear map as (outputs, inputs), and heads as one axis. The
    halves that rotary positions turn are in the same order on both sides.

    Args:
        params: of `gptjax.models.gpt.init_params`.
    """
    import jax  # the other processes, which only read, may have none

    params = jax.tree.map(np.asarray, params)
    layers = params['layers']
    D = params['embed']['token'].shape[1]
    into = lambda weight: weight.reshape(D, -1).T  # (D, …) -> (…, D)
    out_of = lambda weight: weight.reshape(-1, D).T  # (…, D) -> (D, …)
    named = {
        'model.embed_tokens.weight': params['embed']['token'],
        'model.norm.weight': params['final_norm']['scale'],
        'lm_head.weight': into(params['head']['kernel']),
    }
    for i in range(len(layers['mlp']['up'])):
        attention, mlp = layers['attention'], layers['mlp']
        parts = {
            'input_layernorm': layers['attention_norm']['scale'][i],
            'self_attn.q_proj': into(attention['query'][i]),
            'self_attn.k_proj': into(attention['key'][i]),
            'self_attn.v_proj': into(attention['value'][i]),
            'self_attn.o_proj': out_of(attention['out'][i]),
            'post_attention_layernorm': layers['mlp_norm']['scale'][i],
            'mlp.gate_proj': into(mlp['gate'][i]),
            'mlp.up_proj': into(mlp['up'][i]),
            'mlp.down_proj': out_of(mlp['down'][i]),
        }
        named |= {f'model.layers.{i}.{k}.weight': v for k, v in parts.items()}
    return {k: np.ascontiguousarray(v, np.float32) for k, v in named.items()}


def sizes(settings) -> dict:
    """`LlamaConfig`'s fields."""
    return dict(
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
    """An .npz of `state_dict`, and of `sizes` as 'config.NAME'."""
    fields = {f'config.{name}': value for name, value in sizes(settings).items()}
    np.savez(path, **fields, **state_dict(params))


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(`sizes`, `state_dict`) of what `write` wrote."""
    arrays = dict(np.load(path))
    fields = [name for name in arrays if name.startswith('config.')]
    found = {name.removeprefix('config.'): arrays.pop(name).item() for name in fields}
    return found, arrays
