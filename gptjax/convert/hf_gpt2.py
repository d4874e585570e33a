"""GPT-2: learned positions, layer norms, biases; weights with the outputs last."""

from gptjax.convert.family import (
    CONV1D,
    SAME,
    Family,
    Rule,
    require_fields,
    require_values,
)

PARTS = dict(position='learned', norm='layernorm', mlp='gelu', bias=True)


def model_fields(config):
    require_values(
        config,
        activation_function='gelu_new',
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return PARTS | dict(
        num_layers=config['n_layer'],
        width=config['n_embd'],
        num_heads=config['n_head'],
        mlp_width=config.get('n_inner') or 4 * config['n_embd'],
        context=config['n_positions'],
        norm_epsilon=config['layer_norm_epsilon'],
        tie_embeddings=config.get('tie_word_embeddings', True),
    )


def hf_fields(settings):
    parts = {name: (value,) for name, value in PARTS.items()}
    require_fields(
        settings,
        **parts,
        num_kv_heads=(settings.num_heads,),
        head_dim=(settings.width // settings.num_heads,),
        norm_epsilon=None,
        rotary_base=None,
        tie_embeddings=(False, True),
    )
    return dict(
        n_layer=settings.num_layers,
        n_embd=settings.width,
        n_head=settings.num_heads,
        n_inner=settings.mlp_width,
        n_positions=settings.context,
        layer_norm_epsilon=settings.norm_epsilon,
        tie_word_embeddings=settings.tie_embeddings,
        vocab_size=settings.vocab_size,
        activation_function='gelu_new',
    )


def rules(settings):
    yield Rule('transformer.wte.weight', ('embed/token',), SAME)
    yield Rule('transformer.wpe.weight', ('embed/position',), SAME)
    if not settings.tie_embeddings:
        yield Rule('lm_head.weight', ('head/kernel',))
    layer = 'transformer.h.{}.'
    for theirs, targets in {
        'attn.c_attn': ('attention/query', 'attention/key', 'attention/value'),
        'attn.c_proj': ('attention/out',),
        'mlp.c_fc': ('mlp/up',),
        'mlp.c_proj': ('mlp/down',),
    }.items():
        biases = tuple(f'{target}_bias' for target in targets)
        yield Rule(f'{layer}{theirs}.weight', targets, CONV1D)
        yield Rule(f'{layer}{theirs}.bias', biases, CONV1D)
    for theirs, ours in {
        layer + 'ln_1': 'attention_norm',
        layer + 'ln_2': 'mlp_norm',
        'transformer.ln_f': 'final_norm',
    }.items():
        yield Rule(f'{theirs}.weight', (f'{ours}/scale',), SAME)
        yield Rule(f'{theirs}.bias', (f'{ours}/bias',), SAME)


FAMILY = Family(
    dict(gpt2='GPT2LMHeadModel'),
    model_fields,
    hf_fields,
    rules,
    ignored=('.attn.bias', '.attn.masked_bias'),
    prefix='transformer.',
)
