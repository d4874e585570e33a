"""The stages `import` and `export` of the command line."""

from collections.abc import Sequence
from pathlib import Path

from gptjax import command_line
from gptjax.command_line import FLAGS
from gptjax.core.console import UserError
from gptjax.open_run import given_workdir, open_run


def run_import(words: Sequence[str]) -> None:
    from gptjax.convert import import_model, peft_adapter

    command_line.refuse_words(words)
    workdir = given_workdir()
    source = _folder(
        'from', 'import', 'the folder of a Hugging Face model', workdir is None
    )
    is_adapter = (source / peft_adapter.CONFIG).exists()
    if is_adapter != bool(FLAGS.base):
        raise UserError(
            f'--base: {source} is {"an" if is_adapter else "no"} adapter of peft: '
            f'{"name" if is_adapter else "leave out"} the run of its base model'
        )
    if is_adapter:
        base = Path(FLAGS.base).expanduser().absolute()
        peft_adapter.import_adapter(source, base, workdir)
        return
    import_model.import_model(source, workdir, FLAGS.dtype or 'float32')


def run_export(words: Sequence[str]) -> None:
    from gptjax.convert import export_model, gguf_file, peft_adapter

    lacks_workdir = given_workdir() is None
    target = _folder('to', 'export', 'a new folder', lacks_workdir)
    config, workdir = open_run(words)
    if FLAGS.adapter:
        peft_adapter.export_adapter(config, workdir, target, FLAGS.step)
        return
    if target.suffix == '.gguf':
        gguf_file.export_gguf(config, workdir, target, FLAGS.step, FLAGS.dtype)
        return
    export_model.export_model(config, workdir, target, FLAGS.step, FLAGS.dtype)


def _folder(flag: str, stage: str, meaning: str, lacks_workdir: bool) -> Path:
    """The path of a flag; refuses a command without it or without --workdir."""
    value = FLAGS[flag].value
    if not value or lacks_workdir:
        raise UserError(f'{stage} needs --workdir, the run, and --{flag}, {meaning}')
    return Path(value).expanduser().absolute()
