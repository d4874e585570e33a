"""Runs that an older version made half-way are evaluated and gone on from.

`frozen_runs` has one run of every stage of training, stopped by SIGTERM and made on a
CPU by the version that had a loop for each stage; `expected.json` says what that
version made of them in the end. They are never made anew: a change that they do not
survive is one that loses users' runs. (On the machine that made them the parameters
come out the same to the bit; another CPU adds in another order, so figures are
compared.)
"""

import json
import shutil

import pytest

from gptjax.core import storage
from gptjax.train.metrics import read_metrics
from tests import runs

FOLDER = runs.ROOT / 'tests' / 'frozen_runs'
EXPECTED = storage.read_json(FOLDER / 'expected.json')
CLOSE = dict(rel=1e-3, abs=1e-4)


@pytest.fixture
def frozen(tmp_path):
    """A copy in which runs name each other by where they lie now."""
    folder = tmp_path / 'runs'
    shutil.copytree(FOLDER, folder)
    for name in ('config.json', 'environment.json'):
        for path in folder.rglob(name):
            path.write_text(path.read_text().replace('@ROOT@', str(folder)))
    return folder


def timeless(records):
    """Records without clock, throughput, and what only newer versions write."""
    kept = {
        name for record in EXPECTED.values() for m in record['metrics'] for name in m
    }
    return [{k: v for k, v in record.items() if k in kept} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'pretrain',
        'sft_lora',
        'ppo',
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ('sft', 'reward', 'dpo', 'grpo')
        ),
    ],
)
def test_an_older_run_ends_as_it_would_have(name, frozen, monkeypatch):
    expected, workdir = EXPECTED[name], frozen / name
    monkeypatch.chdir(runs.ROOT)  # manifests name the data from there
    assert runs.gptjax(expected['stage'], f'--workdir={workdir}') == 0
    steps = [int(path.name) for path in (workdir / 'checkpoints').glob('0*')]
    assert expected['step'] in steps and expected['stopped_at'] < expected['step']
    records = timeless(read_metrics(workdir / 'metrics.jsonl'))
    assert len(records) == len(expected['metrics'])
    for record, before in zip(records, expected['metrics'], strict=True):
        assert record == pytest.approx(before, **CLOSE)
    if 'tasks' in expected:
        tasks = expected['tasks'].replace('@ROOT@', str(frozen))
        assert runs.gptjax('eval', f'--workdir={workdir}', f'--tasks={tasks}') == 0
        found = json.loads((workdir / 'eval.json').read_text())['tasks']
        figures = {
            task: {figure: value['value'] for figure, value in its['figures'].items()}
            for task, its in found.items()
        }
        assert figures.keys() == expected['figures'].keys()
        for task, values in expected['figures'].items():
            assert figures[task] == pytest.approx(values, rel=0.02, abs=0.02)
