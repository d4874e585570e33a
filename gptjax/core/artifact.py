"""What a stage makes on disk before it trains: made once, and whole or absent.

A folder is whole when it has a manifest. The manifest is written last and
atomically, and no folder is renamed, so this holds in a mounted bucket as on a disk.
A builder that is killed leaves a folder without a manifest: the same command empties
it and begins again. A manifest that is no JSON object counts as absent.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError

MANIFEST = 'manifest.json'


class Artifact(NamedTuple):
    """A folder of the run directory that a stage needs before it trains.

    name: of the folder.
    build: (config, workdir) -> the manifest of the folder, which is made or found.
    describe: manifest -> the line for the screen.
    details: manifest -> lines that are printed as well where the folder is new.
    """

    name: str
    build: Callable[[ConfigDict, Path], dict]
    describe: Callable[[dict], str]
    details: Callable[[dict], str] = lambda manifest: ''


def build(
    folder: Path,
    inputs: dict,
    make: Callable[[Path], dict],
    needs: Sequence[str] = (),
    check: Callable[[dict, Path], None] = lambda manifest, folder: None,
) -> dict:
    """Makes `folder`, or finds it if these inputs made it before; the manifest.

    Args:
        inputs: what decides the content: JSON values by the name of the config field,
            or of the earlier artifact whose fingerprint the value is. The manifest
            holds them as 'settings', and their fingerprint as 'inputs'.
        make: writes files into the empty folder; returns what else the manifest says.
        needs: names of files without which a folder that was found is refused.
        check: gets the manifest of a folder that was found, and the folder; raises
            UserError where files that it was made from have changed since.

    Raises:
        UserError: other inputs made the folder (the message names which), or a file
            of it is missing.
    """
    inputs = json.loads(json.dumps(inputs))  # tuples as lists
    manifest = find_manifest(folder)
    if manifest is not None:
        _refuse_other_inputs(folder, manifest, inputs)
        for name in needs:
            if not (folder / name).exists():
                raise UserError(
                    f'{folder / name} is missing: delete {folder}, and it is made again'
                )
        check(manifest, folder)
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.iterdir()]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    unfinished = _unfinished_path(folder)
    storage.write_text(unfinished, '')
    try:
        described = make(folder)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.unlink()
        raise
    for path in folder.rglob('*'):  # no manifest may outlive a power failure alone
        if path.is_file():
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
    manifest = dict(inputs=storage.fingerprint(inputs), settings=inputs, **described)
    storage.write_json(folder / MANIFEST, manifest)
    unfinished.unlink()
    return manifest


def is_unfinished(folder: Path) -> bool:
    """Whether the folder is being made, or its process was killed on the way.

    Who reads its files without its manifest asks this first.
    """
    return _unfinished_path(folder).exists() and find_manifest(folder) is None


def _unfinished_path(folder):
    return folder.with_name(f'.{folder.name}.unfinished')


def find_manifest(folder: Path) -> dict | None:
    """The manifest of a folder that is whole, else None."""
    try:
        manifest = storage.read_json(folder / MANIFEST)
    except (FileNotFoundError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def require(folder: Path, stage: str) -> dict:
    """The manifest of what an earlier stage made; UserError if it did not end."""
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
    """A value in a message; of a hash, its beginning says enough."""
    text = str(value)
    return text if len(text) < 64 else f'{text[:12]}…'
