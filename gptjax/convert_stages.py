"""The stages `import` and `export` of the command line."""

from collections.abc import Sequence
from pathlib import Path

from gptjax import command_line
from gptjax.command_line import FLAGS
from gptjax.core.console import UserError
from gptjax.open_run import given_workdir, open_run


def run_import(words: Sequence[str]) -> None:
    from gptjax.convert import import_model

    command_line.refuse_words(words)
    workdir = given_workdir()
    source = _folder(
        'from', 'import', 'the folder of a Hugging Face model', workdir is None
    )
    import_model.import_model(source, workdir, FLAGS.dtype or 'float32')


def run_export(words: Sequence[str]) -> None:
    from gptjax.convert import export_model

    lacks_workdir = given_workdir() is None
    target = _folder('to', 'export', 'a new folder', lacks_workdir)
    config, workdir = open_run(words)
    export_model.export_model(config, workdir, target, FLAGS.step, FLAGS.dtype)


def _folder(flag: str, stage: str, meaning: str, lacks_workdir: bool) -> Path:
    """The path of a flag; refuses a command without it or without --workdir."""
    value = FLAGS[flag].value
    if not value or lacks_workdir:
        raise UserError(f'{stage} needs --workdir, the run, and --{flag}, {meaning}')
    return Path(value).expanduser().absolute()
