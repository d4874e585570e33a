"""`report RUN --push wandb` and `--push mlflow`: metrics, figures and the report.

Both write to RUN/pushed and send nothing unless their own environment variables say so:
WANDB_MODE=online, MLFLOW_TRACKING_URI=https://… Their packages are optional.
"""

import importlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval.report import provenance
from gptjax.eval.report.run_report import write_report
from gptjax.train.metrics import read_metrics

PROJECT = 'gptjax'
FOLDER = 'pushed'
BATCH = 1000  # the most metrics that mlflow takes at once
MAX_PARAM = 500  # characters of a config value


def push_run(service: str, config: ConfigDict, workdir: Path) -> None:
    """Writes RUN/report.html and a run of the service; prints how to see or send it."""
    try:
        library = importlib.import_module(service)
    except ImportError as error:
        raise UserError(
            f'--push={service}: the package {service} is not installed: '
            f'`pip install {service}`'
        ) from error
    report, folder = write_report(workdir), workdir / FOLDER
    folder.mkdir(exist_ok=True)
    push = dict(wandb=_push_wandb, mlflow=_push_mlflow)[service]
    push(library, config, workdir, report, folder)


def _push_wandb(wandb, config, workdir, report, folder) -> None:
    os.environ.setdefault('WANDB_MODE', 'offline')
    os.environ.setdefault('WANDB_SILENT', 'true')
    session = wandb.init(
        project=PROJECT,
        name=workdir.name,
        dir=folder,
        config=run_dir.to_json(config),
        settings=wandb.Settings(console='off', x_disable_stats=True),
    )
    for step, values in _steps(workdir):
        session.log(values, step=step)
    session.summary.update(_figures(workdir))
    name = re.sub(r'[^\w.-]+', '-', workdir.name)
    artifact = wandb.Artifact(f'{name}-report', type='report')
    artifact.add_file(report)
    session.log_artifact(artifact)
    written = Path(session.dir).parent  # …/wandb/offline-run-DATE-ID/files
    session.finish()
    if os.environ['WANDB_MODE'] == 'offline':
        print(f'Made: {written}\nTo send it: wandb sync {written}')
    else:
        print(f'Sent: the run {workdir.name} of the project {PROJECT}')


def _push_mlflow(mlflow, config, workdir, report, folder) -> None:
    logging.getLogger('mlflow').setLevel(logging.WARNING)  # not of its tables
    from mlflow.entities import Metric, Param

    given = os.environ.get('MLFLOW_TRACKING_URI')
    uri = given or f'sqlite:///{folder / "mlflow.db"}'
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(PROJECT)
    if experiment is None:
        place = {} if given else dict(artifact_location=(folder / 'mlflow').as_uri())
        experiment_id = client.create_experiment(PROJECT, **place)
    else:
        experiment_id = experiment.experiment_id
    run_id = client.create_run(experiment_id, run_name=workdir.name).info.run_id
    now = int(time.time() * 1000)
    metrics = [
        Metric(_mlflow_name(name), value, now, step)
        for step, values in (*_steps(workdir), (0, _figures(workdir)))
        for name, value in values.items()
    ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics[start : start + BATCH])
    fields = provenance.flatten(run_dir.to_json(config))
    params = [Param(name, value[:MAX_PARAM]) for name, value in fields]
    for start in range(0, len(params), BATCH // 10):
        client.log_batch(run_id, params=params[start : start + BATCH // 10])
    client.log_artifact(run_id, str(report))
    client.set_terminated(run_id)
    if given:
        print(f'Sent: the run {workdir.name} of the experiment {PROJECT}')
    else:
        print(f'Made: {folder / "mlflow.db"}')
        print(f'To see it: mlflow ui --backend-store-uri {uri}')


def _steps(workdir: Path) -> Iterator[tuple[int, dict]]:
    """(step, {'train/loss': 2.5}) of each line of metrics.jsonl, in order."""
    for record in read_metrics(workdir / 'metrics.jsonl'):
        step, split = record['step'], record['split']
        values = {
            f'{split}/{name}': value
            for name, value in record.items()
            if name not in ('step', 'split') and isinstance(value, int | float)
        }
        yield step, values


def _figures(workdir: Path) -> dict[str, float]:
    """{'eval/task/accuracy': 0.83} of eval.json."""
    evaluation = storage.read_undamaged(workdir / 'eval.json') or {}
    return {
        f'eval/{task}/{name}': figure['value']
        for task, result in evaluation.get('tasks', {}).items()
        for name, figure in result['figures'].items()
        if figure['value'] is not None
    }


def _mlflow_name(name: str) -> str:
    """mlflow takes letters, digits and _ - . / : and spaces."""
    return re.sub(r'[^\w./: -]', '_', name)
