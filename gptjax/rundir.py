"""A run directory: it describes itself, and belongs to one config."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from gptjax import files
from gptjax.errors import UserError

# What decides the weights. Once there is a checkpoint these may not change;
# before, and for every other section, the newest config is the run's.
# (What is decided earlier, the data and tokenizer stages guard themselves.)
FIXED = ('seed', 'model', 'optim', 'train')
FREE = (
    'train.eval_batches',
    'train.max_bad_steps',
    'train.profile_step',
    'train.peak_tflops',
)
PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'tensorflow',
    'tensorflow-datasets',
    'sentencepiece',
    'ml-collections',
    'clu',
    'numpy',
    'chitchat-dataset',
    'chatterbot-corpus',
)


def check_run(config: ConfigDict, workdir: Path) -> None:
    """Makes sure that RUN, if there is one, is this config's; writes nothing.

    Raises:
        UserError: RUN has checkpoints of a config that differs in a field
            that decides the weights, or its config cannot be read.
    """
    path = workdir / 'config.json'
    if not path.exists() or not any((workdir / 'checkpoints').glob('[0-9]*')):
        return
    for name, was, now in differences(_read(path), to_json(config)):
        if name.split('.')[0] in FIXED and name not in FREE:
            raise UserError(
                f'--workdir={workdir} was trained with another config ({name}: '
                f'{was!r} there, {now!r} here): use another --workdir'
            )


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes RUN/config.json, and with what it is run."""
    files.write_json(workdir / 'config.json', to_json(config))
    files.write_json(workdir / 'environment.json', environment())


def read_config(workdir: Path) -> ConfigDict:
    """The config of an existing run directory.

    Raises:
        UserError: it has none, or one that cannot be read.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise UserError(
            f'--workdir={workdir} is no run directory (it has no config.json): give '
            'one that a stage has made, or name a --config'
        )
    return from_json(_read(path))


def _read(path: Path) -> dict:
    try:
        return files.read_json(path)
    except ValueError as error:
        raise UserError(
            f'{path} is no JSON ({error}): delete it and give the run a --config'
        ) from error


def to_json(config: ConfigDict) -> dict:
    """The config as nested dicts of JSON values; tuples become lists."""
    return _convert(config.to_dict(), list)


def from_json(value: dict) -> ConfigDict:
    """The config that `to_json` wrote; lists become tuples."""
    return ConfigDict(_convert(value, tuple))


def differences(old: dict, new: dict, prefix: str = '') -> list[tuple]:
    """(field, value there, value here) of every field that differs."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f'{prefix}{name}.')
        elif was != now:
            found.append((prefix + name, was, now))
    return found


def environment() -> dict:
    """What ran: the command, the code's revision, versions, the machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return dict(
        command=shlex.join(['python', '-m', 'gptjax', *sys.argv[1:]]),
        revision=_revision(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        packages=versions,
    )


def _revision() -> str | None:
    """The commit the code stands at, with '+' where files differ from it."""
    folder = Path(__file__).parent

    def git(*words):
        return subprocess.run(
            ['git', '-C', folder, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no checkout


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n')
        return next(
            line.split(':', 1)[1].strip() for line in lines if 'model name' in line
        )
    except (OSError, StopIteration):
        return platform.processor()


def _convert(value, sequence):
    if isinstance(value, dict):
        return {name: _convert(item, sequence) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return sequence(_convert(item, sequence) for item in value)
    return value
