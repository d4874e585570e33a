"""Artifacts: folders that a stage builds once before training, such as RUN/documents.

An artifact is complete if it has a manifest, which is written last and atomically. No
folder is renamed, so this also holds in a mounted bucket. If a build is killed, the
folder has no manifest, and the next command empties it and builds it again. A manifest
that is not a JSON object counts as absent.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError

MANIFEST = 'manifest.json'
_SHARING: ContextVar[Callable[[], Iterable[Path]]] = ContextVar('sharing')


class Artifact(NamedTuple):
    """A folder of the run directory that a stage needs before it trains.

    name: the name of the folder.
    build: (config, workdir) -> manifest; builds the folder if it does not exist.
    describe: manifest -> the line to print.
    details: manifest -> further lines to print if the folder is new.
    """

    name: str
    build: Callable[[ConfigDict, Path], dict]
    describe: Callable[[dict], str]
    details: Callable[[dict], str] = lambda manifest: ''


@contextmanager
def sharing(list_runs: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Inside, `build` links the files of an equal artifact in one of these runs.

    Files of artifacts never change, so a hard link is as good as a copy: it stays whole
    if the other run is deleted. Artifacts are equal if their inputs are.
    """
    token = _SHARING.set(list_runs)
    try:
        yield
    finally:
        _SHARING.reset(token)


def _find_equal(folder: Path, inputs: dict, needs) -> tuple[Path, dict] | None:
    """(folder, manifest) of an equal artifact in the runs of `sharing`."""
    for run in _SHARING.get(lambda: ())():
        other = run / folder.name
        manifest = find_manifest(other)
        if manifest and manifest.get('inputs') == storage.fingerprint(inputs):
            if all((other / name).exists() for name in needs):
                return other, manifest
    return None


def _link_files(other: Path, folder: Path) -> None:
    for path in sorted(other.rglob('*')):
        place = folder / path.relative_to(other)
        if path.is_dir():
            place.mkdir()
        elif path != other / MANIFEST:
            try:
                os.link(path, place)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, place)


def build(
    folder: Path,
    inputs: dict,
    make: Callable[[Path], dict],
    needs: Sequence[str] = (),
    check: Callable[[dict, Path], None] = lambda manifest, folder: None,
) -> dict:
    """Builds `folder` unless it is complete; returns its manifest.

    Args:
        inputs: the JSON values that decide the content, by name: config fields, and
            fingerprints of earlier artifacts. The manifest holds them as 'settings',
            and their fingerprint as 'inputs'.
        make: writes files into the empty folder, and returns further entries of the
            manifest.
        needs: names of files that a complete folder has to contain.
        check: (manifest, folder) of a complete folder; raises UserError if the files
            that it was built from have changed since.

    Raises:
        UserError: a complete folder was built from other inputs (the message names
            them), or one of its files is missing.
    """
    inputs = json.loads(json.dumps(inputs))  # tuples as lists
    manifest = find_manifest(folder)
    if manifest is not None:
        _refuse_other_inputs(folder, manifest, inputs)
        for name in needs:
            if not (folder / name).exists():
                raise UserError(
                    f'{folder / name} is missing: delete {folder} to build it again'
                )
        check(manifest, folder)
        return manifest
    if (folder / MANIFEST).exists():
        print(f'{folder / MANIFEST} is damaged: building {folder} again')
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.iterdir()]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    unfinished = _unfinished_path(folder)
    storage.write_text(unfinished, '')
    try:
        if equal := _find_equal(folder, inputs, needs):
            other, described = equal
            check(described, other)
            _link_files(other, folder)
        else:
            described = make(folder)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.unlink()
        raise
    # After a power failure a manifest must not exist without the other files.
    for path in folder.rglob('*'):
        if path.is_file():
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
    manifest = dict(inputs=storage.fingerprint(inputs), settings=inputs) | described
    storage.write_json(folder / MANIFEST, manifest)
    unfinished.unlink()
    return manifest


def is_unfinished(folder: Path) -> bool:
    """Whether a process is building the folder, or was killed while building it.

    Call this before reading files of the folder without its manifest.
    """
    return _unfinished_path(folder).exists() and find_manifest(folder) is None


def _unfinished_path(folder):
    return folder.with_name(f'.{folder.name}.unfinished')


def find_manifest(folder: Path) -> dict | None:
    """The manifest of a complete folder, else None."""
    path = folder / MANIFEST
    return storage.parse_undamaged(path.read_bytes()) if path.exists() else None


def require(folder: Path, stage: str) -> dict:
    """The manifest of an earlier stage's artifact; UserError if it is not complete."""
    manifest = find_manifest(folder)
    if manifest is None:
        raise UserError(f'{folder} is not there: run the stage `{stage}` first')
    return manifest


def _refuse_other_inputs(folder, manifest, inputs):
    if manifest.get('inputs') == storage.fingerprint(inputs):
        return
    before = manifest.get('settings', {})
    changed = [
        f'{name}: {_short(before.get(name))} there, {_short(inputs.get(name))} here'
        for name in sorted({*before, *inputs})
        if before.get(name) != inputs.get(name)
    ]
    raise UserError(
        f'{folder} was made with another config ({"; ".join(changed)}): use another '
        f'--workdir, or delete {folder}'
    )


def _short(value) -> str:
    """A value for a message; a long one, such as a hash, is cut."""
    text = str(value)
    return text if len(text) < 64 else f'{text[:12]}…'
