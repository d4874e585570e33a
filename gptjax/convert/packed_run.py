"""The stages `pack` and `unpack`: a run directory in one file, and back.

The file is a gzip of a tar, which `tar tzf` lists:

    manifest.json       {format, name, outside, files: {path: {bytes, sha256}}}
    run/config.json     and so on: the files of the manifest, in its order

A second, empty gzip follows, whose name is the SHA-256 of all bytes before it: other
bytes of a gzip may have the same content. The manifest decides every byte of the tar
but the content of the files. So `unpack` reads no header: it compares each one with the
header that it expects. Links, devices, other names and other sizes differ from it, and
are refused. Nothing is unpickled.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ml_collections import ConfigDict

from gptjax.core import artifact, run_dir, storage
from gptjax.core.console import UserError, progress_bar

MANIFEST = 'manifest.json'
FORMAT = 1
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)  # of a tar
LEVEL = 6  # of compression
LARGEST_MANIFEST = 2**26
CHUNK = 2**20
LONGEST_NAME, LONGEST_PATH = 255, 1024  # bytes
# Copies that a stage makes again, and what `report --push` wrote.
LEFT_OUT = ('datasets', 'pushed')
# Fields of a config, in any section, that name runs, files and folders.
PATH_FIELDS = (
    *('run', 'path', 'chats', 'preferences', 'reference', 'critic_run', 'ptx_run'),
    *('judge', 'proxy', 'policy', 'synonyms', 'bad_words', 'evaluation_sets'),
    'compilation_cache',
    'quality_classifier',
)

Files = dict[str, dict]  # {path: {bytes, sha256}}


def pack_run(config: ConfigDict, workdir: Path, target: Path) -> None:
    """Writes RUN to the file `target`, whole or not at all; the same run, same bytes.

    Hidden files, checkpoints that are not complete and the folders `datasets` and
    `pushed` are left out. RUN is locked meanwhile.

    Raises:
        UserError: a process is writing to RUN; or RUN has a link, an artifact that is
            not complete, or LoRA weights, which are nothing without `start.run`.
    """
    start = config.get('start', {}).get('run') or None
    if start and config.get('lora', {}).get('rank'):
        raise UserError(
            f'{workdir} has LoRA weights for start.run={start}, and does not work '
            'without that run: `export` it to a folder, which merges the weights, and '
            '`import` that folder as a run'
        )
    with run_dir.locked(workdir), storage.writing_draft(target) as draft:
        names = list_files(workdir)
        total = sum((workdir / name).stat().st_size for name in names)
        with progress_bar('packing', 2 * total / 1e6, 'MB') as advance:
            files = {name: _describe(workdir / name, advance) for name in names}
            manifest = dict(
                format=FORMAT,
                name=workdir.name,
                outside=find_outside_paths(config.to_dict()),
                files=files,
            )
            content = (json.dumps(manifest, indent=1) + '\n').encode()
            with (
                open(draft, 'wb') as raw,
                gzip.GzipFile('', 'wb', LEVEL, raw, mtime=0) as stream,
            ):
                _write_member(stream, MANIFEST, io.BytesIO(content), len(content))
                for name, entry in files.items():
                    with open(workdir / name, 'rb') as file:
                        digest = _write_member(
                            stream, f'run/{name}', file, entry['bytes'], advance
                        )
                    if digest != entry['sha256']:
                        raise UserError(
                            f'{workdir / name} changed while it was packed: wait until '
                            'no command writes to the run, and pack it again'
                        )
                stream.write(END)
            with open(draft, 'ab') as raw:
                raw.write(_seal(storage.sha256_of_file(draft)))
    size, sha256 = target.stat().st_size / 1e6, storage.sha256_of_file(target)
    print(f'{len(files):,} files in {target} ({size:,.1f} MB)\nSHA-256 {sha256}')
    _print_outside(manifest['outside'])


def unpack_run(path: Path, workdir: Path) -> None:
    """Makes the run directory `workdir` of a file of `pack`, whole or not at all.

    Raises UserError unless every byte of the file is as its manifest says.
    """
    storage.refuse_existing(workdir, '--workdir')
    with _open(path) as stream:
        manifest = _read_manifest(stream, path)
        files = manifest['files']
        total = sum(entry['bytes'] for entry in files.values())
        folder = next(parent for parent in workdir.parents if parent.exists())
        if total > shutil.disk_usage(folder).free:
            raise UserError(
                f'{path} unpacks to {total:,} bytes, more than {folder} has free: free '
                'some space, or use another --workdir'
            )
        with (
            storage.writing_draft(workdir, '--workdir') as draft,
            progress_bar('unpacking', total / 1e6, 'MB') as advance,
        ):
            for name, entry in files.items():
                destination = draft / name
                destination.parent.mkdir(parents=True, exist_ok=True)
                with open(destination, 'wb') as file:
                    _read_member(stream, name, entry, file, path, advance)
            if stream.read(len(END) + 1) != END:
                raise _refusal(path, 'has more bytes than its manifest says')
    print(f'{len(files):,} files in {workdir}')
    _print_outside(manifest['outside'])


def find_outside_paths(section: Mapping, prefix: str = '') -> dict[str, str]:
    """{'start.run': 'runs/base'}: what a config names besides its own run."""
    found = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            found |= find_outside_paths(value, f'{prefix}{name}.')
        elif name in PATH_FIELDS and section.get('kind') != 'tfds':
            values = value if isinstance(value, list | tuple) else [value]
            if paths := ', '.join(str(path) for path in values if path):
                found[prefix + name] = paths
    return found


def _print_outside(paths: Mapping[str, str]) -> None:
    for name, path in paths.items():
        print(f'not in the file: {name}={path!r}')


def list_files(workdir: Path) -> list[str]:
    """The paths in RUN of the files to pack, sorted; UserError for what is no file."""
    names, folders = [], [workdir]
    while folders:
        for path in folders.pop().iterdir():
            name = path.relative_to(workdir).as_posix()
            if path.name.startswith('.'):
                if path.name.endswith('.unfinished'):
                    _refuse_unfinished(path)
            elif name in LEFT_OUT or 'orbax-checkpoint-tmp' in path.name:
                continue
            elif path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise UserError(
                    f'{path} is a link, or no plain file: put a copy in its place'
                )
            elif not _is_within(name):
                raise UserError(
                    f'{str(path)!a} has control characters or is too long: rename it'
                )
            elif path.is_dir():
                folders.append(path)
            else:
                names.append(name)
    return sorted(names)


def _refuse_unfinished(marker: Path) -> None:
    folder = marker.with_name(marker.name[1:].removesuffix('.unfinished'))
    if artifact.is_unfinished(folder):
        raise UserError(
            f'{folder} is not complete: run the command that makes it again, and then '
            'pack the run'
        )


def _describe(path, advance) -> dict:
    size, sha256 = path.stat().st_size, storage.sha256_of_file(path)
    advance(size / 1e6)
    return dict(bytes=size, sha256=sha256)


# ---- the tar


def header(name: str, size: int) -> bytes:
    """The blocks before the content of a file: the same on every machine."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _write_member(stream, name, file: BinaryIO, size, advance=lambda amount: None):
    """Writes `size` bytes of the file; returns their SHA-256."""
    stream.write(header(name, size))
    digest, left = hashlib.sha256(), size
    while left and (chunk := file.read(min(left, CHUNK))):
        digest.update(chunk)
        stream.write(chunk)
        left -= len(chunk)
        advance(len(chunk) / 1e6)
    stream.write(bytes(left) + _padding(size))
    return digest.hexdigest()


