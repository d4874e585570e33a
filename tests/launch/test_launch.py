"""The launch scripts, run with fake Pythons, uv and gcloud that log their arguments.

The scripts and a tiny requirements.txt are copied to a folder with a space in its
name. PATH contains only the fakes and the few tools that the scripts may use.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import small_data

ROOT = Path(__file__).parents[2]
EVERY_CORE = '-n auto --dist loadfile --no-loadscope-reorder --durations=15'
SCRIPTS = sorted([*ROOT.glob('launch/*.sh'), ROOT / '.ci' / 'run'])
TOOLS = (
    *('basename', 'bash', 'cat', 'chmod', 'cmp', 'cp', 'dirname', 'env', 'gzip'),
    *('ln', 'mkdir', 'mktemp', 'mv', 'rm', 'sleep', 'tar'),
)

# The base Python: its exit code answers the version check, and it makes a venv.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    -c*) exit {version_status} ;;
    '-m venv .venv')
        echo "venv" >>"$LOG"
        mkdir -p .venv/bin && cp "$FAKES/venv-python" .venv/bin/python ;;
esac
"""
# The Python in .venv: logs its arguments; variables say how a stage ends.
VENV_PYTHON = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
[ "$*" != '-m pip --version' ] || exit 0
words="$*"
echo "${words#-m }" >>"$LOG"
case "$2" in
    pip) exit "${PIP_STATUS:-0}" ;;
    gptjax)
        if [ "$3" = "${WAITING_STAGE:-}" ]; then
            trap 'echo saved >>"$LOG"; exit 75' TERM
            echo waiting >>"$LOG"
            for _ in 1 2 3 4 5 6 7 8 9; do sleep 1; done
        fi
        [ "$3" != "${FAILING_STAGE:-}" ] || exit 75 ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
if [ "$1" = venv ]; then
    mkdir -p .venv/bin && cp "$FAKES/venv-python" .venv/bin/python
fi
"""
UV_INSTALL = 'uv pip install --compile-bytecode --python .venv/bin/python'
# Two folders stand for two workers; a command runs in both.
GCLOUD = """#!/usr/bin/env bash
shift 3 # compute tpus tpu-vm
echo "gcloud $1 ${*: -1}" >>"$LOG"
for worker in 0 1; do
    export HOME="$WORKERS/$worker"
    mkdir -p "$HOME"
    cd "$HOME"
    case $1 in
        scp) cp "$2" "${3#*:}" ;;
        ssh) bash -c "${*: -1}" ;;
    esac
