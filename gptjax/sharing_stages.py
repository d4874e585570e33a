"""The stages `report`, `pack` and `unpack` of the command line."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.command_line import FLAGS
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.open_run import given_workdir, open_run


def run_report(words: Sequence[str]) -> None:
    from gptjax.eval.report import last_screen, run_report

    _, workdir = open_run(words)
    path = run_report.write_report(workdir)
    print(last_screen.last_screen(workdir, path))


def run_pack(words: Sequence[str]) -> None:
    from gptjax.convert import packed_run

    if len(words) != 1 or not FLAGS.to:
        raise UserError('pack needs a run and a new file: pack RUN --to FILE')
    workdir = _path(words[0])
    packed_run.pack_run(run_dir.read_config(workdir), workdir, _path(FLAGS.to))


def run_unpack(words: Sequence[str]) -> None:
    from gptjax.convert import packed_run

    workdir = given_workdir()
    if len(words) != 1 or workdir is None:
        raise UserError('unpack needs a file of `pack`: unpack FILE --workdir RUN')
    packed_run.unpack_run(_path(words[0]), workdir)


def _path(word: str) -> Path:
    return Path(word).expanduser().absolute()
