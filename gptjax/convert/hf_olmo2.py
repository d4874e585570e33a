"""OLMo 2: norms after each sublayer, and of all heads of queries and keys at once."""

from gptjax.convert import hf_llama
from gptjax.convert.family import SAME, Family, Rule, require_fields, require_values

PARTS = dict(norm_place='after', qk_norm=True, qk_norm_axis='all')


def model_fields(config):
    require_values(config, hidden_act='silu', attention_bias=False)
    tied = config.get('tie_word_embeddings', False)
    return hf_llama.common_fields(config) | PARTS | dict(tie_embeddings=tied)


def hf_fields(settings):
    parts = {name: (value,) for name, value in PARTS.items()}
    require_fields(settings, **hf_llama.ANY, **parts, tie_embeddings=(False, True))
    return hf_llama.common_hf_fields(settings) | dict(hidden_act='silu')


def rules(settings):
    layer = 'model.layers.{}.'
    yield from hf_llama.end_rules(settings)
    yield from hf_llama.attention_rules()
    yield from hf_llama.mlp_rules()
    for theirs, ours in {
        'post_attention_layernorm': 'attention_out_norm',
        'post_feedforward_layernorm': 'mlp_out_norm',
        'self_attn.q_norm': 'attention/query_norm',
        'self_attn.k_norm': 'attention/key_norm',
    }.items():
        yield Rule(f'{layer}{theirs}.weight', (f'{ours}/scale',), SAME)


FAMILY = Family(dict(olmo2='Olmo2ForCausalLM'), model_fields, hf_fields, rules)
