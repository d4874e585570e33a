"""A run directory: it describes itself, and belongs to one config."""

import errno
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.config import complete, decides_weights
from gptjax.core.console import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow'),
    *('tensorflow-datasets', 'sentencepiece', 'ml-collections', 'clu', 'numpy'),
    *('chitchat-dataset', 'chatterbot-corpus'),
)


def check_run(config: ConfigDict, workdir: Path) -> None:
    """Makes sure that RUN, if there is one, is this config's; writes nothing.

    What decides the weights may not change once there is a checkpoint; before, and
    for every other field, the newest config is the run's.
    """
    path = workdir / 'config.json'
    if not path.exists() or not has_checkpoint(workdir):
        return
    earlier = to_json(read_config(workdir))
    config = from_json(complete(to_json(config)))
    for name, old, new in differences(earlier, to_json(config)):
        if decides_weights(name):
            raise UserError(
                f'--workdir={workdir} was trained with another config ({name}: '
                f'{old!r} there, {new!r} here): use another --workdir'
            )


def has_checkpoint(workdir: Path) -> bool:
    """Whether RUN has a finished checkpoint.

    One that is being written, or was when its process was killed, has a longer name.
    """
    return any((workdir / 'checkpoints').glob('[0-9]' * 8))


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds RUN for this process alone; makes it where it is missing.

    The kernel releases the lock with the process, however that ends. On a file system
    that has no locks nothing is held. RUN held by another process is refused.
    """
    import fcntl

    is_new, path = not workdir.exists(), workdir / '.lock'
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(path, 'w')
    except OSError as error:
        raise UserError(
            f'--workdir={workdir}: cannot write there ({error.strerror}): use another '
            '--workdir'
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = not _is_at(path, file)  # its holder has just ended
        except BlockingIOError:
            held = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            held = False
        if held:
            raise UserError(
                f'--workdir={workdir}: another process is writing there: wait until it '
                'has ended, or use another --workdir'
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new and workdir.exists() and not any(workdir.iterdir()):
                workdir.rmdir()


def _is_at(path: Path, file) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes RUN/config.json."""
    storage.write_json(workdir / 'config.json', to_json(config))


def write_environment(workdir: Path) -> None:
    """Writes RUN/environment.json: the command that made what is new, and versions.

    `config` are the words of the newest command that named a config: a later one
    without --config goes on with that.
    """
    path = workdir / 'environment.json'
    earlier = _read(path) if path.exists() else {}
    words = config_words(sys.argv[1:]) or earlier.get('config', [])
    storage.write_json(path, dict(environment(), config=words))


def config_words(words: list[str]) -> list[str]:
    """Those of --config and of --config.FIELD, in whichever form they stand."""
    kept = []
    for place, word in enumerate(words):
        if word == '--config' or (word.startswith('--config.') and '=' not in word):
            kept += words[place : place + 2]  # its value is the next word
        elif word.startswith(('--config=', '--config.')):
            kept.append(word)
    return kept


def read_config(workdir: Path) -> ConfigDict:
    """The config of an existing run directory, with what it lacks filled in."""
    path = workdir / 'config.json'
    if not path.exists():
        raise UserError(
            f'--workdir={workdir} is no run directory (it has no config.json): give '
            'one that a stage has made, or name a --config'
        )
    return from_json(complete(_read(path)))


def _read(path: Path) -> dict:
    try:
        return storage.read_json(path)
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
    """(field, old value, new value) of every field that differs."""
    changes = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f'{prefix}{name}.')
        elif before != after:
            changes.append((prefix + name, before, after))
    return changes


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
    folder = Path(__file__).parents[1]
    written = folder.parent / 'revision'  # in place of git, where tpu.sh brought it
    if written.exists():
        return written.read_text().strip() or None

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
