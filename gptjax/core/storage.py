"""Writing files so that nobody ever sees half of one, and hashing them."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all, making its folder."""
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
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode('utf-8'))


def write_json(path: Path | str, value) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path: Path | str):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def read_jsonl(
    path: Path | str, advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator:
    """Yields the JSON value of each line of a file that gptjax wrote.

    `advance` gets the bytes of each line that was read, for a progress bar. Users'
    files may be malformed: `files.read_json_lines` reads those.
    """
    with open(path, 'rb') as file:
        for line in file:
            yield json.loads(line)
            advance(len(line))


def sha256_of_file(path: Path | str) -> str:
    """The hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fingerprint(value) -> str:
    """The hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def try_writing(path: Path | str) -> None:
    """Raises OSError where no file could be made at `path`; leaves nothing behind."""
    folder = Path(path).parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b' ')


# A disk that is full, which an OSError may say without naming a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
SHORT_WRITE = re.compile(r'\d+ requested and \d+ written')  # NumPy's


def unwritable(error: BaseException, folder: Path | None = None) -> str | None:
    """Why `folder` could not be written to, if that is what `error` comes from.

    As 'runs/a/metrics.jsonl: No space left on device'; the error's causes count. That
    another place could not be written to, or read, is not meant.
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
        # TensorStore and TensorFlow say it in words, of what they save in RUN.
        words = (os.strerror(code) for code in FULL)
        return next((reason for reason in words if reason in str(error)), None)
    if SHORT_WRITE.fullmatch(str(error)):
        return os.strerror(errno.ENOSPC)
    if error.filename is None:
        return error.strerror if error.errno in FULL else None
    if folder is None or isinstance(error.filename, int):
        return None
    path, folder = Path(os.fsdecode(error.filename)).absolute(), folder.absolute()
    around = folder == path or path in folder.parents  # what is made on the way to it
    if folder in path.parents or around:
        if error.errno in FULL + REFUSED or (around and error.errno == errno.ENOENT):
            return f'{error.filename}: {error.strerror}'
    return None
