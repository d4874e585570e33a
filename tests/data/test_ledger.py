import shutil

import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import dataloader, ledger
from gptjax.data.packed_dataset import PackedDataset


def read_batch(run, step):
    dataset = PackedDataset(run.prepared, 'train')
    return next(dataloader.training_batches(dataset, run.config.seed, 8, None, step))


def test_describe_batch_shows_documents_and_text(run):
    lines = list(ledger.describe_batch(run.config, run.workdir, 2))
    batch = read_batch(run, 2)
    to_predict = int(np.sum(batch['weights']))
    assert lines[0] == f'step 2: 8 rows of 16 tokens, {to_predict} to predict'
    assert sum(line.startswith('row ') for line in lines) == 8
    shown = ''.join(line.removeprefix('    ') for line in lines if line[:4] == '    ')
    assert shown == ''.join(run.tokenizer.decode(row) for row in batch['inputs'])
    rows = ledger.batch_documents(run.config, run.workdir, 2)
    names = [line.split()[0] for line in lines if line[:2] == '  ' and line[2] != ' ']
    assert len(rows) == 8 and all(rows) and names == sum(rows, [])


def test_errors(run, tmp_path):
    with pytest.raises(UserError, match='--step=-1: steps count from 0'):
        list(ledger.describe_batch(run.config, run.workdir, -1))
    with pytest.raises(UserError, match='run the stage `prepare`'):
        list(ledger.describe_batch(run.config, tmp_path, 0))
    workdir = shutil.copytree(run.workdir, tmp_path / 'copy')
    manifest = storage.read_json(workdir / 'prepared' / 'manifest.json')
    storage.write_json(
        workdir / 'prepared' / 'manifest.json', {**manifest, 'tokenizer': 'other'}
    )
    with pytest.raises(UserError, match='made with another tokenizer: delete it'):
        list(ledger.describe_batch(run.config, workdir, 0))
