"""Numbers of parameters and FLOPs, published or computed by hand."""

import pytest

from gptjax.models import parameter_count, presets, settings
from tests import helpers


# From the README and logs of nanoGPT, which does not count the position vectors.
@pytest.mark.parametrize(
    'num_layers, num_heads, width, vocab_size, context, expected',
    [
        (4, 4, 128, 65, 64, 795_904),
        (6, 6, 384, 65, 256, 10_646_784),
        (12, 12, 768, 50_304, 1024, 123_587_328),
    ],
)
def test_parameters_of_nanogpt(
    num_layers, num_heads, width, vocab_size, context, expected
):
    sizes = dict(num_layers=num_layers, num_heads=num_heads, width=width)
    fields = presets.gpt2('124M').model | sizes | dict(context=context, bias=False)
    config = helpers.config(**fields)
    model = settings.resolve(config.model, vocab_size)
    assert parameter_count.num_params(model, positions=False) == expected
    assert parameter_count.num_params(model) == expected + context * width


def test_parameters_by_hand():
    # One layer, width 4, 2 heads of 2 and one of keys, feed-forward 6, 10 tokens.
    model = settings.resolve(
        helpers.config(
            num_layers=1,
            width=4,
            num_heads=2,
            num_kv_heads=1,
            mlp_width=6,
            mlp='swiglu',
            norm='layernorm',
            bias=True,
            qk_norm=True,
        ).model,
        10,
    )
    attention = 4 * 4 + 2 * 4 * 2 + 4 * 4 + (4 + 2 + 2 + 4)  # q, k and v, out, biases
    qk_norm = 2 * (2 + 2)
    feed_forward = 3 * 4 * 6 + (6 + 4)
    norms = 3 * (4 + 4)  # two of the layer, the last one
    embedding_and_head = 2 * 10 * 4
    expected = attention + qk_norm + feed_forward + norms + embedding_and_head
    assert parameter_count.num_params(model) == expected
    assert parameter_count.matrix_params(model) == 48 + 72 + 40


def test_a_tied_head_is_a_matrix_but_not_counted_twice():
    tied = helpers.model_settings(tie_embeddings=True)
    untied = helpers.model_settings(tie_embeddings=False)
    assert parameter_count.matrix_params(tied) == parameter_count.matrix_params(untied)
    assert (
        parameter_count.num_params(untied) - parameter_count.num_params(tied)
        == helpers.VOCAB * 32
    )


def test_flops_of_full_and_causal_attention():
    model = helpers.model_settings(windows=(0,))
    matrices = 6 * parameter_count.matrix_params(model)
    # 2 layers, 4 heads of 8, 16 keys; a causal query sees 8.5 of them on average.
    assert parameter_count.train_flops_per_token(model, 16) == (
        matrices + 12 * 4 * 8 * 2 * 8.5,
        matrices + 12 * 4 * 8 * 2 * 16,
    )


def test_flops_of_windows_are_those_of_the_keys_seen():
    model = helpers.model_settings(windows=(3, 0))
    # With the window, the 8 queries see 1, 2, 3, 3, ... keys; without it 1 to 8.
    keys = (1 + 2 + 6 * 3) / 8 + (1 + 8) / 2
    matrices = 6 * parameter_count.matrix_params(model)
    assert parameter_count.train_flops_per_token(model, 8) == pytest.approx(
        (matrices + 12 * 4 * 8 * keys, matrices + 12 * 4 * 8 * (3 + 8))
    )