done
"""


class Machine:
    """A copy of the scripts, with the fakes on PATH."""

    def __init__(self, folder: Path):
        self.root = folder / 'a clone'
        self.fakes = folder / 'fakes'
        self.log_path = folder / 'log'
        self.environment = {
            'PATH': str(self.fakes),
            'LOG': str(self.log_path),
            'FAKES': str(self.fakes),
            'HOME': str(folder),
            'WORKERS': str(folder / 'workers'),
        }
        for name in ('launch', '.ci'):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ('gptjax', 'configs', 'tests'):
            (self.root / name).mkdir()
        (self.root / 'configs' / 'tiny.py').touch()
        (self.root / 'requirements.txt').write_text('jax\n')
        (self.root / 'tests' / 'requirements.txt').write_text('pytest\n')
        (self.root / 'tests' / 'torch-requirements.txt').write_text('torch\n')
        self.fakes.mkdir()
        for tool in TOOLS:
            (self.fakes / tool).symlink_to(shutil.which(tool))
        self.fake('python3', PYTHON.format(version_status=0))
        self.fake('venv-python', VENV_PYTHON)

    def fake(self, name: str, script: str) -> None:
        path = self.fakes / name
        path.write_text(script)
        path.chmod(0o755)

    def start(self, script, *arguments, cwd=None, **environment):
        return subprocess.Popen(
            [self.root / script, *arguments],
            cwd=cwd or self.root,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script, *arguments, **options) -> tuple[int, str]:
        """Clears the log, runs a script and returns its exit code and output."""
        self.log_path.write_text('')
        process = self.start(script, *arguments, **options)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def log(self) -> list[str]:
        return self.log_path.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script):
    subprocess.run(['bash', '-n', script], check=True)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_is_executable_unless_sourced(script):
    assert os.access(script, os.X_OK) == script.read_text().startswith('#!')


def stages(config, workdir, *flags, names=('pretrain', 'eval', 'sample', 'report')):
    tail = ' '.join([f'--config {config} --workdir {workdir}', *flags])
    return [f'gptjax {name} {tail}' for name in names]


DEFAULT = stages('configs/chitchat.py', 'runs/chitchat')


# ---- the environment ----------------------------------------------------------


def test_without_uv_venv_and_pip_are_used(machine):
    assert machine.run('launch/local.sh', 'configs/chitchat.py')[0] == 0
    assert machine.log() == ['venv', 'pip install -r requirements.txt', *DEFAULT]


def test_with_uv_nothing_else_is_used(machine):
    machine.fake('uv', UV)
    assert machine.run('launch/local.sh', 'configs/chitchat.py')[0] == 0
    assert machine.log() == [
        f'uv venv --quiet --python {machine.fakes}/python3 .venv',
        f'{UV_INSTALL} -r requirements.txt',
        *DEFAULT,
    ]


def test_requirements_are_installed_again_only_when_they_change(machine):
    machine.run('launch/local.sh', 'configs/chitchat.py')
    machine.run('launch/local.sh', 'configs/chitchat.py')
    assert machine.log() == DEFAULT
    (machine.root / 'requirements.txt').write_text('jax>=0.10\n')
    machine.run('launch/local.sh', 'configs/chitchat.py')
    assert machine.log() == ['pip install -r requirements.txt', *DEFAULT]


def test_an_installation_that_failed_is_tried_again(machine):
    status, _ = machine.run('launch/local.sh', 'configs/chitchat.py', PIP_STATUS='9')
    assert status == 9
    assert machine.log() == ['venv', 'pip install -r requirements.txt']
    machine.run('launch/local.sh', 'configs/chitchat.py')
    assert machine.log() == ['pip install -r requirements.txt', *DEFAULT]


def test_a_broken_venv_is_made_anew(machine):
    machine.run('launch/local.sh', 'configs/chitchat.py')
    (machine.root / '.venv' / 'bin' / 'python').unlink()
    machine.run('launch/local.sh', 'configs/chitchat.py')
    assert machine.log() == ['venv', 'pip install -r requirements.txt', *DEFAULT]


def test_an_old_python_is_passed_over_for_a_newer_one(machine):
    machine.fake('python3', PYTHON.format(version_status=1))
    machine.fake('python3.12', PYTHON.format(version_status=0))
    status, output = machine.run('launch/local.sh', 'configs/chitchat.py')
    assert status == 0
    assert f'Making .venv with {machine.fakes}/python3.12' in output


def test_without_a_python_it_says_what_to_install(machine):
    machine.fake('python3', PYTHON.format(version_status=1))
    status, output = machine.run('launch/local.sh', 'configs/chitchat.py')
    assert status == 1
    assert 'No Python 3.11, 3.12 or 3.13 among' in output and 'install one' in output
    assert machine.log() == []


def test_without_a_python_uv_brings_one(machine):
    machine.fake('python3', PYTHON.format(version_status=1))
    machine.fake('uv', UV)
    assert machine.run('launch/local.sh', 'configs/chitchat.py')[0] == 0
    assert machine.log()[0] == 'uv venv --quiet --python >=3.11,<3.14 .venv'


# ---- local.sh -----------------------------------------------------------------


def test_config_workdir_and_flags_reach_every_stage(machine):
    machine.run('launch/local.sh', 'configs/tiny.py', '/runs/mine', '--config.seed=7')
    assert machine.log()[2:] == stages(
        'configs/tiny.py', '/runs/mine', '--config.seed=7'
    )


def test_flags_alone_leave_the_defaults(machine):
    machine.run('launch/local.sh', '--config.seed=7')
    assert machine.log()[2:] == [f'{line} --config.seed=7' for line in DEFAULT]


def test_the_workdir_is_named_after_the_config(machine):
    machine.run('launch/local.sh', 'configs/tiny.py:wide')
    assert machine.log()[2:] == stages('configs/tiny.py:wide', 'runs/tiny')


def test_paths_count_from_where_the_command_is_typed(machine, tmp_path):
    elsewhere = tmp_path / 'else where'
    elsewhere.mkdir()
    (elsewhere / 'mine.py').touch()
    machine.run('launch/local.sh', 'mine.py:v', 'out', cwd=elsewhere)
    assert machine.log()[2:] == stages(f'{elsewhere}/mine.py:v', f'{elsewhere}/out')
    machine.run('launch/local.sh', '--config.seed=1', cwd=elsewhere)
    assert machine.log() == [f'{line} --config.seed=1' for line in DEFAULT]


def test_the_exit_code_of_a_stage_is_passed_on_and_ends_it(machine):
    status, _ = machine.run(
        'launch/local.sh', 'configs/chitchat.py', FAILING_STAGE='eval'
    )
    assert status == 75
    assert machine.log()[2:] == DEFAULT[:2]


def test_alone_it_makes_an_assistant(machine):
    assert machine.run('launch/local.sh')[0] == 0
    lines = [line for line in machine.log() if line.startswith('gptjax')]
    assert lines[0].startswith('gptjax task --config configs/assistant.py --workdir ru')
    assert lines[-1] == 'gptjax report --workdir runs/assistant'
    machine.run('launch/assistant.sh')
    assert machine.log() == lines


def test_every_stage_of_the_assistant_starts_from_a_run_that_is_made_before(machine):
    machine.run('launch/assistant.sh', '/runs')
    made = set()
    for line in machine.log():
        words = line.split()
        if words[0] == 'gptjax' and words[1] != 'stages':
            used = {
                found for word in words for found in re.findall('/runs/([a-z]+)', word)
            }
            made.add(Path(words[words.index('--workdir') + 1]).name)
            assert used <= made, line


def test_every_run_of_the_assistant_is_compared_and_beside_its_control(machine):
    machine.run('launch/assistant.sh', '/runs')
    words = [line.split() for line in machine.log() if line.startswith('gptjax')]
    trained = {
        Path(line[line.index('--workdir') + 1]).name
        for line in words
        if line[1] in ('sft', 'grpo')
    }
    [table] = [line for line in words if line[1] == 'stages']
    told = dict(word.partition('=')[::2] for word in table[4:])
    assert trained <= told.keys() and told.keys() >= set(told.values()) - {''}
    evaluated = {
        Path(line[line.index('--workdir') + 1]).name
        for line in words
        if line[1] == 'eval'
    }
    assert evaluated == told.keys()


def test_a_study_has_every_stage_of_every_seed_beside_its_control(machine):
    machine.run('launch/study.sh', '/runs')
    words = [line.split() for line in machine.log() if line.startswith('gptjax')]
    told = dict(word.partition('=')[::2] for word in words[-1][4:])
    assert words[-1][1:4] == ['stages', '--workdir', '/runs']
    controls = {'more', 'longer'}
    assert told.pop('sft') == '' and {told.pop(name) for name in controls} == {'sft'}
    assert set(told.values()) == controls
    for seed in '012':
        of_seed = [line for line in words if any(f'/runs/{seed}/' in w for w in line)]
        workdirs = {
            stage: {
                Path(line[line.index('--workdir') + 1]).name
                for line in of_seed
                if line[1] in stage.split()
            }
            for stage in ('sft dpo ppo grpo', 'eval')
        }
        assert all(found == {'sft', *controls, *told} for found in workdirs.values())
        trained = [line for line in of_seed if line[1] not in ('eval', 'stages')]
        assert all(f'--config.seed={seed}' in line for line in trained)
    machine.run('launch/study.sh', '/runs', '1')
    again = [line.split() for line in machine.log() if line.startswith('gptjax')]
    assert again == [line for line in words if any('/runs/1/' in w for w in line)]


def test_a_study_of_small_data_trains_every_variant_once(machine, tmp_path):
    runs = tmp_path / 'runs'
    (runs / 'data' / 'documents').mkdir(parents=True)  # as if `prepare` had made it
    machine.run('launch/study_data.sh', runs, FAILING_STAGE='sft')
    before = [line for line in machine.log() if '--config.seed=0' in line]
    assert [line.split()[1] for line in before].count('sft') == 1
    assert (runs / 'text' / '0' / 'control' / 'documents').is_dir()
    (runs / 'text' / '3' / 'ema').mkdir(parents=True)  # of a call that was stopped
    assert machine.run('launch/study_data.sh', runs)[0] == 0  # it goes on
    for kind in ('text', 'dialogue'):  # what is open is decided by the default seeds
        first_look = runs / 'first_look' / kind
        assert sorted(path.name for path in first_look.iterdir()) == ['0', '1', '2']
        assert (first_look / '2').samefile(runs / kind / '2')
    words = [line.split() for line in machine.log() if line.startswith('gptjax')]
    tables = {line[4]: line[5:] for line in words if line[1] == 'stages'}
    for kind, stage, prefix in (('text', 'pretrain', ''), ('dialogue', 'sft', 'sft_')):
        own = {v for v in small_data.VARIANTS if v.startswith('sft') == bool(prefix)}
        names = {v.removeprefix(prefix) for v in own - {'sft'}}
        assert tables[f'{runs}/first_look/{kind}'] == tables[f'{runs}/{kind}']
        control, *others = tables[f'{runs}/{kind}']
        assert control == 'control'
        assert {*others} == {f'{name}=control' for name in names - {'control'}}
        trained = [line for line in words if line[1] == stage]
        if kind == 'text':  # those of seed 0 were finished before the failure
            trained += [line.split() for line in before if ' pretrain ' in line]
        of_default_seeds = [
            (line[3].split(':')[1], line[5].split('/')[-2:])
            for line in trained
            if line[6] in ('--config.seed=0', '--config.seed=1', '--config.seed=2')
        ]
        assert sorted(of_default_seeds) == sorted(
            (prefix + name, [seed, name]) for seed in '012' for name in names
        )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_stage_save(machine, number):
    machine.log_path.write_text('')
    process = machine.start(
        'launch/local.sh', 'configs/chitchat.py', WAITING_STAGE='pretrain'
    )
    deadline = time.monotonic() + 30
    while 'waiting' not in machine.log():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert machine.log()[-3:] == [DEFAULT[0], 'waiting', 'saved']


# ---- test.sh and .ci/run ------------------------------------------------------


def test_the_three_tiers(machine):
    machine.run('launch/test.sh')
    assert machine.log() == [
        'venv',
        'pip install -r requirements.txt',
        'pip install -r tests/requirements.txt',
        f'pytest -m not long {EVERY_CORE}',
    ]
    fast, every = 'not slow and not long', 'long or not long'
    machine.run('launch/test.sh', '--fast', 'tests/data', '-x')
    assert machine.log() == [f'pytest -m {fast} {EVERY_CORE} tests/data -x']
    machine.run('launch/test.sh', '--long')
    assert machine.log() == [f'pytest -m {every} {EVERY_CORE}']


def test_ci_checks_the_format_then_runs_every_test(machine):
    machine.run('launch/test.sh')
    assert machine.run('.ci/run')[0] == 0
    assert machine.log() == [
        'pip install -r tests/torch-requirements.txt',
        'ruff format --check .',
        'ruff check .',
        f'pytest -m not long {EVERY_CORE}',
    ]


# ---- tpu.sh -------------------------------------------------------------------


def test_a_tpu_gets_the_code_the_requirements_and_the_command(machine):
    machine.fake('gcloud', GCLOUD)
    machine.fake('uv', UV)
    machine.fake('git', '#!/usr/bin/env bash\necho 0123abc')
    arguments = ('configs/tiny.py', '/mnt/my runs/a', '--config.seed=7')
    status, output = machine.run('launch/tpu.sh', 'pod', 'zone', *arguments)
    assert status == 0, output
    for worker in ('0', '1'):
        folder = Path(machine.environment['WORKERS']) / worker / 'gptjax'
        assert (folder / 'configs' / 'tiny.py').exists()
        assert (folder / 'revision').read_text() == '0123abc+\n'
    log = machine.log()
    command = 'gptjax pretrain --config configs/tiny.py'
    command += ' --workdir /mnt/my runs/a --config.seed=7'
    assert log.count(command) == 2
    assert log.count(f'{UV_INSTALL} -r launch/tpu-requirements.txt') == 2
    assert sum(line.startswith(UV_INSTALL) for line in log) == 2
    # A second start, as after a preemption, installs nothing again.
    assert machine.run('launch/tpu.sh', 'pod', 'zone', *arguments)[0] == 0
    assert machine.log().count(command) == 2
    assert not any(line.startswith(UV_INSTALL) for line in machine.log())


def test_a_tpu_command_that_is_incomplete_or_wrong_touches_nothing(machine):
    machine.fake('gcloud', GCLOUD)
    status, output = machine.run('launch/tpu.sh', 'pod', 'zone')
    assert status == 2 and 'usage:' in output
    status, output = machine.run('launch/tpu.sh', 'pod', 'zone', 'configs/no.py', '/r')
    assert status == 2 and 'configs/no.py: no such file' in output
    assert machine.log() == []


@pytest.mark.parametrize(
    'version, status',
    [((3, 10, 9), 1), ((3, 11, 0), 0), ((3, 13, 5), 0), ((3, 14, 0), 1)],
)
def test_the_version_check_itself(machine, version, status):
    """With a real interpreter, which is told to be of another version."""
    machine.fake(
        'python3',
        f"""#!/usr/bin/env bash
code="import sys; sys.version_info = {version}; ${{2#import sys; }}"
[ "$1" != -c ] || exec {sys.executable} -c "$code"
mkdir -p .venv/bin && cp "$FAKES/venv-python" .venv/bin/python
""",
    )
    assert machine.run('launch/local.sh', 'configs/chitchat.py')[0] == status
