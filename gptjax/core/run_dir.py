"""The run directory: its config, its lock, and the environment that made it."""

import errno
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.config import complete, decides_weights
from gptjax.core.console import UserError

_WORDS: ContextVar[Sequence[str]] = ContextVar('words')
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow'),
    *('tensorflow-datasets', 'sentencepiece', 'ml-collections', 'clu', 'numpy'),
    *('chitchat-dataset', 'chatterbot-corpus'),
)


def check_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if RUN was trained with another config; writes nothing.

    Fields that decide the weights may not change after the first checkpoint.
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
    """Whether RUN has a finished checkpoint; an unfinished one has a longer name."""
    return any((workdir / 'checkpoints').glob('[0-9]' * 8))


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks RUN for this process, and creates RUN if it does not exist.

    The kernel releases the lock when the process ends, even if it is killed. On a file
    system without locks this does nothing.

    Raises UserError if another process holds the lock.
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
            held = not _is_at(path, file)  # the previous holder has just deleted it
        except BlockingIOError:
            held = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            held = False
        if held:
            raise UserError(
                f'--workdir={workdir}: another process is writing there: wait until it '
                'ends, or use another --workdir'
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new and workdir.exists() and not any(workdir.iterdir()):
                workdir.rmdir()


def _is_at(path: Path, file) -> bool:
    """Whether the path still names this open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes RUN/config.json, which any number of processes may continue."""
    content = to_json(config)
    content.pop('distributed', None)
    storage.write_json(workdir / 'config.json', content)


@contextmanager
def written_as(words: Sequence[str]) -> Iterator[None]:
    """Inside, environments name `python -m gptjax WORDS` as their command."""
    token = _WORDS.set(words)
    try:
        yield
    finally:
        _WORDS.reset(token)


def _command_words() -> list[str]:
    return [*_WORDS.get(sys.argv[1:])]


def write_environment(workdir: Path) -> None:
    """Writes RUN/environment.json: the command, and the versions of code and packages.

    `config` holds the --config flags of the last command that had any.
    """
    path = workdir / 'environment.json'
    earlier = storage.read_undamaged(path) or {}
    words = config_words(_command_words()) or earlier.get('config', [])
    storage.write_json(path, dict(environment(), config=words))


def config_words(words: list[str]) -> list[str]:
    """The arguments that belong to --config and --config.FIELD flags.

    ['data', '--config', 'a.py', '--step=3'] → ['--config', 'a.py']

    Fields of `distributed` are left out: they belong to the machines, not to the run.
    """
    kept = []
    for place, word in enumerate(words):
        if word.startswith('--config.distributed.'):
            continue
        if word == '--config' or (word.startswith('--config.') and '=' not in word):
            kept += words[place : place + 2]  # the value is the next argument
        elif word.startswith(('--config=', '--config.')):
            kept.append(word)
    return kept


def read_config(workdir: Path) -> ConfigDict:
    """The config of an existing run directory, completed by the schema."""
    path = workdir / 'config.json'
    if not path.exists():
        raise UserError(
            f'--workdir={workdir} is not a run directory (it has no config.json): use '
            'a directory that a stage has made, or add --config'
        )
    value = storage.parse_undamaged(path.read_bytes())
    if value is None:
        raise UserError(f'{path} is not a JSON object: delete it, and add --config')
    return from_json(complete(value))


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
    """The command, the revision of the code, package versions and the machine."""
    return dict(
        command=shlex.join(['python', '-m', 'gptjax', *_command_words()]),
        revision=find_revision(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        packages=package_versions(PACKAGES),
    )


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """The version of each package; None if it is not installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def find_revision() -> str | None:
    """The commit of the code, with '+' if files differ from it; None without git."""
    folder = Path(__file__).parents[1]
    written = (
        folder.parent / 'revision'
    )  # `launch tpu` writes it, as it copies no git folder
    if written.exists():
        return written.read_text().strip() or None

    def git(*words):
        return subprocess.run(
            ['git', '-C', folder, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return None


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
