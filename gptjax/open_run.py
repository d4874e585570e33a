"""Opens the run directory of a command, and builds its artifacts."""

import contextlib
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from gptjax import command_line
from gptjax.command_line import FLAGS, TRAINING
from gptjax.core import run_dir
from gptjax.core.artifact import Artifact, find_manifest
from gptjax.core.config import check_fields, complete_new
from gptjax.core.console import UserError
from gptjax.parallel import distributed

HELD = contextlib.ExitStack()  # locks that a stage holds until it ends


def open_run(
    words: Sequence[str],
    sections: Sequence[str] = (),
    example: str = '',
    join: bool = False,
) -> tuple[ConfigDict, Path]:
    """(config, run directory) of a stage; the config is checked, also against RUN.

    sections: config sections that the stage needs besides those of every config.
    example: a config file that has these sections, for the error message.
    join: whether the stage runs on all processes of a cluster, if this is one of them.
    """
    command_line.refuse_words(words)
    if not FLAGS.workdir:
        raise UserError('--workdir is missing: give a run directory, e.g. runs/tiny')
    workdir = given_workdir()
    if FLAGS.config is None:
        config = run_dir.read_config(workdir)
        _join(config, join)
        check_sections(config, str(workdir / 'config.json'), sections, example)
        check_fields(config)
        _check_augmentations(config, sections)
        return config, workdir
    config = complete_new(FLAGS.config)
    _join(config, join)
    changes = command_line.changed_fields()
    return check_new(config, changes, workdir, sections, example), workdir


def _join(config, join):
    """Joins the other processes, before anything uses a device."""
    if join:
        check_fields(config)
        distributed.join_cluster(config.distributed)
        distributed.use_compilation_cache(config.train.compilation_cache)


def check_new(
    config: ConfigDict,
    changes: dict,
    workdir: Path,
    sections: Sequence[str] = (),
    example: str = '',
) -> ConfigDict:
    """A --config completed from `start.run`, and checked, also against RUN.

    changes: the fields, as 'optim.ema', that were changed in it, and their values.
    """
    check_sections(config, FLAGS['config'].config_filename, sections, example)
    _check_steps(config, changes)
    if 'start' in config:
        from gptjax.train import init_from

        inherited = {
            name: value
            for name, value in changes.items()
            if name.split('.')[0] in init_from.INHERITED
        }
        config = init_from.inherit_config(config, workdir, inherited)
    check_fields(config)
    _check_augmentations(config, sections)
    run_dir.check_run(config, workdir)
    return config


def check_sections(
    config: ConfigDict, config_name: str, sections: Sequence[str], example: str
) -> None:
    """Raises UserError if a section that a stage needs is missing."""
    for section in sections:
        if section not in config:
            raise UserError(
                f'{config_name}: the section `{section}`, which this stage needs, is '
                f'missing: use another config, e.g. {example}'
            )


def _check_augmentations(config, sections):
    """Refuses wrong names, and any for stages that start from an earlier run."""
    if not config.data.augment:
        return
    from gptjax.data.augmentation import augmentations

    augmentations.check_names(config.data)
    if sections and 'sft' not in sections:
        augmentations.refuse_augmentations(config.data)


def _check_steps(config, changes):
    """Raises UserError for train.num_steps where the epochs decide the steps."""
    for section in ('sft', 'preference', 'reward'):
        if (
            'train.num_steps' in changes
            and section in config
            and config[section].epochs
        ):
            raise UserError(
                f'--config.train.num_steps: {section}.epochs={config[section].epochs} '
                'decides the number of steps: leave the flag out, or add '
                f'--config.{section}.epochs=0'
            )


def open_training(stage: str, words: Sequence[str], join: bool = False) -> tuple:
    """(`Command`, config, run directory) of a stage that trains; builds artifacts.

    join: see `open_run`.
    """
    command = importlib.import_module(TRAINING[stage]).COMMAND
    config, workdir = open_run(words, command.sections, command.example, join)
    if (workdir / 'imported').is_dir():
        raise UserError(
            f'--workdir={workdir} is an imported model: train in another --workdir, '
            f'with --config.start.run={workdir}'
        )
    config = command.complete(config, workdir)
    command.check(config)
    make_artifacts(config, workdir, command.artifacts(config))
    return command, config, workdir


def given_workdir() -> Path | None:
    """The absolute path of --workdir; None also if the flags are not parsed."""
    workdir = FLAGS['workdir'].value
    return Path(workdir).expanduser().absolute() if workdir else None


def make_artifacts(
    config: ConfigDict, workdir: Path, artifacts: Sequence[Artifact]
) -> None:
    """Builds the missing artifacts, and locks RUN until the command ends."""

    def make_here():
        HELD.enter_context(run_dir.locked(workdir))
        is_new = not (workdir / 'environment.json').exists()
        for artifact in artifacts:
            exists = find_manifest(workdir / artifact.name) is not None
            start = time.monotonic()
            manifest = artifact.build(config, workdir)
            origin = 'found' if exists else f'made in {time.monotonic() - start:,.0f} s'
            if not exists and (details := artifact.details(manifest)):
                print(details)
            print(f'{artifact.describe(manifest)} ({origin})')
            is_new = is_new or not exists
        run_dir.write_config(config, workdir)
        if is_new:
            run_dir.write_environment(workdir)

    if not distributed.is_joined():
        make_here()
        return
    from gptjax.parallel import multihost

    multihost.run_on_first_process(workdir, make_here)
