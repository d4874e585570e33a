"""Where an installed corpus package keeps its files, and which version it is."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from gptjax.core.console import UserError


def package_folder(module: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it.

    `module` is imported as 'chitchat_dataset', `distribution` installed as
    'chitchat-dataset'.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise UserError(
            f'the package {distribution} is not installed: '
            f'pip install {distribution}, or choose other data.sources'
        )
    return Path(spec.origin).parent


def package_version(distribution: str) -> str:
    """The version as TFDS wants it, 'major.minor.patch'; '0.0.0' if not there.

    A dataset carries the version of the package that it was made from, so a new
    release of the package makes a new dataset.
    """
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return '0.0.0'
    numbers = (re.findall(r'\d+', version) + ['0', '0', '0'])[:3]
    return '.'.join(numbers)
