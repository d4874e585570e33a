"""The run directory of a command: opens it with its config, locks it, fills it."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from gptjax import command_line
from gptjax.command_line import FLAGS
from gptjax.core import run_dir
from gptjax.core.artifact import Artifact, find_manifest
from gptjax.core.config import check_fields, complete_new
from gptjax.core.console import UserError

HELD = contextlib.ExitStack()  # what a stage holds to its end


def open_run(
    words: Sequence[str], sections: Sequence[str] = (), example: str = ''
) -> tuple[ConfigDict, Path]:
    """(config, run directory) of a stage, checked to belong together.

    `sections` are needed besides those of every config; `example` has them.
    """
    command_line.refuse_words(words)
    if not FLAGS.workdir:
        raise UserError('--workdir is missing: name the run directory, as runs/tiny')
    workdir = given_workdir()
    if FLAGS.multihost:
        import jax

        jax.distributed.initialize()  # from the environment: Cloud TPU, Slurm, …
    if FLAGS.config is None:
        config = run_dir.read_config(workdir)
        _check_sections(config, str(workdir / 'config.json'), sections, example)
        check_fields(config)
        return config, workdir
    config = complete_new(FLAGS.config)
    changes = command_line.changed_fields()
    _check_sections(config, FLAGS['config'].config_filename, sections, example)
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
    run_dir.check_run(config, workdir)
    return config, workdir


def _check_sections(config, config_name, sections, example):
    for section in sections:
        if section not in config:
            raise UserError(
                f'this stage needs the section `{section}`, which {config_name} does '
                f'not have: use a config for it, as {example}'
            )


def _check_steps(config, changes):
    """Refuses a number of steps where passes over the data decide it."""
    for section in ('sft', 'preference', 'reward'):
        if (
            'train.num_steps' in changes
            and section in config
            and config[section].epochs
        ):
            raise UserError(
                f'--config.train.num_steps: {section}.epochs={config[section].epochs} '
                f'gives the steps: leave it out, or add --config.{section}.epochs=0'
            )


def given_workdir() -> Path | None:
    """The absolute path of --workdir."""
    return Path(FLAGS.workdir).expanduser().absolute() if FLAGS.workdir else None


def make_artifacts(
    config: ConfigDict, workdir: Path, artifacts: Sequence[Artifact]
) -> None:
    """Builds artifacts that do not exist yet; locks RUN until the command ends."""

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

    if not FLAGS.multihost:
        make_here()
        return
    from gptjax.parallel import multihost

    multihost.run_on_first_process(workdir, make_here)
