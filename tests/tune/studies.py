"""Studies whose trials take no time: a run is a few lines in metrics.jsonl.

A run validates three times; its loss falls towards (log10(optim.learning_rate) + 2)².
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import optuna

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.train.metrics import read_metrics
from gptjax.train.stopping import WATCH
from gptjax.tune import study, study_page
from gptjax.tune.search_space import parse_space
from gptjax.tune.trial_run import Options, Training
from tests import helpers

SPACE = 'optim.learning_rate=log(1e-4,1e-1); model.width=choice(32,64)'


def run(
    workdir,
    before=lambda number, done: None,
    loss_of=None,
    describe=study_page.describe_study,
    **options,
):
    """Runs a study; returns what `run_study` returns.

    before: called before each validation with the number of the trial and of the
        validation, from 1.
    loss_of: from a config to its loss; raises UserError for a trial that fails.
    options: fields of `Options` that differ.
    """
    defaults = dict(
        stage='pretrain',
        space=SPACE,
        num_trials=6,
        sampler='random',
        pruner='none',
        objectives=('loss',),
    )
    if 'dimensions' not in options:
        options['dimensions'] = parse_space(options.get('space', SPACE))
    options = Options(**defaults | options)
    base = helpers.config()
    loss_of = loss_of or (lambda c: (math.log10(c.optim.learning_rate) + 2) ** 2)

    def prepare(values, folder):
        config = base.copy_and_resolve_references()
        config.update_from_flattened_dict(values)
        return config

    def train(config, folder, lock):
        with lock:
            run_dir.write_config(config, folder)
        number, path = int(folder.name), folder / 'metrics.jsonl'
        reason, done = 'finished', len(read_metrics(path))  # it resumes
        while done < 3:
            done += 1
            before(number, done)
            loss = loss_of(config) + 0.1 * (3 - done)
            record = dict(loss=loss if math.isfinite(loss) else None)
            record.update(bits_per_byte=record['loss'], tokens_per_second=64.0)
            with open(path, 'a') as file:
                for split in ('validation', 'train') if done == 3 else ('validation',):
                    file.write(json.dumps(dict(record, step=done, split=split)) + '\n')
            reason = WATCH.get()(done, dict(loss=loss, bits_per_byte=loss))
            if reason:
                break
        return dict(reason=reason or 'finished', step=done)

    return study.run_study(options, base, workdir, Training(prepare, train), describe)


def trials_of(workdir) -> list:
    url = f'sqlite:///{workdir}/study.db'
    return optuna.load_study(study_name=workdir.name, storage=url).trials


def results_of(workdir) -> list:
    return [(t.params, t.values, t.state.name) for t in trials_of(workdir)]


def main(workdir: str, moment: str) -> None:
    """A process of its own: `moment` is when it is killed, or what it waits for."""
    workdir = Path(workdir)
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if moment.startswith('asked'):  # a trial has a number and nothing else
        claim = study._claim

        def kill(folder, held):
            return die() if folder.name == moment[-3:] else claim(folder, held)

        with mock.patch.object(study, '_claim', kill):
            run(workdir)
        return

    def before(number, done):
        if moment == f'{number}:{done}':
            die()
        if moment == 'together':
            (workdir / f'process{os.getpid()}').touch()
            with open(workdir / 'trained', 'a') as file:
                file.write(f'{number}:{done}:{os.getpid()}\n')
            for _ in range(1200):
                if len([*workdir.glob('process*')]) == 2:
                    return
                time.sleep(0.1)
            raise UserError('the other process has not begun')

    run(workdir, before)


if __name__ == '__main__':
    main(*sys.argv[1:])
