"""Reads the files of users: by path, folder or glob, local or `gs://`, also `.gz`."""

import codecs
import glob
import gzip
import io
import json
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gptjax.core.console import UserError

JSON_LINES = ('.jsonl', '.ndjson', '.jsonl.gz', '.ndjson.gz')
Advance = Callable[[float], None]  # (bytes read) -> None, for a progress bar


class File(NamedTuple):
    """A file of the user."""

    path: str
    name: str  # the path below the folder that the config names
    size: int = 0  # bytes


# The stage that makes a folder of a run with users' files, by the folder's name.
MADE_BY = dict(task='task', selected='select', dialogue='sft')


def list_files(path: str, suffixes: tuple[str, ...], field: str) -> list[File]:
    """The files of `path`, sorted by name.

    Args:
        path: a file, a glob (`**` for any folders, only local), or a folder, of which
            all files below that end in one of `suffixes` are listed, except hidden
            ones. Local, or with a scheme that TensorFlow reads, such as `gs://…`.
        suffixes: such as ('.txt', '.txt.gz').
        field: the config field that holds the path, for error messages.
    """
    if path != path.encode('utf-8', 'replace').decode():
        raise UserError(
            f'{field}={path!a}: the name is not UTF-8, as manifests need: rename the '
            'file, or give its folder'
        )
    system = _file_system(path)
    path = os.path.expanduser(path)
    with _user_errors(field, path, system):
        if path and system.isdir(path):
            root, paths = path, list(_walk_files(path, suffixes, system))
            if not paths:
                raise UserError(
                    f'{field}={path}: no file in this folder ends in '
                    f'{", ".join(suffixes)}: give another folder, or a glob'
                )
        elif path and system.exists(path):
            root, paths = os.path.dirname(path), [path]
        elif wildcard := re.search(r'[*?\[]', path):
            root = os.path.dirname(path[: wildcard.start()])
            paths = [match for match in system.glob(path) if not system.isdir(match)]
            if not paths:
                raise UserError(f'{field}={path}: no file matches: give another glob')
        else:
            stage = MADE_BY.get(os.path.basename(os.path.dirname(path)))
            made = f'make it with the stage `{stage}`, or ' if stage else ''
            raise UserError(
                f'{field}={path}: no such file: {made}give an existing file, folder or '
                'glob'
            )
        files = [
            File(file, file[len(root) :].lstrip('/' + os.sep), system.size(file))
            for file in paths
        ]
    return sorted(files, key=lambda file: file.name)


def count_endings(path: str, field: str) -> Counter:
    """The number of files below a folder by ending, except hidden files."""
    system = _file_system(path)
    path = os.path.expanduser(path)
    with _user_errors(field, path, system):
        if not path or not system.isdir(path):
            return Counter()
        return Counter(_ending(file) for file in _walk_files(path, '', system))


def _ending(file: str) -> str:
    """Such as '.txt' or '.txt.gz'; the whole name of a file without an ending."""
    plain = file.removesuffix('.gz')
    ending = os.path.splitext(plain)[1] + file[len(plain) :]
    return ending or os.path.basename(file)


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which UTF-8 cannot encode: 'a\\ud83d' → 'a\\ufffd'."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def is_remote(path: str) -> bool:
    return '://' in path


def exists(path: str, field: str) -> bool:
    system = _file_system(path)
    with _user_errors(field, path, system):
        return system.exists(os.path.expanduser(path))


def open_raw(
    file: File, field: str, advance: Advance = lambda size: None
) -> io.BufferedReader:
    """A seekable stream of the bytes on disk; all read errors are UserErrors.

    `advance` is called with the number of bytes that were read.
    """
    system = _file_system(file.path)
    reading = partial(_user_errors, field, file.path, system)
    with reading():
        stream = system.open(file.path)
    return io.BufferedReader(
        _CountingStream(stream, advance, reading), buffer_size=2**18
    )


