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
def test_an_older_run_ends_as_it_would_have(name, frozen):
    expected, workdir = EXPECTED[name], frozen / name
    # On one device, and from the repository's root, from which manifests name the data.
    runs.finish(runs.start(expected['stage'], f'--workdir={workdir}'))
    steps = [int(path.name) for path in (workdir / 'checkpoints').glob('0*')]
    assert expected['step'] in steps and expected['stopped_at'] < expected['step']
    records = read_metrics(workdir / 'metrics.jsonl')
    assert len(records) == len(expected['metrics'])
    for record, before in zip(records, expected['metrics'], strict=True):
        numbers = {name: record[name] for name in before if name != 'split'}
        assert record['split'] == before.pop('split')
        assert numbers == pytest.approx(before, **CLOSE)
    if 'tasks' in expected:
        tasks = expected['tasks'].replace('@ROOT@', str(frozen))
        runs.finish(runs.start('eval', f'--workdir={workdir}', f'--tasks={tasks}'))
        found = json.loads((workdir / 'eval.json').read_text())['tasks']
        figures = {
            task: {figure: value['value'] for figure, value in its['figures'].items()}
            for task, its in found.items()
        }
        assert figures.keys() == expected['figures'].keys()
        for task, values in expected['figures'].items():
            assert figures[task] == pytest.approx(values, rel=0.02, abs=0.02)
