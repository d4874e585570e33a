"""Qwen 2 and 2.5 (biases of queries, keys and values), Qwen 3 (norms of each head)."""

from gptjax.convert import hf_llama
from gptjax.convert.family import SAME, Family, Rule, require_fields, require_values


def model_fields(config):
    require_values(config, hidden_act='silu', attention_bias=False)
    is_third = config['model_type'] == 'qwen3'
    fields = hf_llama.common_fields(config)
    windowed = config.get('use_sliding_window', False)
    if windowed and not config.get('layer_types'):
        first = config.get('max_window_layers', 0)
        kinds = ['full_attention'] * first + ['sliding_attention'] * fields[
            'num_layers'
        ]
        config = dict(config, layer_types=kinds[: fields['num_layers']])
    windows = hf_llama.windows_of(config, fields['num_layers']) if windowed else (0,)
    return fields | dict(
        tie_embeddings=config.get('tie_word_embeddings', False),
        windows=windows,
        qk_norm=is_third,
        qkv_bias=not is_third,
    )


def hf_fields(settings):
    require_fields(
        settings,
        **hf_llama.ANY,
        tie_embeddings=(False, True),
        qk_norm=(not settings.qkv_bias,),
        qkv_bias=(not settings.qk_norm,),
        windows=None,
    )
    windows = hf_llama.hf_windows(settings)
    return hf_llama.common_hf_fields(settings) | dict(
        windows,
        model_type='qwen3' if settings.qk_norm else 'qwen2',
        hidden_act='silu',
        use_sliding_window=windows['sliding_window'] is not None,
    )


def rules(settings):
    attention = 'model.layers.{}.self_attn.'
    yield from hf_llama.rules(settings)
    if settings.qk_norm:
        yield Rule(attention + 'q_norm.weight', ('attention/query_norm/scale',), SAME)
        yield Rule(attention + 'k_norm.weight', ('attention/key_norm/scale',), SAME)
    if settings.qkv_bias:
        for theirs, ours in dict(q='query', k='key', v='value').items():
            yield Rule(f'{attention}{theirs}_proj.bias', (f'attention/{ours}_bias',))


FAMILY = Family(
    dict(qwen3='Qwen3ForCausalLM', qwen2='Qwen2ForCausalLM'),
    model_fields,
    hf_fields,
    rules,
)
