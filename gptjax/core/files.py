"""Users' files by path, folder or glob, local or on `gs://`, read through `.gz`."""

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
from typing import NamedTuple

from gptjax.core.console import UserError

JSON_LINES = ('.jsonl', '.ndjson', '.jsonl.gz', '.ndjson.gz')  # endings of files
Advance = Callable[[float], None]  # gets how much was read, for a progress bar


class File(NamedTuple):
    """A user's file."""

    path: str
    name: str  # its path below the folder that the config names
    size: int = 0  # bytes


def list_files(path: str, suffixes: tuple[str, ...], field: str) -> list[File]:
    """The files that `path` stands for, in the order of their names.

    Args:
        path: a file, a glob (`**` for any folders, local only), or a folder:
            then the files below it that end in one of `suffixes`, save hidden
            ones. Local, or of any scheme that TensorFlow reads, as `gs://…`.
        suffixes: as ('.txt', '.txt.gz').
        field: the config field that holds the path, for errors.
    """
    if path != path.encode('utf-8', 'replace').decode():
        raise UserError(
            f'{field}={path!a}: its name is no UTF-8, in which manifests are written: '
            'rename it or, for a file, give its folder'
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
            raise UserError(
                f'{field}={path}: no such file: give an existing file, folder or glob'
            )
        files = [
            File(file, file[len(root) :].lstrip('/' + os.sep), system.size(file))
            for file in paths
        ]
    return sorted(files, key=lambda file: file.name)


def count_endings(path: str, field: str) -> Counter:
    """How many files of each ending lie below a folder (if it is one), save hidden."""
    system = _file_system(path)
    path = os.path.expanduser(path)
    with _user_errors(field, path, system):
        if not path or not system.isdir(path):
            return Counter()
        return Counter(_ending(file) for file in _walk_files(path, '', system))


def _ending(file: str) -> str:
    """As '.txt' or '.txt.gz'; of a file without one, its name."""
    plain = file.removesuffix('.gz')
    ending = os.path.splitext(plain)[1] + file[len(plain) :]
    return ending or os.path.basename(file)


def is_remote(path: str) -> bool:
    return '://' in path


def exists(path: str, field: str) -> bool:
    system = _file_system(path)
    with _user_errors(field, path, system):
        return system.exists(os.path.expanduser(path))


def open_raw(
    file: File, field: str, advance: Advance = lambda size: None
) -> io.BufferedReader:
    """The file's bytes as they lie on disk, in a stream that can seek.

    `advance` gets how many were read. Errors, also later ones, are UserErrors.
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
    """Yields (number from 1, line with its end) of a UTF-8 file.

    Raises:
        UserError: it cannot be read, is binary, not UTF-8, or a damaged `.gz`.
    """
    with open_raw(file, field, advance) as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.name.endswith('.gz') else raw
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(b'\xef\xbb\xbf')  # a byte-order mark
                if b'\0' in line:
                    raise UserError(
                        f'{field}={file.path}: line {number} holds a NUL byte, so it '
                        'is a binary file: give text in UTF-8'
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
    """Yields (number from 1, name for an error, JSON object) of lines not blank.

    A line that is no JSON object is a UserError, which shows `example`.
    """
    for number, line in read_lines(file, field, advance):
        if not line.strip():
            continue
        location = f'{field}={file.path}: line {number}'
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise UserError(
                f'{location} has lists in lists without end: mend or delete this line'
            ) from error
        except ValueError as error:
            why = 'it holds a number of thousands of digits'
            if isinstance(error, json.JSONDecodeError):
                why = f'{error.msg} at character {error.pos}'
            raise UserError(
                f'{location} is no JSON ({why}): give one JSON object a line, as '
                f'{example}, and mend or delete this one'
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f'{location} is no JSON object but a {type(value).__name__}: give one '
                f'JSON object a line, as {example}'
            )
        yield number, location, value


class _CountingStream(io.RawIOBase):
    """A stream for `io.BufferedReader` that tells how much it has read.

    What is far away opens whether it is there or not: the first read says so.
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
    errors: tuple[type[Exception], ...]  # that these raise


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
        (OSError, tensorflow.errors.OpError),  # the second is none of the first
    )


@contextmanager
def _user_errors(field: str, path: str, system: _FileSystem) -> Iterator[None]:
    """Raises UserError for what goes wrong with `path`."""
    try:
        yield
    except system.errors as error:
        why = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        why = why or type(error).__name__  # TensorFlow's may say no more
        raise UserError(f'{field}={path}: {why}: give what can be read') from error


def _walk_files(
    folder: str, suffixes: str | tuple[str, ...], system: _FileSystem
) -> Iterator[str]:
    for place, folders, names in system.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            if name.endswith(suffixes) and not name.startswith('.'):
                yield os.path.join(place, name)


def import_tensorflow():
    """The module `tensorflow`, which reads data on the host; seconds the first time.

    It is kept off the accelerators.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # Its libraries print which accelerators they miss, whatever the log level is.
    with _no_standard_error():
        import tensorflow as tf

        for kind in ('GPU', 'TPU'):
            if tf.config.get_visible_devices(kind):
                tf.config.set_visible_devices([], kind)
    return tf


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Drops what is printed to standard error, also by C++; exceptions pass."""
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as dropped:
            os.dup2(dropped.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
