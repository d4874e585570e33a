"""Every field of `config.model`, in the form of schema.py."""

from gptjax.core.fields import (
    AT_LEAST_1,
    BELOW_ONE,
    FREQUENCIES,
    NEEDED,
    POSITIVE,
    SOME_SHARE,
    WINDOWS,
    Field,
    one_of,
)

MLPS = 'gelu', 'gelu_exact', 'swiglu', 'geglu', 'relu2'

MODEL = dict(
    num_layers=Field(3, 'number of layers (L)', AT_LEAST_1, before=NEEDED),
    width=Field(192, 'size of the hidden vectors (D)', AT_LEAST_1, before=NEEDED),
    num_heads=Field(3, 'number of query heads (N)', AT_LEAST_1, before=NEEDED),
    num_kv_heads=Field(0, 'number of key and value heads (K); 0: num_heads'),
    head_dim=Field(0, 'size of a head (H); 0: width / num_heads'),
    mlp_width=Field(0, 'feed-forward size (F); 0: 4 * width, swiglu: 8/3 * width'),
    context=Field(128, 'maximum number of positions', AT_LEAST_1, before=NEEDED),
    position=Field('rotary', 'position encoding', one_of('rotary', 'learned', 'none')),
    rotary_base=Field(10_000.0, 'base of the rotary wavelengths', POSITIVE),
    rotary_share=Field(1.0, 'share of each head that is rotated', SOME_SHARE),
    rotary_frequencies=Field((), 'radians a position; (): rotary_base', FREQUENCIES),
    rotary_scale=Field(1.0, 'factor of rotated queries and keys (YaRN)', POSITIVE),
    rotary_local_base=Field(0.0, 'base in layers with a window; 0: as in the others'),
    norm=Field('rmsnorm', 'kind of norm', one_of('rmsnorm', 'layernorm')),
    norm_place=Field(
        'before',
        'norms before each sublayer, after it (OLMo 2), or both (Gemma 2)',
        one_of('before', 'after', 'both'),
    ),
    norm_offset=Field(0.0, 'added to the scale of RMS norms; Gemma: 1'),
    norm_epsilon=Field(1e-5, 'added to the variance'),
    mlp=Field('relu2', 'kind of feed-forward layer', one_of(*MLPS)),
    parallel=Field(False, 'attention and feed-forward read the same input (GPT-NeoX)'),
    qk_norm=Field(True, 'normalise the queries and keys'),
    qk_norm_axis=Field(
        'head', 'of each head, or all heads at once', one_of('head', 'all')
    ),
    query_scale=Field(0.0, 'factor of the scores; 0: 1 / sqrt(head_dim)'),
    windows=Field((0,), 'tokens that each layer attends to, repeated; 0: all', WINDOWS),
    attention_softcap=Field(0.0, 'c in c * tanh(score / c); 0: no cap'),
    logit_softcap=Field(0.0, 'c in c * tanh(logit / c); 0: no cap'),
    bias=Field(False, 'biases in the linear layers and layer norms'),
    qkv_bias=Field(False, 'biases of queries, keys and values (Qwen 2)'),
    embedding_scale=Field(1.0, 'factor of the embeddings', POSITIVE),
    tie_embeddings=Field(False, 'use the embedding as the output head'),
    embedding_dropout=Field(0.0, 'dropout rate of the embeddings', BELOW_ONE),
    attention_dropout=Field(0.0, 'dropout rate of the attention weights', BELOW_ONE),
    residual_dropout=Field(0.0, 'dropout rate of the sublayer outputs', BELOW_ONE),
    init_std=Field(0.02, 'initial standard deviation of the matrices in the layers'),
    embedding_std=Field(0.02, 'initial standard deviation of an untied embedding'),
    dtype=Field(
        'float32',
        'dtype of matrix products; the weights are float32',
        one_of('float32', 'bfloat16', 'float16'),
    ),
    remat=Field(
        'none',
        'what the backward pass recomputes, to save memory',
        one_of('none', 'full', 'dots', 'block_outputs'),
    ),
    unroll=Field(1, 'layers in one iteration of the scan over layers', AT_LEAST_1),
)

# Fields that older versions do not have. Hashes of models leave out their defaults, so
# that a model has the hash that its checkpoints were saved with.
LATER = (
    *('rotary_share', 'rotary_frequencies', 'rotary_scale', 'rotary_local_base'),
    *('norm_place', 'norm_offset', 'parallel', 'qk_norm_axis', 'query_scale'),
    *('qkv_bias', 'embedding_scale'),
)
