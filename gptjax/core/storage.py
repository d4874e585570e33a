"""Writes files atomically, and hashes them."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from gptjax.core.console import UserError


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes `content` to `path` atomically, and makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}.draft')
    try:
        with open(draft, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_bytes(path, text.encode('utf-8'))


def write_json(path: Path | str, value) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path: Path | str):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def read_undamaged(path: Path | str, kind: type = dict):
    """The JSON value in a small file of a run, of type `kind`.

    None if there is no such file, or if it is damaged, for example after a power
    failure: then a line says that the file is ignored.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    value = parse_undamaged(content, kind)
    if value is None:
        _report_damage(path)
    return value


@cache  # once for each file
def _report_damage(path):
    print(f'{path} is damaged: it is ignored', file=sys.stderr)


def parse_undamaged(content: bytes, kind: type = dict):
    """The JSON value of type `kind`; None if it is something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def read_jsonl(
    path: Path | str, advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator:
    """Yields the JSON value of each line of a file that gptjax wrote.

    `advance` is called with the bytes of each line, for a progress bar. For files of
    users, which may be malformed, use `files.read_json_lines`.
    """
    with open(path, 'rb') as file:
        for line in file:
            yield json.loads(line)
            advance(len(line))


def write_jsonl(path: Path | str, values: Iterable) -> None:
    """Writes a line of JSON for each value, atomically."""
    lines = (json.dumps(value, ensure_ascii=False) + '\n' for value in values)
    write_text(path, ''.join(lines))


def sha256_of_file(path: Path | str) -> str:
    """The hexadecimal SHA-256 of the bytes of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fingerprint(value) -> str:
    """The hexadecimal SHA-256 of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def try_writing(path: Path | str) -> None:
    """Raises OSError if no file can be made at `path`; leaves nothing behind."""
    folder = Path(path).parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b' ')


# ---- what a command makes where the user says


@contextmanager
def writing_draft(target: Path, flag: str = '--to') -> Iterator[Path]:
    """A path for a file or a folder, which becomes `target` once it is whole.

    It is in a hidden folder of its own beside `target`, so that two processes never
    write to the same draft: the second one to end is refused. A process that is killed
    leaves its folder, and the next one names it.

    flag: names the target in messages.
    """
    refuse_existing(target, flag)
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f'.{glob.escape(target.name)}.*.draft'):
            print(
                f'{left} is a draft of another process: delete it if none is writing '
                f'{target.name}',
                file=sys.stderr,
            )
        folder = Path(
            tempfile.mkdtemp('.draft', f'.{target.name}.', target.parent.absolute())
        )
        draft = folder / target.name
        yield draft
        for path in draft.rglob('*') if draft.is_dir() else [draft]:
            if path.is_file():
                with open(path, 'rb') as file:
                    os.fsync(file.fileno())
        refuse_existing(target, flag)  # made in the meantime
        if target.exists():
            target.rmdir()  # it is empty
        draft.rename(target)
    except BaseException as error:
        reason = unwritable(error, target.parent)
        if reason is None:
            raise
        raise UserError(
            f'{flag}={target}: cannot write there ({reason}): free some space, or name '
            'another place'
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(target: Path, flag: str = '--to') -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f'{flag}={target}: there is something already: name a new place'
        )
    parent = next(path for path in target.absolute().parents if path.exists())
    if not parent.is_dir():
        raise UserError(f'{flag}={target}: {parent} is a file: name another place')


# ---- errors of writing

# Errors of a full disk; an OSError with one of these may lack the file name.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
)
SHORT_WRITE = re.compile(r'\d+ requested and \d+ written')  # NumPy's


def unwritable(error: BaseException, folder: Path | None = None) -> str | None:
    """The reason why `folder` could not be written to, or None for other errors.

    The reason, such as 'runs/a/metrics.jsonl: No space left on device', may be in a
    cause of `error`. Errors in other folders give None.
    """
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        why = _unwritable(error, folder)
        if why:
            return why
        error = error.__cause__ or error.__context__
    return None


def _unwritable(error, folder):
    if not isinstance(error, OSError):
        # TensorStore and TensorFlow have the reason in the text of their error.
        words = (os.strerror(code) for code in FULL)
        return next((reason for reason in words if reason in str(error)), None)
    if SHORT_WRITE.fullmatch(str(error)):
        return os.strerror(errno.ENOSPC)
    if error.filename is None:
        return error.strerror if error.errno in FULL else None
    if folder is None or isinstance(error.filename, int):
        return None
    path, folder = Path(os.fsdecode(error.filename)).absolute(), folder.absolute()
    around = folder == path or path in folder.parents  # `folder` or one of its parents
    if folder in path.parents or around:
        if error.errno in FULL + REFUSED or (around and error.errno == errno.ENOENT):
            return f'{error.filename}: {error.strerror}'
    return None
