"""`bench data`: the rates of the data loader, with and without metrics of training."""

import json

import pytest
from ml_collections import ConfigDict

from gptjax.bench import bench_data
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.packed_documents import build_packed_documents
from gptjax.tokenizer.train_tokenizer import train_tokenizer


def make_run(workdir):
    text = 'the cat sat on the mat and then it went out to see the dog '
    for split in ('train', 'validation'):
        line = json.dumps({'id': '0', 'source': 'a', 'text': text * 30}) + '\n'
        storage.write_text(workdir / 'documents' / f'{split}.jsonl', line)
    storage.write_json(
        workdir / 'documents' / 'manifest.json', {'fingerprint': '', 'licences': {}}
    )
    config = ConfigDict(
        {
            'seed': 0,
            'data': {
                'sources': {'a': {'weight': 0.0}},
                'context': 8,
                'workers': 1,
                'augment': (),
            },
            'tokenizer': {'kind': 'bpe', 'vocab_size': 285, 'train_characters': 10**6},
            'train': {'batch_size': 8},
            'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'context': 1},
        }
    )
    train_tokenizer(config, workdir)
    build_packed_documents(config, workdir)
    return config


def test_a_run_without_packed_documents(tmp_path):
    with pytest.raises(UserError, match='run `prepare --config .* --workdir RUN` firs'):
        bench_data.run(ConfigDict(), tmp_path)


@pytest.mark.slow
def test_measures_and_compares_with_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_data, 'SECONDS', 0.2)
    config = make_run(tmp_path)
    result = bench_data.run(config, tmp_path)
    assert result['cold'] > 0 and result['warm'] > 0
    assert result['training'] is result['ratio'] is None
    assert 'run the stage `pretrain`' in capsys.readouterr().out

    lines = [
        {'step': 1, 'split': 'train', 'tokens_per_second': 10.0},
        {'step': 2, 'split': 'train', 'tokens_per_second': 1000.0},
        {'step': 2, 'split': 'validation', 'loss': 1.0},
        {'step': 3, 'split': 'train', 'tokens_per_second': 990.0},
    ]
    metrics = ''.join(json.dumps(line) + '\n' for line in lines)
    storage.write_text(tmp_path / 'metrics.jsonl', metrics)
    result = bench_data.run(config, tmp_path)
    assert result['training'] == 990.0
    assert result['ratio'] == result['warm'] / 990.0
    assert 'warm / training' in capsys.readouterr().out
