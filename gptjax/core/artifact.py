"""A stage's folder: made once, used again while what it was made from is the same.

The folder is written under another name and renamed when its manifest is in it, so
a folder with a manifest is whole, and one without is what a killed run left.
"""

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptjax.core import storage
from gptjax.core.console import UserError

MANIFEST = 'manifest.json'
# What a mounted bucket says where a folder with something in it is to be renamed.
NO_RENAME = (errno.EMFILE, errno.ENOTSUP)


def finished(folder: Path, settings: dict, needs: Sequence[str] = ()) -> dict | None:
    """The manifest of the folder that these settings made; None if there is none.

    Args:
        folder: RUN/documents, RUN/tokenizer or RUN/prepared.
        settings: JSON values by the name of the config field, or of the earlier
            stage whose fingerprint the value is.
        needs: files that are in the folder whatever the settings are.

    Raises:
        UserError: the folder was made with other settings, which it names, or is
            damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = _read_manifest(folder, {'inputs', 'settings'})
    for name in needs:
        if not (folder / name).exists():
            raise UserError(
                f'{folder / name} is missing: delete {folder}, and it is made again'
            )
    if manifest['inputs'] == storage.fingerprint(settings):
        return manifest
    theirs = manifest['settings']
    changed = [
        f'{name}: {_short(theirs.get(name))} there, {_short(settings.get(name))} here'
        for name in sorted({*theirs, *settings})
        if theirs.get(name) != settings.get(name)
    ]
    raise UserError(
        f'{folder} was made with another config ({"; ".join(changed)}): use another '
        f'--workdir, or delete {folder}'
    )


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder` when the block ends well."""
    path = folder.with_name(f'{folder.name}.draft')
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(folder, ignore_errors=True)
    with renaming(folder):
        os.replace(path, folder)


@contextmanager
def renaming(folder: Path) -> Iterator[None]:
    """Raises UserError for an OSError which says that folders keep their names there.

    Buckets know no folders: gcsfuse renames them only as far as it is told to.
    """
    try:
        yield
    except OSError as error:
        # Two names are a rename's: of a file that is opened, EMFILE means itself.
        if error.errno not in NO_RENAME or error.filename2 is None:
            raise
        raise UserError(
            f'{folder}: folders cannot be renamed there ({error.strerror}): use '
            'another --workdir or, if it is in a bucket, mount that with '
            '`gcsfuse --rename-dir-limit=100000`'
        ) from error


def require(folder: Path, stage: str) -> dict:
    """The manifest of an earlier stage.

    Raises:
        UserError: the stage has not been run, or its folder is damaged.
    """
    if not (folder / MANIFEST).exists():
        raise UserError(f'{folder} is not there: run the stage `{stage}` first')
    return _read_manifest(folder)


def _read_manifest(folder: Path, fields: Collection[str] = ()) -> dict:
    path = folder / MANIFEST
    try:
        manifest = storage.read_json(path)
        if not isinstance(manifest, dict) or not {*fields} <= manifest.keys():
            raise ValueError('something is missing in it')
    except ValueError as error:
        raise UserError(
            f'{path} is damaged ({error}): delete {folder}, and run the stage again '
            'that makes it'
        ) from error
    return manifest


def _short(value) -> str:
    """A value in a message; of a hash, its beginning says enough."""
    text = str(value)
    return text if len(text) < 64 else f'{text[:12]}…'