def read_lines(
    file: File, field: str, advance: Advance = lambda size: None
) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with its newline) of a UTF-8 file.

    Raises UserError if the file cannot be read, is binary, or a damaged `.gz`.
    """
    with open_raw(file, field, advance) as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.name.endswith('.gz') else raw
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise UserError(
                            f'{field}={file.path}: text in UTF-16: give text in UTF-8, '
                            'or convert it with `iconv -f UTF-16 -t UTF-8`'
                        )
                if b'\0' in line:
                    raise UserError(
                        f'{field}={file.path}: line {number} has a NUL byte, so this '
                        'is a binary file, or text in UTF-16: give text in UTF-8 '
                        '(`iconv -f UTF-16LE -t UTF-8` converts it)'
                    )
                yield number, line.decode('utf-8')
        except UnicodeDecodeError as error:
            raise UserError(
                f'{field}={file.path}: line {number} is not UTF-8 (byte '
                f'0x{error.object[error.start]:02x} at {error.start}): give text in '
                'UTF-8, or convert it with `iconv -t UTF-8`'
            ) from error
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(
                f'{field}={file.path}: damaged after line {number} ({error}): '
                'unpack it with `gunzip`, or make it again'
            ) from error


def read_json_lines(
    file: File,
    field: str,
    example: str = '{"text": "Once upon a time"}',
    advance: Advance = lambda size: None,
) -> Iterator[tuple[int, str, dict]]:
    """Yields (line number from 1, location for errors, JSON object) of each line.

    Blank lines are skipped. Another line that is not a JSON object raises UserError,
    with `example` in the message. Half a surrogate pair in an escape, as in "a\\ud83d",
    becomes U+FFFD.
    """
    for number, line in read_lines(file, field, advance):
        if not line.strip():
            continue
        location = f'{field}={file.path}: line {number}'
        try:
            value = json.loads(line)
            if '\\ud' in line or '\\uD' in line:
                text = json.dumps(value, ensure_ascii=False)
                value = json.loads(replace_surrogates(text))
        except RecursionError as error:
            raise UserError(
                f'{location} is nested too deeply: correct or delete this line'
            ) from error
        except ValueError as error:
            why = 'a number has thousands of digits'
            if isinstance(error, json.JSONDecodeError):
                why = f'{error.msg} at character {error.pos}'
            if '\r' in line.strip():
                raise UserError(
                    f'{location} is not valid JSON ({why}), and has carriage returns: '
                    'if they end the lines, as on an old Mac, convert the file with '
                    "`tr '\\r' '\\n'`"
                ) from error
            raise UserError(
                f'{location} is not valid JSON ({why}): correct or delete this line; '
                f'each line is a JSON object, such as {example}'
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f'{location} is not a JSON object but a {type(value).__name__}: give '
                f'one JSON object per line, such as {example}'
            )
        yield number, location, value


def read_json_object(path: Path) -> dict:
    """The JSON object in a small file of the user; FileNotFoundError without one."""
    try:
        content = json.loads(path.read_text('utf-8'))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{path} is not JSON ({error}): copy or download it again'
        ) from None
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a JSON object: copy or download it again')
    return content


class _CountingStream(io.RawIOBase):
    """A stream for `io.BufferedReader` that reports how many bytes it has read.

    Opening a missing remote file succeeds; the first read fails.
    """

    def __init__(self, stream, advance: Advance, reading: Callable):
        self._stream, self._advance, self._user_errors = stream, advance, reading

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with self._user_errors():
            content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._advance(len(content))
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._user_errors():
            self._stream.seek(offset, whence)
            return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


class _FileSystem(NamedTuple):
    exists: Callable
    isdir: Callable
    walk: Callable
    glob: Callable
    size: Callable
    open: Callable
    errors: tuple[type[Exception], ...]  # that the functions above raise


def _file_system(path: str) -> _FileSystem:
    if not is_remote(path):
        return _FileSystem(
            os.path.exists,
            os.path.isdir,
            os.walk,
            partial(glob.glob, recursive=True),
            os.path.getsize,
            partial(open, mode='rb'),
            (OSError,),
        )
    tensorflow = import_tensorflow()
    gfile = tensorflow.io.gfile
    return _FileSystem(
        gfile.exists,
        gfile.isdir,
        gfile.walk,
        gfile.glob,
        lambda file: gfile.stat(file).length,
        partial(gfile.GFile, mode='rb'),
        (OSError, tensorflow.errors.OpError),  # OpError is not an OSError
    )


@contextmanager
def _user_errors(field: str, path: str, system: _FileSystem) -> Iterator[None]:
    """Turns errors of the file system into UserErrors about `path`."""
    try:
        yield
    except system.errors as error:
        why = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        why = why or type(error).__name__  # the text of a TensorFlow error may be empty
        raise UserError(f'{field}={path}: {why}: give a readable file') from error


def _walk_files(
    folder: str, suffixes: str | tuple[str, ...], system: _FileSystem
) -> Iterator[str]:
    for place, folders, names in system.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            if name.endswith(suffixes) and not name.startswith('.'):
                yield os.path.join(place, name)


def import_tensorflow():
    """The module `tensorflow`, kept off the accelerators; the import takes seconds."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # Some TensorFlow libraries print messages about accelerators at any log level.
    with _no_standard_error():
        import tensorflow as tf

        for kind in ('GPU', 'TPU'):
            if tf.config.get_visible_devices(kind):
                tf.config.set_visible_devices([], kind)
    return tf


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Drops what is printed to standard error, also from C++."""
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as dropped:
            os.dup2(dropped.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
