"""The learning-rate range test."""

import math

import pytest

from gptjax.core import storage
from gptjax.train.metrics import read_metrics
from gptjax.tune import lr_range
from tests import helpers, runs
from tests.test_main import error_of


def test_where_the_loss_falls_fastest():
    config = helpers.config()
    config.train.num_steps = 101
    factors = [10.0 ** (-3 + 5 * step / 100) for step in range(101)]
    # A valley: it falls fastest at step 40, factor 0.1, and is lowest at step 60, 1.
    losses = [
        6 - 2 / (1 + math.exp((40 - s) / 4)) + max(0, s - 60) / 20 for s in range(101)
    ]
    results = lr_range.describe_range(config, factors, losses)
    optim = config.optim
    for name in ('learning_rate', 'matrix_learning_rate'):  # muon has both
        assert results['suggested'][name] == pytest.approx(0.1 * optim[name], rel=0.3)
        assert results['lowest'][name] == pytest.approx(optim[name], rel=0.3)
    config.optim.name = 'lion'
    results = lr_range.describe_range(config, factors, [*losses[:80], math.nan])
    assert list(results['suggested']) == ['learning_rate'] and results['diverged']


@pytest.mark.parametrize(
    'losses, diverged',
    (
        ([6.0] * 30, False),
        ([6.0] * 30 + [math.inf], True),
        ([6.0] * 10 + [4.0] * 10 + [4.5] * 10, False),
        ([6.0] * 10 + [4.0] * 10 + [5.5] * 10, True),  # half of what it had gained
        ([6.0] * 10 + [5.9] * 10 + [6.1] * 10, False),  # it had gained nothing yet
        ([6.0] * 10 + [12.0] * 10, True),
    ),
)
def test_when_it_ends(losses, diverged):
    assert lr_range.has_diverged(losses, num_steps=100) == diverged


@pytest.mark.slow
def test_the_stage(capsys, tmp_path):
    words = ('--config=configs/tiny.py', f'--workdir={tmp_path}')
    error = error_of(capsys, 'lr_range', *words, '--config.train.num_steps=20')
    assert 'train.num_steps=20: a range test needs' in error
    words = (*words, '--config.train.num_steps=50')
    output, _ = runs.finish(runs.start('lr_range', *words))
    results = storage.read_json(tmp_path / 'lr_range.json')
    assert (
        f'optim.matrix_learning_rate={results["suggested"]["matrix_learning_rate"]:.3g}'
        in output
    )
    assert '<figure>' in (tmp_path / 'lr_range.html').read_text()
    # The same batches and the same first loss as `pretrain` in this run directory.
    runs.finish(runs.start('pretrain', *words))
    first = read_metrics(tmp_path / 'metrics.jsonl')[0]
    assert first['loss'] == results['loss'][0] and first['split'] == 'train'