def _read_member(stream, name, entry, file: BinaryIO, path, advance):
    """Copies the next file of the tar; UserError unless it is as in the manifest."""
    expected = header(f'run/{name}', entry['bytes'])
    if stream.read(len(expected)) != expected:
        raise _refusal(path, f'has no plain file {name!a} where its manifest says')
    digest, left = hashlib.sha256(), entry['bytes']
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise EOFError
        digest.update(chunk)
        file.write(chunk)
        left -= len(chunk)
        advance(len(chunk) / 1e6)
    padding = _padding(entry['bytes'])
    if digest.hexdigest() != entry['sha256'] or stream.read(len(padding)) != padding:
        raise _refusal(path, f'has changed: {name!a} is not what was packed')


def _read_manifest(stream, path) -> dict:
    first = stream.read(BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(first, 'utf-8', 'strict').size
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise _refusal(path, 'is not a packed run') from None
    if not 0 <= size <= LARGEST_MANIFEST or first != header(MANIFEST, size):
        raise _refusal(path, 'is not a packed run')
    content = stream.read(size)
    manifest = storage.parse_undamaged(content) or {}
    if stream.read(len(_padding(size))) != _padding(size):
        raise _refusal(path, 'has changed')
    if manifest.get('format') != FORMAT:
        raise _refusal(path, f'has no manifest of format {FORMAT}')
    outside = manifest.setdefault('outside', {})
    if not isinstance(outside, dict) or not all(
        name.isprintable() and isinstance(value, str) for name, value in outside.items()
    ):
        raise _refusal(path, 'has a manifest whose "outside" names no paths')
    files = manifest.get('files')
    if not isinstance(files, dict) or 'config.json' not in files:
        raise _refusal(path, 'has no run in it')
    for name, entry in files.items():
        if not _is_within(name):
            raise _refusal(path, f'names {name[:99]!a}, which is no path in a run')
        if any(str(parent) in files for parent in PurePosixPath(name).parents):
            raise _refusal(path, f'has a file where {name!a} needs a folder')
        if not (
            isinstance(entry, dict)
            and type(size := entry.get('bytes')) is int
            and size >= 0
            and isinstance(entry.get('sha256'), str)
        ):
            raise _refusal(path, f'lacks the size and SHA-256 of {name!a}')
    return manifest


def _is_within(name: str) -> bool:
    """Whether a path stays in the folder, is short, and has no control characters."""
    if not name.isprintable() or len(name.encode()) > LONGEST_PATH:
        return False
    parts = name.split('/')
    is_short = all(len(part.encode()) <= LONGEST_NAME for part in parts)
    return is_short and not {'', '.', '..'} & {*parts}


# ---- the gzip


def _seal(digest: str) -> bytes:
    """The empty gzip with the SHA-256 of the bytes before it."""
    content = io.BytesIO()
    gzip.GzipFile(digest, 'wb', LEVEL, content, mtime=0).close()
    return content.getvalue()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The tar in a packed file; what is wrong with its gzip is a UserError."""
    try:
        _check_seal(path)
        with gzip.open(path) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _refusal(path, 'is cut, or no packed run') from error
    except OSError as error:
        if str(error.filename) != str(path):
            raise
        raise UserError(f'{path}: {error.strerror}: name a file of `pack`') from error


def _check_seal(path: Path) -> None:
    length = len(_seal('0' * 64))
    with open(path, 'rb') as file:
        left, digest = os.fstat(file.fileno()).st_size - length, hashlib.sha256()
        while left > 0 and (chunk := file.read(min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read(length + 1) != _seal(digest.hexdigest()):
            raise _refusal(path, 'is cut, has changed, or is no packed run')


def _refusal(path: Path, why: str) -> UserError:
    return UserError(f'{path} {why}: copy it again, or pack the run again')
