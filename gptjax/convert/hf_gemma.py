"""Gemma 2 (soft-capped scores and logits) and the text part of Gemma 3."""

import math

import numpy as np

from gptjax.convert import hf_llama
from gptjax.convert.family import (
    SAME,
    Family,
    Missing,
    Rule,
    require_fields,
    require_values,
)
from gptjax.convert.rotary_scaling import rotary_fields

PARTS = dict(mlp='geglu', norm_place='both', norm_offset=1.0)


def model_fields(config):
    require_values(config, hidden_activation='gelu_pytorch_tanh', attention_bias=False)
    require_values(config, use_bidirectional_attention=False)
    is_third = config['model_type'] == 'gemma3_text'
    fields = hf_llama.common_fields(config)
    num_layers, head_dim = fields['num_layers'], fields['head_dim']
    if not config.get('layer_types'):
        every = config.get('sliding_window_pattern', 6 if is_third else 2)
        kinds = ['sliding_attention'] * (every - 1) + ['full_attention']
        config = dict(config, layer_types=(kinds * num_layers)[:num_layers])
    if is_third:
        fields |= rotary_fields(config, head_dim, 'full_attention')
        local = dict(config)
        if 'rope_parameters' not in config:
            local = dict(rope_theta=config.get('rope_local_base_freq', 10_000.0))
        local = rotary_fields(local, head_dim, 'sliding_attention')
        fields['rotary_local_base'] = local['rotary_base']
    return (
        fields
        | PARTS
        | dict(
            embedding_scale=embedding_scale(fields['width']),
            query_scale=config['query_pre_attn_scalar'] ** -0.5,
            windows=hf_llama.windows_of(config, num_layers),
            attention_softcap=config.get('attn_logit_softcapping') or 0.0,
            logit_softcap=config.get('final_logit_softcapping') or 0.0,
            qk_norm=is_third,
            tie_embeddings=config.get('tie_word_embeddings', True),
        )
    )


def hf_fields(settings):
    is_third = settings.qk_norm
    any_parts = 'query_scale', 'windows', 'logit_softcap', 'qk_norm', 'tie_embeddings'
    any_parts += ('rotary_local_base',) if is_third else ('attention_softcap',)
    require_fields(
        settings,
        **hf_llama.ANY,
        **dict.fromkeys(any_parts),
        **{name: (value,) for name, value in PARTS.items()},
        embedding_scale=(embedding_scale(settings.width),),
    )
    scale = settings.query_scale or settings.head_dim**-0.5
    scalar = round(scale**-2)  # it has to be a whole number
    if not math.isclose(scalar**-0.5, scale, rel_tol=1e-6):
        raise Missing([f'model.query_scale={scale}'])
    fields = hf_llama.common_hf_fields(settings) | hf_llama.hf_windows(settings)
    fields |= dict(
        model_type='gemma3_text' if is_third else 'gemma2',
        hidden_activation='gelu_pytorch_tanh',
        query_pre_attn_scalar=scalar,
        attn_logit_softcapping=settings.attention_softcap or None,
        final_logit_softcapping=settings.logit_softcap or None,
    )
    if is_third:
        local_base = settings.rotary_local_base or settings.rotary_base
        fields['rope_local_base_freq'] = local_base
        fields['rope_parameters'] = dict(
            full_attention=fields['rope_parameters'],
            sliding_attention=dict(rope_type='default', rope_theta=local_base),
        )
    return fields


def embedding_scale(width: int) -> float:
    """sqrt(D). The reference rounds it to the dtype of the model."""
    return float(np.float32(math.sqrt(width)))


def rules(settings):
    layer = 'model.layers.{}.'
    yield from hf_llama.end_rules(settings)
    yield from hf_llama.attention_rules()
    yield from hf_llama.mlp_rules()
    for theirs, ours in {
        'input_layernorm': 'attention_norm',
        'post_attention_layernorm': 'attention_out_norm',
        'pre_feedforward_layernorm': 'mlp_norm',
        'post_feedforward_layernorm': 'mlp_out_norm',
    }.items():
        yield Rule(f'{layer}{theirs}.weight', (f'{ours}/scale',), SAME)
    if settings.qk_norm:
        for theirs, ours in dict(q='query', k='key').items():
            name = f'{layer}self_attn.{theirs}_norm.weight'
            yield Rule(name, (f'attention/{ours}_norm/scale',), SAME)


FAMILY = Family(
    dict(gemma2='Gemma2ForCausalLM', gemma3_text='Gemma3ForCausalLM'),
    model_fields,
    hf_fields,
    rules,
)
