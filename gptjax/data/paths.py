"""Files by path, folder or glob, local or on `gs://`, opened through `.gz`."""

import glob
import gzip
import io
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from gptjax.data.host_tensorflow import import_tensorflow
from gptjax.errors import UserError

Advance = Callable[[float], None]  # told how much was read, for a progress bar


class File(NamedTuple):
    path: str
    name: str  # below the folder that was asked for: the same wherever that lies
    size: int  # bytes


def list_files(path: str, suffixes: tuple[str, ...], field: str) -> list[File]:
    """The files that `path` stands for, in the order of their names.

    Args:
        path: a file, a glob (`**` for any folders, local only), or a folder:
            then the files below it that end in one of `suffixes`, save hidden
            ones. Local, or of any scheme that TensorFlow reads, as `gs://…`.
        suffixes: as ('.txt', '.txt.gz').
        field: the config field that holds the path, for errors.

    Raises:
        UserError: there is no such file, or none in the folder.
    """
    system = _file_system(path)
    path = os.path.expanduser(path)
    wildcard = re.search(r'[*?\[]', path)
    if path and system.isdir(path):
        root, paths = path, list(_below(path, suffixes, system))
        if not paths:
            raise UserError(
                f'{field}={path}: no file in this folder ends in '
                f'{", ".join(suffixes)}: give another folder, or a glob'
            )
    elif path and system.exists(path):
        root, paths = os.path.dirname(path), [path]
    elif wildcard:
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


def is_remote(path: str) -> bool:
    return '://' in path


def exists(path: str) -> bool:
    return _file_system(path).exists(os.path.expanduser(path))


def open_raw(
    file: File, field: str, advance: Advance = lambda size: None
) -> io.BufferedReader:
    """The file's bytes as they lie on disk, in a stream that can seek.

    Args:
        advance: told the bytes that are read from disk.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        stream = _file_system(file.path).open(file.path)
    except OSError as error:
        raise UserError(
            f'{field}={file.path}: {error.strerror}: give a file that can be read'
        ) from error
    return io.BufferedReader(_Counted(stream, advance), buffer_size=2**18)


def read_lines(
    file: File, field: str, advance: Advance = lambda size: None
) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line with its end) of a UTF-8 file.

    Raises:
        UserError: it is binary, is not UTF-8, or is a damaged `.gz`.
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
        except (gzip.BadGzipFile, EOFError) as error:
            raise UserError(
                f'{field}={file.path}: damaged after line {number} ({error}): '
                'unpack it with `gunzip`, or make it again'
            ) from error


class _Counted(io.RawIOBase):
    """A stream for `io.BufferedReader` that tells how much it has read."""

    def __init__(self, stream, advance: Advance):
        self._stream, self._advance = stream, advance

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._advance(len(content))
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
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


def _file_system(path: str) -> _FileSystem:
    if not is_remote(path):
        return _FileSystem(
            os.path.exists,
            os.path.isdir,
            os.walk,
            partial(glob.glob, recursive=True),
            os.path.getsize,
            partial(open, mode='rb'),
        )
    gfile = import_tensorflow().io.gfile
    return _FileSystem(
        gfile.exists,
        gfile.isdir,
        gfile.walk,
        gfile.glob,
        lambda file: gfile.stat(file).length,
        partial(gfile.GFile, mode='rb'),
    )


def _below(
    folder: str, suffixes: tuple[str, ...], system: _FileSystem
) -> Iterator[str]:
    for place, folders, names in system.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            if name.endswith(suffixes) and not name.startswith('.'):
                yield os.path.join(place, name)
