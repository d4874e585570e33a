"""Runs go to wandb and mlflow in their offline forms; without them, one message."""

import sys

import pytest
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.eval.report.push_run import push_run
from tests import runs

KEY = 'a-secret-key-0123456789012345678901234567'
CONFIG = ConfigDict(dict(seed=0, model=dict(width=32), names=('a', 'b')))


@pytest.fixture
def run(tmp_path, monkeypatch):
    for name in ('WANDB_MODE', 'MLFLOW_TRACKING_URI'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('WANDB_API_KEY', KEY)
    lines = [
        '{"step": 1, "split": "train", "loss": 2.5, "grad_norm": null}',
        '{"step": 2, "split": "train", "loss": 2.25}',
        '{"step": 2, "split": "validation", "loss": 2.0}',
    ]
    folder = tmp_path / 'my run'
    storage.write_text(folder / 'metrics.jsonl', '\n'.join(lines) + '\n')
    storage.write_text(folder / 'config.json', '{}')
    figure = dict(value=0.5, interval=None)
    task = dict(figures={'accuracy': figure, 'none': dict(value=None, interval=None)})
    storage.write_json(folder / 'eval.json', dict(tasks={'mine@1': task}))
    return folder


def push(run, service):
    push_run(service, CONFIG, run)


@pytest.mark.parametrize('service', ['wandb', 'mlflow'])
def test_a_missing_package_is_one_message(run, service, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, service, None)
    assert runs.gptjax('report', run, '--push', service) == 2
    error = capsys.readouterr().err.strip().split('\n')[-1]
    assert f'pip install {service}' in error and not (run / 'pushed').exists()


def test_wandb_offline(run, capfd):
    pytest.importorskip('wandb')
    push(run, 'wandb')
    out, err = capfd.readouterr()
    [written] = (run / 'pushed/wandb').glob('offline-run-*')
    assert f'wandb sync {written}' in out and KEY not in out + err
    content = b''.join(file.read_bytes() for file in written.glob('*.wandb'))
    for text in (b'train/loss', b'validation/loss', b'eval/mine@1/accuracy', b'width'):
        assert text in content, text
    assert b'report.html' in content and KEY.encode() not in content


def test_mlflow_in_a_local_database(run, capfd):
    mlflow = pytest.importorskip('mlflow')
    push(run, 'mlflow')
    push(run, 'mlflow')
    out, _ = capfd.readouterr()
    uri = f'sqlite:///{run}/pushed/mlflow.db'
    assert uri in out
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name('gptjax')
    first, second = client.search_runs([experiment.experiment_id])
    for pushed in (first, second):
        assert pushed.info.run_name == 'my run' and pushed.info.status == 'FINISHED'
        assert pushed.data.params['model.width'] == '32'
        assert pushed.data.metrics == {
            'train/loss': 2.25,
            'validation/loss': 2.0,
            'eval/mine_1/accuracy': 0.5,
        }
        history = client.get_metric_history(pushed.info.run_id, 'train/loss')
        assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 2.25)]
        [artifact] = client.list_artifacts(pushed.info.run_id)
        assert artifact.path == 'report.html'
