"""`bench train`: the training step against a fake PyTorch."""

import jax
import pytest

from gptjax.bench import bench_decode, bench_train, comparison
from gptjax.core.console import UserError
from tests import helpers
from tests.bench.test_torch_gpt2 import fake_interpreter

# A fake torch that takes 1000 seconds per step.
SLOW = """
print('{}', flush=True)
for line in sys.stdin:
    seconds = [1e3] * json.loads(line)['steps']
    print(json.dumps({'step_seconds': seconds, 'loss': 1.0}), flush=True)
"""


def gpt2_config(**fields):
    sizes = dict(num_layers=1, width=8, num_heads=2, context=8)
    config = helpers.config(**bench_train.GPT2 | sizes)
    config.tokenizer.vocab_size = helpers.VOCAB
    config.data.context = 8
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.slow
def test_implementations_alternate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    monkeypatch.setattr(bench_train, 'ROUNDS', 2)
    monkeypatch.setattr(bench_train, 'STEPS', 1)
    python = fake_interpreter(tmp_path, SLOW)
    results = bench_train.run(gpt2_config(), 'torch', python)
    assert results.keys() == {'gptjax', 'torch eager', 'torch compile'}
    assert {result['steps'] for result in results.values()} == {2}
    assert results['torch eager']['tokens_per_second'] == 8 * 8 / 1e3
    assert results['gptjax']['tokens_per_second'] > 8 * 8 / 1e3
    assert results['torch compile']['speedup']['low'] > 1
    output = capsys.readouterr().out
    assert 'times as fast as torch eager' in output and 'gptjax         ' in output


@pytest.mark.parametrize(
    'field, value, message',
    (
        ('data.context', 16, 'data.context=16 is longer than the model.context=8'),
        ('train.accumulation', 3, 'train.accumulation=3 does not divide'),
        ('train.batch_size', 12, 'train.batch_size=12 .* use a multiple of 8'),
    ),
)
def test_configs_that_cannot_train_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        bench_train.run(gpt2_config(**{field: value}))


def test_another_model_or_library_is_refused_before_anything_compiles(monkeypatch):
    monkeypatch.delattr(bench_train, 'make_trainer')
    with pytest.raises(UserError, match="^model.norm='rmsnorm', .* has 'layernorm'"):
        bench_train.run(gpt2_config(**{'model.norm': 'rmsnorm'}), 'torch')
    with pytest.raises(UserError, match='^--against=jax: use torch$'):
        bench_train.run(gpt2_config(), 'jax')


@pytest.mark.parametrize('bench', [bench_train, bench_decode])
def test_an_accelerator_is_not_compared_with_a_cpu(bench, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    with pytest.raises(UserError, match='^--against=torch .* on the gpu here: leave'):
        bench.run(gpt2_config(), against='torch')
