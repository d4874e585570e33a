"""The stages `tune`, `transfer` and `lr_range`, and --seeds of stages that train."""

import importlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from gptjax import command_line
from gptjax.check_stage import choose_stage
from gptjax.command_line import FLAGS, TRAINING
from gptjax.core import run_dir
from gptjax.core.config import check_fields, complete_new
from gptjax.core.console import UserError
from gptjax.open_run import (
    HELD,
    check_new,
    check_sections,
    given_workdir,
    make_artifacts,
    open_run,
)
from gptjax.parallel.distributed import use_compilation_cache

WITH_TEXT = ('pretrain', 'sft')  # their batches are rows of data.context tokens
MEASURED_BY = dict(
    bits_per_byte=WITH_TEXT, tokens_per_second=(*WITH_TEXT, 'reward', 'dpo')
)


def run_tune(words: Sequence[str]) -> dict | None:
    """Runs trials; returns None, or the summary of a run that a signal interrupted."""
    _refuse_missing(words, 'space', '"optim.learning_rate=log(1e-4,1e-1)"')
    stage = FLAGS.stage or choose_stage()
    command = importlib.import_module(TRAINING[stage]).COMMAND
    options, base = _read_options(stage, command)
    from gptjax.tune import study_page

    return _run(command, options, base, study_page.describe_study)


def run_seeds(stage: str, words: Sequence[str]) -> dict | None:
    """Trains with several seeds: a study of the field `seed`, whose grid is known."""
    _refuse_missing(words, 'seeds', '5')
    command = importlib.import_module(TRAINING[stage]).COMMAND
    base = read_base(command)
    if FLAGS.seeds < 2:
        raise UserError(f'--seeds={FLAGS.seeds}: use a number of at least 2')
    from gptjax.tune import seeds

    options = seeds.make_options(stage, base.seed, FLAGS.seeds)
    return _run(command, options, base, seeds.describe_seeds)


def run_transfer(words: Sequence[str]) -> dict | None:
    """Learning rates over widths, with and without muP: a study whose grid is known."""
    example = '"model.width=choice(32,64); optim.learning_rate=log(1e-3,1e-1,7)"'
    _refuse_missing(words, 'space', example)
    command = importlib.import_module(TRAINING['pretrain']).COMMAND
    base = read_base(command)
    from gptjax.tune import search_space, transfer

    options = transfer.make_options(search_space.parse_space(FLAGS.space), FLAGS.space)
    derive = transfer.make_derive(base, options.dimensions[1].values)
    summary = _run(command, options, base, transfer.describe_transfer, derive)
    if summary is None:
        with_values = lambda values: _with_values(base, values)
        transfer.check_coordinates(with_values, derive, given_workdir())
    return summary


def run_lr_range(words: Sequence[str]) -> None:
    """The learning-rate range test of pretraining; the data of RUN are made for it."""
    config, workdir = open_run(words)
    command = importlib.import_module(TRAINING['pretrain']).COMMAND
    if 'start' in config:
        raise UserError(
            f'start.run={config.start.run}: a range test trains a new model: use a '
            'config without the section `start`'
        )
    command.check(config)
    from gptjax.tune import lr_range

    lr_range.check_steps(config)
    make_artifacts(config, workdir, command.artifacts(config))
    results = lr_range.run_range(config, workdir)
    for field, rate in results['suggested'].items():
        lowest = results['lowest'][field]
        print(f'optim.{field}={rate:.3g}  (the loss is lowest at {lowest:.3g})')
    print(f'Made: {workdir / "lr_range.html"}')


def _refuse_missing(words, flag, example):
    command_line.refuse_words(words)
    if not given_workdir() or FLAGS.config is None or not FLAGS[flag].value:
        raise UserError(
            f'use --config configs/NAME.py, --workdir RUN and --{flag} {example}'
        )


def _run(command, options, base, describe, derive=lambda values: values):
    from gptjax.tune import study

    training = make_training(command, base, derive)
    return study.run_study(options, base, given_workdir(), training, describe)


def make_training(command, base: ConfigDict, derive=lambda values: values):
    """How a run with other values of some fields is prepared and trained."""
    from gptjax.tune import trial_run

    changes = command_line.changed_fields()

    def prepare(values, folder):
        config = _with_values(base, values)
        config = check_new(
            config, changes | values, folder, command.sections, command.example
        )
        config = command.complete(config, folder)
        command.check(config)
        return config

    def train(config, folder, lock):
        try:
            with lock:
                make_artifacts(config, folder, command.artifacts(config))
            return command.train(config, folder)
        finally:
            HELD.close()  # the lock of the trial's run

    words = tuple(run_dir.config_words(sys.argv[1:]))
    return trial_run.Training(prepare, train, words, derive)


