"""What a run cost, by its metrics."""

import json

import pytest
from ml_collections import ConfigDict

from gptjax.eval.report import run_cost
from gptjax.models.parameter_count import train_flops_per_token
from tests import helpers


@pytest.mark.parametrize(
    'tokens, inputs',
    [(3, 2 * 4 * 16), (2 * 4 * 16, 2 * 2 * 4 * 16)],  # of an update: sft, pairs
)
def test_flops_are_those_of_all_tokens_of_the_batches(
    tokens, inputs, tmp_path, monkeypatch
):
    settings = helpers.model_settings()
    monkeypatch.setattr(run_cost, 'load_run_tokenizer', lambda *_: (None, settings))
    record = dict(split='train', tokens=tokens, tokens_per_second=1, step_seconds=1)
    lines = [json.dumps(dict(record, step=step)) + '\n' for step in (1, 2)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(lines))
    config = ConfigDict(dict(train=dict(batch_size=4), data=dict(context=16)))
    cost = run_cost.measure_cost(config, tmp_path)
    assert cost.tokens == 2 * tokens
    assert cost.flops == inputs * train_flops_per_token(settings, 16)[1]
