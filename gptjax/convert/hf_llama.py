"""Llama 1, 2 and 3, and what shares its layout: SmolLM, TinyLlama, Yi, Mistral."""

from gptjax.convert.family import (
    SAME,
    Family,
    Missing,
    Rule,
    require_fields,
    require_values,
)
from gptjax.convert.rotary_scaling import rotary_fields
from gptjax.models.gpt import layer_windows


def model_fields(config):
    require_values(config, hidden_act='silu', attention_bias=False, mlp_bias=False)
    # Some Llamas keep the field of the Mistral they were made of; it has no effect.
    window = config.get('sliding_window') if config['model_type'] == 'mistral' else 0
    return common_fields(config) | dict(
        tie_embeddings=config.get('tie_word_embeddings', False), windows=(window or 0,)
    )


def common_fields(config):
    """Fields of all families with Llama's names in config.json."""
    num_heads = config['num_attention_heads']
    head_dim = config.get('head_dim') or config['hidden_size'] // num_heads
    return dict(
        num_layers=config['num_hidden_layers'],
        width=config['hidden_size'],
        num_heads=num_heads,
        num_kv_heads=config.get('num_key_value_heads') or num_heads,
        head_dim=head_dim,
        mlp_width=config['intermediate_size'],
        context=config['max_position_embeddings'],
        norm_epsilon=config['rms_norm_eps'],
        **rotary_fields(config, head_dim),
    )


def windows_of(config, num_layers):
    """The windows of `layer_types`: one for each layer."""
    window = config.get('sliding_window') or 0
    types = config.get('layer_types') or ['full_attention'] * num_layers
    return tuple(window if kind == 'sliding_attention' else 0 for kind in types)


def hf_windows(settings):
    """`layer_types` and `sliding_window`, of which there is one."""
    windows = layer_windows(settings)
    sizes = {*windows} - {0}
    if len(sizes) > 1:
        raise Missing([f'model.windows={settings.windows}'])
    kinds = ['sliding_attention' if window else 'full_attention' for window in windows]
    return dict(layer_types=kinds, sliding_window=sizes.pop() if sizes else None)


ANY = dict.fromkeys(('num_kv_heads', 'head_dim', 'rotary_base', 'norm_epsilon'))


def hf_fields(settings):
    window = settings.windows[0]
    same = ((window,) * len(settings.windows),)
    require_fields(settings, **ANY, tie_embeddings=(False, True), windows=same)
    fields = common_hf_fields(settings) | dict(hidden_act='silu', model_type='llama')
    if window:  # only Mistral's code reads it
        fields |= dict(sliding_window=window, model_type='mistral')
    return fields


def common_hf_fields(settings):
    return dict(
        num_hidden_layers=settings.num_layers,
        hidden_size=settings.width,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.head_dim,
        intermediate_size=settings.mlp_width,
        max_position_embeddings=settings.context,
        rms_norm_eps=settings.norm_epsilon,
        tie_word_embeddings=settings.tie_embeddings,
        vocab_size=settings.vocab_size,
        rope_theta=settings.rotary_base,
        rope_parameters=dict(rope_type='default', rope_theta=settings.rotary_base),
    )


def rules(settings):
    layer = 'model.layers.{}.'
    return [
        *end_rules(settings),
        *attention_rules(),
        *mlp_rules(),
        Rule(layer + 'input_layernorm.weight', ('attention_norm/scale',), SAME),
        Rule(layer + 'post_attention_layernorm.weight', ('mlp_norm/scale',), SAME),
    ]


def end_rules(settings):
    yield Rule('model.embed_tokens.weight', ('embed/token',), SAME)
    yield Rule('model.norm.weight', ('final_norm/scale',), SAME)
    if not settings.tie_embeddings:
        yield Rule('lm_head.weight', ('head/kernel',))


def attention_rules():
    for theirs, ours in dict(q='query', k='key', v='value', o='out').items():
        name = f'model.layers.{{}}.self_attn.{theirs}_proj.weight'
        yield Rule(name, (f'attention/{ours}',))


def mlp_rules():
    for name in ('gate', 'up', 'down'):
        yield Rule(f'model.layers.{{}}.mlp.{name}_proj.weight', (f'mlp/{name}',))


FAMILY = Family(
    dict(llama='LlamaForCausalLM', mistral='MistralForCausalLM'),
    model_fields,
    hf_fields,
    rules,
    ignored=('.rotary_emb.inv_freq',),
)
