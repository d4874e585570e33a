"""Presets have the sizes of the papers, and every config makes a model."""

import pytest

from configs import common, depth, gpt2, gpt3, llama
from gptjax.core.console import UserError
from gptjax.models import parameter_count, presets, settings

EXACT = [
    (presets.gpt2, '124M', 124_439_808),
    (presets.gpt2, '350M', 354_823_168),
    (presets.gpt2, '774M', 774_030_080),
    (presets.gpt2, '1558M', 1_557_611_200),
    (presets.llama1, '7B', 6_738_415_616),
    (presets.llama1, '13B', 13_015_864_320),
    (presets.llama1, '33B', 32_528_943_616),
    (presets.llama1, '65B', 65_285_660_672),
    (presets.llama2, '7B', 6_738_415_616),
    (presets.llama2, '13B', 13_015_864_320),
    (presets.llama2, '70B', 68_976_648_192),
    (presets.llama3, '8B', 8_030_261_248),
    (presets.llama3, '70B', 70_553_706_496),
    (presets.llama3, '405B', 405_853_388_800),
]
GPT3_PAPER = {
    'small': 125e6,
    'medium': 350e6,
    'large': 760e6,
    'xl': 1.3e9,
    '2.7B': 2.7e9,
    '6.7B': 6.7e9,
    '13B': 13.0e9,
    '175B': 175.0e9,
}
CONFIGS = [
    *((gpt2, name) for name in presets.GPT2),
    *((gpt3, name) for name in presets.GPT3),
    *((llama, name) for name in llama.VARIANTS),
    *((depth, name) for name in ('1', '2', '5', '12', '20', '32')),
]


def num_params(preset):
    model = common.base().model
    model.update(preset.model)
    return parameter_count.num_params(settings.resolve(model, preset.vocab_size))


@pytest.mark.parametrize('make, name, expected', EXACT)
def test_parameters_are_exactly_the_released_models(make, name, expected):
    assert num_params(make(name)) == expected


@pytest.mark.parametrize('name', presets.GPT3)
def test_parameters_of_gpt3_are_the_papers_to_its_rounding(name):
    # With the paper's own sizes, 350M is 356M and 2.7B is 2.65B.
    assert num_params(presets.gpt3(name)) == pytest.approx(GPT3_PAPER[name], rel=0.02)


def test_every_row_of_the_tables_is_tested():
    tables = [presets.GPT2, presets.LLAMA1, presets.LLAMA2, presets.LLAMA3]
    assert len(EXACT) == sum(map(len, tables))
    assert GPT3_PAPER.keys() == presets.GPT3.keys()


def test_depth_is_one_shape_at_every_size():
    for layers in (1, 4, 12, 13):
        model = presets.depth(layers)
        assert model['num_layers'] == layers
        assert model['width'] == 64 * layers
        heads = model['num_heads'] * model['head_dim'] - model['width']
        assert heads == (64 if layers % 2 else 0)


@pytest.mark.parametrize('module, variant', CONFIGS, ids=lambda x: str(x)[:12])
def test_every_variant_is_a_consistent_config(module, variant):
    config = module.get_config(variant)
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    assert config.data.context <= model.context
    assert config.train.num_steps > 10 * config.optim.warmup_steps or module is depth
    # A pod of 32 devices splits the batch and the width of the feed-forward.
    assert config.train.batch_size % 32 == 0
    assert model.mlp_width % 4 == 0


@pytest.mark.parametrize('module', [gpt2, gpt3, llama, depth])
def test_every_config_has_a_default_variant(module):
    assert module.get_config().model.num_layers >= 12


@pytest.mark.parametrize(
    'module, message',
    [
        (gpt2, "GPT-2 has no variant '9T': use one of 124M, 350M, 774M, 1558M"),
        (gpt3, "GPT-3 has no variant '9T': use one of small, medium, .*, 175B"),
        (llama, "no variant '9T': use 1-7B, .*, 3-405B"),
        (depth, "configs/depth.py has no variant '9T': use a number of layers"),
    ],
)
def test_an_unknown_variant_is_refused_with_the_known_ones(module, message):
    with pytest.raises(UserError, match=message):
        module.get_config('9T')


def test_batches_are_those_of_the_paper():
    # Table 2.1: tokens of a batch, to two digits.
    paper = [0.5, 0.5, 0.5, 1, 1, 2, 2, 3.2]
    for name, millions in zip(presets.GPT3, paper, strict=True):
        config = gpt3.get_config(name)
        tokens = config.train.batch_size * config.data.context
        assert tokens == pytest.approx(millions * 1e6, rel=0.05)
        assert tokens * config.train.num_steps == pytest.approx(300e9, rel=1e-3)


def test_depth_12_has_the_reference_learning_rates():
    optim = depth.get_config('12').optim
    assert optim.learning_rate == depth.REFERENCE_RATE
    assert optim.matrix_learning_rate == depth.REFERENCE_MATRIX_RATE


def test_a_deeper_model_takes_more_data_and_larger_batches():
    small, large = depth.get_config('12'), depth.get_config('24')
    tokens = [c.train.num_steps * c.train.batch_size for c in (small, large)]
    growth = depth.matrix_params(24) / depth.matrix_params(12)
    assert tokens[1] / tokens[0] == pytest.approx(growth, rel=0.01)
    # 6.6 times the data give 2.05 times the batch, rounded to a power of two. The
    # learning rates grow by sqrt(2) with the batch; those of parameters that are not
    # matrices also shrink by sqrt(2) with twice the width.
    assert large.train.batch_size == 2 * small.train.batch_size
    assert large.optim.matrix_learning_rate == pytest.approx(
        2**0.5 * small.optim.matrix_learning_rate
    )
    assert large.optim.learning_rate == pytest.approx(small.optim.learning_rate)