def read_base(command) -> ConfigDict:
    """The config of --config, checked."""
    base, name = complete_new(FLAGS.config), FLAGS['config'].config_filename
    check_fields(base)
    check_sections(base, name, command.sections, command.example)
    use_compilation_cache(base.train.compilation_cache)
    return base


def _read_options(stage, command):
    """(the options of the study, the config of --config), checked."""
    base = read_base(command)
    from gptjax.tune import search_space, trial_run

    dimensions = search_space.parse_space(FLAGS.space)
    _check_dimensions(dimensions, base)
    grid = search_space.check_grid(dimensions, FLAGS.sampler)
    if FLAGS.trials is None and not grid:
        raise UserError('--trials is missing: give a number of trials, e.g. 20')
    if FLAGS.trials is not None and FLAGS.trials < 1:
        raise UserError(f'--trials={FLAGS.trials}: use a number of at least 1')
    pruner = _check_objectives(stage, dimensions, trial_run.OBJECTIVES)
    _check_limits(stage, base)
    options = trial_run.Options(
        stage=stage,
        space=FLAGS.space.strip(),
        dimensions=dimensions,
        num_trials=FLAGS.trials or grid,
        sampler=FLAGS.sampler,
        pruner=pruner,
        objectives=tuple(FLAGS.objectives),
        url=FLAGS.storage,
        max_params=FLAGS.max_params,
        max_flops=FLAGS.max_flops,
    )
    return options, base


def _check_dimensions(dimensions, base):
    """Refuses fields that the config lacks, or that cannot differ between trials."""
    from gptjax.train.init_from import CHANGEABLE, INHERITED

    for field, *_ in dimensions:
        if field in command_line.changed_fields():
            raise UserError(f'--config.{field}: it is in --space, too: leave one out')
        _find_parent(base, field)
        inherited = 'start' in base and field.split('.')[0] in INHERITED
        if inherited and field not in CHANGEABLE:
            raise UserError(
                f'--space: {field}: model and tokenizer are those of start.run: leave '
                f'it out; you can change only {", ".join(CHANGEABLE)}'
            )


def _check_objectives(stage, dimensions, known) -> str:
    """Refuses what --objectives cannot have; returns the pruner."""
    names = FLAGS.objectives
    for name in names:
        if name not in known or names.count(name) > 1:
            words = ', '.join(known)
            raise UserError(f'--objectives={name}: use some of {words}, each once')
        if stage not in MEASURED_BY.get(name, TRAINING):
            raise UserError(
                f'--objectives={name}: `{stage}` does not measure it: use loss'
            )
    if 'loss' in names and any(d.field.startswith('tokenizer.') for d in dimensions):
        raise UserError(
            '--objectives=loss: losses per token of different tokenizers cannot be '
            'compared: use --objectives=bits_per_byte'
        )
    if FLAGS.sampler == 'cmaes':
        if len(names) > 1:
            raise UserError('--sampler=cmaes has one objective: use --sampler=tpe')
        from gptjax.tune.samplers import make_sampler

        make_sampler('cmaes', dimensions, 0)  # refuses a missing package
    prunable = names in (['loss'], ['bits_per_byte'])
    if FLAGS.pruner not in (None, 'none') and not prunable:
        raise UserError(
            f'--pruner={FLAGS.pruner}: it needs one objective, a loss: leave it out'
        )
    return FLAGS.pruner or ('median' if prunable else 'none')


def _check_limits(stage, base):
    for name in ('max_params', 'max_flops'):
        if not FLAGS[name].value >= 0:
            raise UserError(f'--{name}={FLAGS[name].value}: use a positive number')
    if FLAGS.max_flops and stage not in WITH_TEXT:
        raise UserError(
            f'--max_flops: the FLOPs of `{stage}` are not known in advance: leave it '
            'out'
        )
    if FLAGS.max_flops and stage == 'sft' and base.sft.epochs:
        raise UserError(
            f'--max_flops: sft.epochs={base.sft.epochs} decides the number of steps: '
            'add --config.sft.epochs=0'
        )


def _with_values(base: ConfigDict, values: dict) -> ConfigDict:
    """The config with other values, by field."""
    config = base.copy_and_resolve_references()
    for field, value in values.items():
        section, name = _find_parent(config, field)
        section[name] = value
    return config


def _find_parent(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """The section of a field such as 'data.sources.own.weight', and its name in it."""
    *path, name = field.split('.')
    section = config
    for word in path:
        if word not in section:
            raise UserError(
                f'--space: {field}: {FLAGS["config"].config_filename} has no such '
                'section: use another config, or another field'
            )
        section = section[word]
    return section, name
