"""GPT-NeoX and Pythia: parallel sublayers, a quarter of each head rotated, biases."""

from gptjax.convert.family import (
    BY_HEAD,
    LINEAR,
    SAME,
    Family,
    Rule,
    require_fields,
    require_values,
)
from gptjax.convert.rotary_scaling import rotary_fields

PARTS = dict(norm='layernorm', bias=True)
MLPS = dict(gelu='gelu_exact', gelu_new='gelu', gelu_fast='gelu')


def model_fields(config):
    require_values(config, attention_bias=True)
    mlp = MLPS.get(config['hidden_act'])
    if mlp is None:
        require_values(config, hidden_act='gelu')
    head_dim = config['hidden_size'] // config['num_attention_heads']
    if 'rope_parameters' not in config:
        config = dict(config, rotary_pct=config.get('rotary_pct', 0.25))
    return PARTS | dict(
        num_layers=config['num_hidden_layers'],
        width=config['hidden_size'],
        num_heads=config['num_attention_heads'],
        mlp_width=config['intermediate_size'],
        context=config['max_position_embeddings'],
        norm_epsilon=config['layer_norm_eps'],
        mlp=mlp,
        parallel=config.get('use_parallel_residual', True),
        tie_embeddings=config.get('tie_word_embeddings', False),
        **rotary_fields(config, head_dim),
    )


def hf_fields(settings):
    parts = {name: (value,) for name, value in PARTS.items()}
    names = (
        'norm_epsilon',
        'rotary_base',
        'rotary_share',
        'parallel',
        'tie_embeddings',
    )
    require_fields(
        settings,
        **parts,
        **dict.fromkeys(names),
        mlp=('gelu_exact', 'gelu'),
        num_kv_heads=(settings.num_heads,),
        head_dim=(settings.width // settings.num_heads,),
    )
    rotary = dict(
        rope_type='default',
        rope_theta=settings.rotary_base,
        partial_rotary_factor=settings.rotary_share,
    )
    return dict(
        num_hidden_layers=settings.num_layers,
        hidden_size=settings.width,
        num_attention_heads=settings.num_heads,
        intermediate_size=settings.mlp_width,
        max_position_embeddings=settings.context,
        layer_norm_eps=settings.norm_epsilon,
        hidden_act='gelu' if settings.mlp == 'gelu_exact' else 'gelu_new',
        use_parallel_residual=settings.parallel,
        tie_word_embeddings=settings.tie_embeddings,
        vocab_size=settings.vocab_size,
        rotary_pct=settings.rotary_share,
        rotary_emb_base=settings.rotary_base,
        rope_parameters=rotary,
    )


def rules(settings):
    yield Rule('gpt_neox.embed_in.weight', ('embed/token',), SAME)
    if not settings.tie_embeddings:
        yield Rule('embed_out.weight', ('head/kernel',))
    layer = 'gpt_neox.layers.{}.'
    joined = ('attention/query', 'attention/key', 'attention/value')
    for theirs, targets, layout in (
        ('attention.query_key_value', joined, BY_HEAD),
        ('attention.dense', ('attention/out',), LINEAR),
        ('mlp.dense_h_to_4h', ('mlp/up',), LINEAR),
        ('mlp.dense_4h_to_h', ('mlp/down',), LINEAR),
    ):
        biases = tuple(f'{target}_bias' for target in targets)
        yield Rule(f'{layer}{theirs}.weight', targets, layout)
        yield Rule(f'{layer}{theirs}.bias', biases, layout)
    for theirs, ours in {
        layer + 'input_layernorm': 'attention_norm',
        layer + 'post_attention_layernorm': 'mlp_norm',
        'gpt_neox.final_layer_norm': 'final_norm',
    }.items():
        yield Rule(f'{theirs}.weight', (f'{ours}/scale',), SAME)
        yield Rule(f'{theirs}.bias', (f'{ours}/bias',), SAME)


FAMILY = Family(
    dict(gpt_neox='GPTNeoXForCausalLM'),
    model_fields,
    hf_fields,
    rules,
    ignored=('.attention.bias', '.attention.masked_bias', '.rotary_emb.inv_freq'),
)
