"""The stages `report`, `pack` and `unpack` of the command line."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.command_line import FLAGS
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.open_run import given_workdir, open_run


def run_report(words: Sequence[str]) -> None:
    if len(words) > 1 or FLAGS.to:
        _compare(words)
        return
    from gptjax.eval.report import last_screen, run_report

    if words and given_workdir():
        raise UserError(f'report {words[0]}: leave --workdir out, or name both runs')
    workdir = _path(words[0]) if words else None
    config = run_dir.read_config(workdir) if words else None
    if config is None:
        config, workdir = open_run([])
    if FLAGS.push:
        from gptjax.eval.report import push_run

        push_run.push_run(FLAGS.push, config, workdir)
        return
    path = run_report.write_report(workdir)
    print(last_screen.last_screen(workdir, path))


def _compare(words: Sequence[str]) -> None:
    from gptjax.eval.report import run_comparison

    if not FLAGS.to or FLAGS.push or given_workdir() or FLAGS.config is not None:
        raise UserError(
            'report of several runs needs a page and no other flag: report RUN RUN2 … '
            '--to FILE.html'
        )
    if not FLAGS.watts > 0:
        raise UserError(f'--watts={FLAGS.watts}: use a number above 0')
    target = _path(FLAGS.to)
    if target.is_dir():
        raise UserError(f'--to={target} is a folder: name a file, as runs.html')
    run_comparison.write_comparison([*map(_path, words)], target, FLAGS.watts)
    print(f'Made: {target}')


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
