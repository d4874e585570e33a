"""Half-finished runs of an older version can be evaluated and continued.

`frozen_runs` has one run of every training stage. The version that had a loop for each
stage made them on a CPU and stopped them by SIGTERM; `expected.json` has the results of
that version after the remaining steps. They are never made again: a change that breaks
them would lose users' runs. (On the machine that made them, the final parameters are
equal bit by bit. Another CPU sums in another order, so the tests compare metrics.)

One exception: `grpo` after step 12. Its 13th update has no reply with an advantage, and
since such updates are left out, it no longer moves by momentum. The metrics from there
on were recorded again; those before it, and all other runs, were equal bit by bit.
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
    """Copies the runs and changes the paths by which they refer to each other."""
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
    # On one device, in the repository's root, as the paths in manifests start there.
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
