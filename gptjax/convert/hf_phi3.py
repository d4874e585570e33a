"""Phi-3: Llama with joined projections."""

from gptjax.convert import hf_llama
from gptjax.convert.family import SAME, Family, Rule, require_values


def model_fields(config):
    require_values(config, hidden_act='silu', attention_bias=False)
    return hf_llama.common_fields(config) | dict(
        tie_embeddings=config.get('tie_word_embeddings', False),
        windows=(config.get('sliding_window') or 0,),
    )


def hf_fields(settings):
    return hf_llama.hf_fields(settings) | dict(model_type='phi3')


def rules(settings):
    layer = 'model.layers.{}.'
    attention = tuple(f'attention/{name}' for name in ('query', 'key', 'value'))
    yield from hf_llama.end_rules(settings)
    yield Rule(layer + 'self_attn.qkv_proj.weight', attention)
    yield Rule(layer + 'self_attn.o_proj.weight', ('attention/out',))
    yield Rule(layer + 'mlp.gate_up_proj.weight', ('mlp/gate', 'mlp/up'))
    yield Rule(layer + 'mlp.down_proj.weight', ('mlp/down',))
    yield Rule(layer + 'input_layernorm.weight', ('attention_norm/scale',), SAME)
    yield Rule(layer + 'post_attention_layernorm.weight', ('mlp_norm/scale',), SAME)


FAMILY = Family(dict(phi3='Phi3ForCausalLM'), model_fields, hf_fields, rules)
