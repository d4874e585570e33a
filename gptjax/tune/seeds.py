"""`--seeds N` of a stage that trains: the same config with N seeds, as a study.

RUN/trials/000, 001, …   a run for each seed
RUN/seeds.json           {"loss": {"mean": …, "interval": [low, high]}, "runs": […]}
"""

from pathlib import Path
from statistics import fmean

import optuna
from optuna.trial import TrialState

from gptjax.core import storage
from gptjax.eval.validation_table import LEVEL, t_interval
from gptjax.tune.search_space import Dimension
from gptjax.tune.study import trial_folder
from gptjax.tune.trial_run import Options


def make_options(stage: str, first: int, num_seeds: int) -> Options:
    """The study of the seeds `first`, `first + 1`, …; it can be given more later."""
    return Options(
        stage=stage,
        space=f'seed={first}, {first + 1}, …',
        dimensions=[Dimension('seed', 'int', (first, first + num_seeds - 1))],
        num_trials=num_seeds,
        sampler='grid',
        pruner='none',
        objectives=('loss',),
    )


def describe_seeds(study: optuna.Study, options: Options, workdir: Path) -> str:
    """Writes RUN/seeds.json; returns lines about the runs and their mean."""
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    runs = [
        dict(
            seed=trial.params['seed'],
            loss=trial.values[0],
            run=str(trial_folder(workdir, trial.number)),
        )
        for trial in complete
    ]
    if not runs:
        return ''
    losses = [run['loss'] for run in runs]
    interval = t_interval(losses)
    loss = dict(mean=fmean(losses), interval=interval, level=LEVEL)
    storage.write_json(workdir / 'seeds.json', dict(loss=loss, runs=runs))
    lines = [f'seed {r["seed"]}: loss {r["loss"]:.4f}  {r["run"]}' for r in runs]
    about = (
        f' ({interval[0]:.4f} to {interval[1]:.4f}, {LEVEL:.0%} t interval)'
        if interval
        else ''
    )
    lines.append(f'mean of {len(runs)} seeds: loss {loss["mean"]:.4f}{about}')
    return '\n'.join(lines)
