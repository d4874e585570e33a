"""The README: its length, its links, and its worked changes.

Each change is a patch that applies, and its command shows the result.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import runs

CHANGES = runs.ROOT / 'tests' / 'changes'
README = (runs.ROOT / 'README.md').read_text()
# `[NAME.diff](tests/changes/NAME.diff) | … | `COMMAND`` in the table of changes
COMMANDS = dict(re.findall(r'tests/changes/(\w+)\.diff\).*`python -m (.*)` \|', README))


def anchors(path) -> set[str]:
    """The anchors of the headings: lower case, with hyphens for spaces."""
    titles = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
    return {
        re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
    }


def test_the_readme_can_be_finished():
    assert len(README.splitlines()) <= 200 and len(README) <= 22_000


def test_every_link_leads_somewhere():
    tracked = [runs.ROOT / 'README.md', runs.ROOT / 'configs' / 'README.md']
    for page in (*tracked, *(runs.ROOT / 'gptjax').rglob('README.md')):
        for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
            if link.startswith('http'):
                continue
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists(), f'{page}: {link}'
            assert not anchor or anchor in anchors(target), f'{page}: {link}'


def apply(name: str, tmp_path):
    """Copies the repository and applies the change."""
    ignored = shutil.ignore_patterns('__pycache__', 'frozen_runs')
    for folder in ('gptjax', 'configs', 'tests'):
        shutil.copytree(runs.ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(runs.ROOT / 'pyproject.toml', tmp_path)
    patch = ['git', 'apply', str(CHANGES / f'{name}.diff')]
    # git must not use a repository in a folder above.
    alone = dict(os.environ, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    subprocess.run(patch, cwd=tmp_path, env=alone, check=True)


def run_command(name: str, tmp_path, *flags) -> str:
    """Runs the command of the README, shortened by flags; returns what it prints."""
    words = [sys.executable, '-m', *shlex.split(COMMANDS[name]), *map(str, flags)]
    process = subprocess.run(
        words, cwd=tmp_path, env=runs.environment(), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def python(code: str, tmp_path) -> str:
    return subprocess.check_output(
        [sys.executable, '-c', code], cwd=tmp_path, text=True
    )


def test_every_change_has_a_command_and_is_short():
    assert set(COMMANDS) == {path.stem for path in CHANGES.glob('*.diff')}
    for path in CHANGES.glob('*.diff'):
        assert len(path.read_text().splitlines()) < 40


@pytest.mark.slow
def test_an_architecture_part(tmp_path):
    apply('architecture', tmp_path)
    printed = run_command('architecture', tmp_path, '-p', 'no:cacheprovider')
    assert int(re.search(r'(\d+) passed', printed)[1]) >= 4


@pytest.mark.slow
def test_an_optimizer(tmp_path):
    apply('optimizer', tmp_path)
    flags = [flag for flag in runs.SHORT if not flag.startswith('--config=')]
    run_command('optimizer', tmp_path, *flags)
    lines = (tmp_path / 'runs/signum/metrics.jsonl').read_text().splitlines()
    losses = [row['loss'] for row in map(json.loads, lines) if row['split'] == 'train']
    assert losses[-1] < losses[0]


def test_a_cleaning_step(tmp_path):
    apply('cleaning_step', tmp_path)
    notes = 'See https://example.org/a?b today.\n\n' * 40
    (tmp_path / 'notes.txt').write_text(notes)
    run_command('cleaning_step', tmp_path)
    text = (tmp_path / 'runs/links/documents/train.jsonl').read_text()
    assert 'See [link] today.' in text and 'example.org' not in text


@pytest.mark.slow
def test_a_reward(tmp_path):
    from tests.post import starts

    apply('reward', tmp_path)
    run = starts.write_start(tmp_path)
    run_command(
        'reward',
        tmp_path,
        f'--config.start.run={run}',
        f'--config.task.path={tmp_path / "problems.jsonl"}',
        '--config.policy.prompts=2',
        '--config.train.batch_size=16',
        '--config.train.num_steps=1',
        '--config.optim.warmup_steps=0',
    )
    config = json.loads((tmp_path / 'runs/asking/config.json').read_text())
    assert config['task']['rewards']['correct']['function'] == 'asks_back'
    code = """
from gptjax.post.reward_functions import REWARDS
print(REWARDS['asks_back'](None)([0, 0], ['Why?', 'So.']))
"""
    assert python(code, tmp_path) == '[1.0, 0.0]\n'


@pytest.mark.slow
def test_a_paper(tmp_path):
    apply('paper', tmp_path)
    assert 'at step 20: validation loss' in run_command('paper', tmp_path)
    code = """
from configs.papers import pythia
from gptjax.models import parameter_count, settings
config = pythia.get_config()
vocabulary = config.tokenizer.vocab_size
model = settings.resolve(config.model, vocabulary)
print(parameter_count.num_params(model) - 2 * vocabulary * model.width)
"""
    assert (
        int(python(code, tmp_path)) == 18_915_328
    )  # the paper's table 1: without the embeddings
