"""A stage's folder: made once, used again while what it was made from is the same.

The folder is written under another name and renamed when its manifest is in it, so
a folder with a manifest is whole, and one without is what a killed run left.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptjax import files
from gptjax.errors import UserError

MANIFEST = 'manifest.json'


def finished(folder: Path, settings: dict) -> dict | None:
    """The manifest of the folder that these settings made; None if there is none.

    Args:
        folder: RUN/documents, RUN/tokenizer or RUN/prepared.
        settings: JSON values by the name of the config field, or of the earlier
            stage whose fingerprint the value is.

    Raises:
        UserError: the folder was made with other settings; it names one of them.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = files.read_json(path)
    if manifest['inputs'] == files.fingerprint(settings):
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
    os.replace(path, folder)


def require(folder: Path, stage: str) -> dict:
    """The manifest of an earlier stage.

    Raises:
        UserError: the stage has not been run.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f'{folder} is not there: run the stage `{stage}` first')
    return files.read_json(path)


def _short(value) -> str:
    """A value in a message; of a hash, its beginning says enough."""
    text = str(value)
    return text if len(text) < 64 else f'{text[:12]}…'
