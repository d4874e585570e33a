"""The stage `scaling` of the command line."""

import importlib
from collections.abc import Sequence

from gptjax import command_line
from gptjax.command_line import FLAGS, TRAINING
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.open_run import given_workdir
from gptjax.tune_stage import make_training, read_base


def run_scaling(words: Sequence[str]) -> dict | None:
    """Returns None, or the summary of a run that a signal interrupted."""
    command_line.refuse_words(words)
    if FLAGS.fit is not None:
        return _fit_table()
    if FLAGS.drop:
        raise UserError(f'--drop={FLAGS.drop}: it belongs to --fit: leave it out')
    if not given_workdir() or FLAGS.config is None:
        raise UserError(
            'use --config configs/NAME.py and --workdir RUN, or --fit FILE.csv'
        )
    command = importlib.import_module(TRAINING['pretrain']).COMMAND
    base = read_base(command)
    if 'start' in base:
        raise UserError(
            f'start.run={base.start.run}: the runs of a ladder begin at random '
            'weights: leave out the section `start`'
        )
    command.check(base)
    from gptjax.tune import ladder

    workdir, training = given_workdir(), make_training(command, base)
    rungs = ladder.make_ladder(base)
    with run_dir.locked(workdir):
        ladder.open_ladder(base, workdir)
        losses, summary = ladder.train_ladder(rungs, workdir, training)
        if summary:
            return summary
        from gptjax.tune import forecast

        return forecast.forecast_and_score(base, rungs, losses, workdir, training)


def _fit_table():
    """Prints the law of a table of runs."""
    for name in ('config', 'workdir'):
        if FLAGS[name].present:
            raise UserError(f'--{name}: --fit only reads a table: leave it out')
    from gptjax.eval.report.tables import print_table
    from gptjax.tune.loss_table import describe_fit, fit_table

    number, fit = fit_table(FLAGS.fit, FLAGS.drop)
    print(f'L(N, D) = E + A / N^alpha + B / D^beta, fitted to {number} runs')
    print_table(describe_fit(fit.describe(0.95)), right_aligned=(1, 2))
