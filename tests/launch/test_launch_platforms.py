"""`launch PLATFORM`: what it prints and does, with stand-ins for every program.

The golden files are what `--dry_run` prints. Update one when a change of the template
is meant: `UPDATE=1 launch/test.sh tests/launch/test_launch_platforms.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api import models

from gptjax import cli, launch_platforms, launch_stage
from gptjax.command_line import LAUNCHED
from gptjax.tpu_types import TPU_TYPES
from tests import runs
from tests.launch import fakes

GOLDEN = Path(__file__).parent / 'golden'
TPU_FLAGS = (
    *('--config=configs/gpt2.py:124M', '--stage=pretrain', '--workdir=gs://B/R'),
    *('--name=run', '--zone=us-west4-a', '--accelerator=v5litepod-16', '--slices=2'),
    *('--spot', '--config.train.num_steps=50'),
)
SLURM_FLAGS = (
    *('--config=configs/tiny.py', '--workdir=/shared/R', '--name=run'),
    *('--hosts=2', '--gpus=8'),
)
FLAGS_OF = {name: TPU_FLAGS for name in LAUNCHED} | {'slurm': SLURM_FLAGS}
IMAGE = ('--image=eu.example.com/gptjax:1',)
FOUR = ('COORDINATOR_ADDRESS', 'NUM_SLICES', 'SLICE_ID', 'PORT')


def dry_run(capsys, platform, *words) -> str:
    capsys.readouterr()
    words = words or FLAGS_OF[platform]
    assert runs.gptjax('launch', platform, '--dry_run', *words) == 0
    return capsys.readouterr().out


def error_of(capsys, *words) -> str:
    capsys.readouterr()
    assert runs.gptjax('launch', *words) == 2
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1, line
    return line


def part(printed: str, name: str) -> str:
    """A file, or the standard input of a command, of what --dry_run prints."""
    return re.search(rf'# ---- {name}\n(.*?)(?=\n# ----|\Z)', printed, re.DOTALL)[1]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins on PATH; returns a function that reads their calls."""
    folder, log = tmp_path / 'bin', tmp_path / 'log'
    folder.mkdir()
    log.touch()
    for name in fakes.PROGRAMS:
        script = f'#!{sys.executable}\nimport sys\nsys.path.insert(0, "{runs.ROOT}")\n'
        script += 'from tests.launch.fakes import main\nmain(sys.argv)\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
    monkeypatch.setenv('LOG', str(log))
    monkeypatch.setattr(launch_stage, 'WRITES_BUCKETS', True)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


# ---- what is printed -------------------------------------------------------------


@pytest.mark.parametrize('platform', LAUNCHED)
def test_dry_run_prints_all_and_starts_nothing(platform, programs, capsys):
    printed = dry_run(capsys, platform)
    path = GOLDEN / f'{platform}.txt'
    if os.environ.get('UPDATE'):
        path.parent.mkdir(exist_ok=True)
        path.write_text(printed)
    assert printed == path.read_text()
    assert programs() == []


def test_every_platform_runs_the_same_command(capsys):
    command = 'gptjax pretrain --config=configs/gpt2.py:124M --workdir=gs://B/R'
    command += ' --config.train.num_steps=50'
    for platform in LAUNCHED.keys() - {'slurm'}:
        printed = dry_run(capsys, platform).replace('", "', ' ')
        last = command.removeprefix('gptjax ') if platform == 'ray' else command
        assert last in printed, platform


@pytest.mark.parametrize('platform', LAUNCHED)
def test_every_stage_can_be_launched_with_its_flags(platform, capsys):
    for stage in ('sft', 'grpo', 'prepare', 'eval'):
        words = [w for w in FLAGS_OF[platform] if not w.startswith('--stage')]
        words += [f'--stage={stage}', '--', '--step=7', '--tasks=a b']
        printed = dry_run(capsys, platform, *words).replace('", "', ' ')
        assert re.search(rf'{stage} --config=\S+ --workdir=\S+ .*--step=7', printed)
    assert "'--tasks=a b'" in printed or '--tasks=a b' in part(printed, 'its .*')


@pytest.mark.parametrize('spot', (True, False))
@pytest.mark.parametrize('platform', ('tpu', 'gke', 'skypilot', 'ray'))
def test_spot_machines_are_asked_for_only_if_wanted(platform, spot, capsys):
    words = [word for word in TPU_FLAGS if spot or word != '--spot']
    printed = dry_run(capsys, platform, *words).replace('use_spot: false', '')
    assert ('spot' in printed) == spot


@pytest.mark.parametrize('name', TPU_TYPES)
def test_a_tpu_type_has_the_chips_of_its_topology(name):
    tpu, product = TPU_TYPES[name], 1
    for length in tpu.topology.split('x'):
        product *= int(length)
    cores = 2 if name.startswith(('v4', 'v5p')) else 1
    assert tpu.chips == product == int(name.split('-')[1]) // cores
    assert tpu.hosts * tpu.chips_per_host == tpu.chips
    assert tpu.chips_per_host == 4 or tpu.hosts == 1


def test_some_tpu_types_as_google_lists_them():
    listed = {'v5litepod-16': 4, 'v5litepod-8': 1, 'v6e-256': 64, 'v4-32': 4}
    listed |= {'v5p-128': 16, 'v5p-12288': 1536}
    assert {name: TPU_TYPES[name].hosts for name in listed} == listed


# ---- what is done ----------------------------------------------------------------


def test_a_tpu_is_created_followed_resumed_and_deleted(programs, capsys):
    assert runs.gptjax('launch', 'tpu', '--yes', *TPU_FLAGS) == 0
    (others, *_), (upload, words, *_), (create, flags, _, files) = programs()
    assert others.endswith('list') and upload == 'gcloud storage cp'
    assert words[1] == 'gs://B/R/launch/run.tgz' and create.endswith('create')
    assert {'run', '--node-count=2', '--node-prefix=run', '--spot'} <= {*flags}
    assert files['startup.sh'] == part((GOLDEN / 'tpu.txt').read_text(), 'startup.sh')

    one_host = ('--name=run', '--zone=z')
    assert runs.gptjax('launch', 'tpu', 'logs', *one_host) == 0
    command, words, *_ = programs()[-1]
    assert command.endswith('ssh') and words[0] == 'run'
    assert runs.gptjax('launch', 'tpu', 'delete', '--yes', *one_host) == 0
    assert programs()[-1][1] == ['run', '--zone=z', '--force', '--quiet']
    before = len(programs())
    assert runs.gptjax('launch', 'tpu', 'resume', '--yes', *TPU_FLAGS) == 0
    commands = [command.split()[-1] for command, *_ in programs()[before:]]
    assert commands == ['list', 'delete', 'cp', 'create']


def test_a_tpu_that_still_runs_is_not_resumed(programs, monkeypatch, capsys):
    command = 'gcloud compute tpus queued-resources list'
    monkeypatch.setenv('REPLIES', json.dumps({command: 'run\n'}))
    error = error_of(capsys, 'tpu', 'resume', '--yes', *TPU_FLAGS)
    assert 'the job run writes there' in error
    [(called, words, *_)] = programs()
    assert called == command and 'NOT state.state:(SUSPENDED FAILED)' in words[1]


@pytest.mark.parametrize('platform', ('gke', 'slurm', 'skypilot', 'ray'))
def test_the_other_platforms_do_every_action(platform, programs, tmp_path):
    words = list(FLAGS_OF[platform]) + list(IMAGE) * (platform == 'gke')
    words = [w.replace('/shared/R', str(tmp_path / 'R')) for w in words]
    for action in ('create', 'resume', 'delete'):
        assert runs.gptjax('launch', platform, action, '--yes', *words) == 0
    if platform != 'slurm':
        assert runs.gptjax('launch', platform, 'logs', *words) == 0
    called = {command for command, *_ in programs()}
    expected = {
        'gke': {'kubectl get', 'kubectl create', 'kubectl delete', 'kubectl logs'},
        'slurm': {'squeue', 'sbatch', 'scancel'},
        'skypilot': {f'sky jobs {a}' for a in ('queue', 'launch', 'cancel', 'logs')},
        'ray': {f'ray job {a}' for a in ('submit', 'delete', 'stop', 'logs')},
    }
    assert called == expected[platform]


def test_no_command_deletes_data(programs, capsys):
    """Only machines and jobs are deleted, by these commands."""
    ends = {'queued-resources delete', 'kubectl delete', 'scancel', 'jobs cancel'}
    ends |= {'job stop', 'job delete'}
    for platform in LAUNCHED:
        for action in launch_stage.ACTIONS:
            printed = dry_run(capsys, platform, action, *FLAGS_OF[platform])
            for line in printed.split('# ---- command\n')[1:]:
                line = line.split('\n')[0]
                if re.search(r'delete|cancel|stop|\brm\b', line):
                    assert any(end in line for end in ends), line
                    assert 'gs://' not in line and '/shared' not in line


def test_a_stand_in_refuses_a_flag_that_its_page_does_not_have(programs):
    done = subprocess.run(
        ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'x', '--best'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and 'queued-resources/create' in done.stderr


def test_directives_of_the_batch_script_are_flags_of_sbatch(capsys):
    script = part(dry_run(capsys, 'slurm'), 'its standard input')
    words = re.findall('^#SBATCH (.*)$', script, re.MULTILINE)
    flags = fakes.split_flags('sbatch', words)
    assert {'requeue', 'signal', 'open-mode', 'gpus-per-node'} <= {*flags}


# ---- the scripts, run ------------------------------------------------------------


def run_startup(tmp_path, capsys, tpu_env, codes, slices=2):
    """Runs the start-up script; (exit code, its log, environments of the stage)."""
    words = [w for w in TPU_FLAGS if not w.startswith('--slices')]
    script = part(dry_run(capsys, 'tpu', *words, f'--slices={slices}'), 'startup.sh')
    for path in ('/var/log', '/opt', '/root'):
        script = script.replace(path, f'{tmp_path}{path}')
        (tmp_path / path[1:]).mkdir(parents=True, exist_ok=True)
    (tmp_path / 'startup.sh').write_text(script)
    (tmp_path / 'tpu-env').write_text(tpu_env)
    (tmp_path / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
    tree = tmp_path / 'tree'
    for name in ('launch', '.venv/bin'):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / 'launch' / 'environment.sh').write_text('need() { echo "need $1"; }\n')
    stage = '#!/bin/bash\nenv | grep "MEGASCALE\\|^JAX" | sort | tr "\\n" " " '
    stage += f'>>{tmp_path}/stages\necho "$@" >>{tmp_path}/stages\n'
    stage += f'code=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes\n'
    stage += 'exit "$code"\n'
    fake = {
        tree / '.venv' / 'bin' / 'python': stage,
        tmp_path / 'bin' / 'curl': f'#!/bin/bash\ncat {tmp_path}/tpu-env\n',
        tmp_path / 'bin' / 'gcloud': f'#!/bin/bash\ntar czf "$4" -C {tree} .\n',
        tmp_path / 'bin' / 'uv': '#!/bin/bash\n',
        tmp_path / 'bin' / 'sleep': '#!/bin/bash\n',
    }
    (tmp_path / 'bin').mkdir(exist_ok=True)
    for path, text in fake.items():
        path.write_text(text)
        path.chmod(0o755)
    stale = {'MEGASCALE_NUM_SLICES': '9', 'MEGASCALE_COORDINATOR_ADDRESS': 'gone'}
    environment = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', **stale}
    done = subprocess.run(
        ['bash', tmp_path / 'startup.sh'], env=environment, timeout=60
    )
    stages = tmp_path / 'stages'
    calls = stages.read_text().splitlines() if stages.exists() else []
    return done.returncode, (tmp_path / 'var/log/gptjax.log').read_text(), calls


TPU_ENV = """ACCELERATOR_TYPE: 'v5litepod-16'
MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.2'
MEGASCALE_NUM_SLICES: '2'
MEGASCALE_SLICE_ID: '1'
"""


def test_the_startup_script_sets_all_four_and_starts_again(tmp_path, capsys):
    code, log, calls = run_startup(tmp_path, capsys, TPU_ENV, (75, 76, 134, 0))
    assert code == 0 and log.endswith('== finished\n') and len(calls) == 4
    environment = 'JAX_COORDINATOR_PORT=8476 MEGASCALE_COORDINATOR_ADDRESS=10.0.0.2 '
    environment += 'MEGASCALE_NUM_SLICES=2 MEGASCALE_PORT=8080 MEGASCALE_SLICE_ID=1 '
    command = '-m gptjax pretrain --config=configs/gpt2.py:124M --workdir=gs://B/R'
    assert {*calls} == {f'{environment}{command} --config.train.num_steps=50'}


def test_the_startup_script_of_one_slice_has_no_stale_variables(tmp_path, capsys):
    _, _, calls = run_startup(tmp_path, capsys, '', (0,), slices=1)
    assert calls[0].startswith('JAX_COORDINATOR_PORT=8476 -m gptjax')


def test_the_startup_script_stops_at_a_wrong_command(tmp_path, capsys):
    code, log, calls = run_startup(tmp_path, capsys, TPU_ENV, (2,))
    assert code == 2 and len(calls) == 1 and 'the command is wrong' in log


@pytest.mark.parametrize('line', ('COORDINATOR_ADDRESS', 'SLICE_ID', 'NUM_SLICES'))
def test_the_startup_script_refuses_an_incomplete_environment(line, tmp_path, capsys):
    tpu_env = re.sub(f'MEGASCALE_{line}: .*\n', '', TPU_ENV)
    code, log, calls = run_startup(tmp_path, capsys, tpu_env, (0,))
    assert code == 1 and calls == [] and 'error: tpu-env should name' in log


@pytest.mark.parametrize(
    'status, restarts, requeued, code',
    ((0, 0, False, 0), (2, 0, False, 2), (75, 3, True, 0), (76, 100, False, 76)),
)
def test_the_batch_script_is_queued_again_unless_it_is_done_or_wrong(
    status, restarts, requeued, code, tmp_path, capsys
):
    script = part(dry_run(capsys, 'slurm'), 'its standard input')
    called = tmp_path / 'called'
    for name, text in (
        ('srun', f'env | grep MEGASCALE >>{called}; exit {status}'),
        ('scontrol', f'echo "scontrol $*" >>{called}'),
    ):
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    called.touch()
    environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'SLURM_JOB_ID': '7'}
    environment |= {'SLURM_RESTART_COUNT': str(restarts), 'MEGASCALE_PORT': '1'}
    done = subprocess.run(['bash'], input=script, text=True, env=environment)
    assert done.returncode == code
    assert called.read_text() == 'scontrol requeue 7\n' * requeued


def test_shellcheck_finds_nothing(tmp_path, capsys):
    job = yaml.safe_load(part(dry_run(capsys, 'skypilot'), 'job.yaml'))
    texts = {
        'startup.sh': part(dry_run(capsys, 'tpu'), 'startup.sh'),
        'job.sh': part(dry_run(capsys, 'slurm'), 'its standard input'),
        'setup.sh': '#!/bin/bash\n' + job['setup'],
        'run.sh': '#!/bin/bash\n' + job['run'],
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    paths = [*runs.ROOT.glob('launch/*.sh'), *(tmp_path / name for name in texts)]
    program = shutil.which('shellcheck') or Path(sys.executable).parent / 'shellcheck'
    # The variable `python` of environment.sh is used in the scripts that source it.
    leave_out = '--exclude=SC2154'
    done = subprocess.run(
        [program, '--shell=bash', '--severity=warning', leave_out, *paths],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# ---- Kubernetes, SkyPilot, Ray ---------------------------------------------------


def manifest(capsys, *words) -> dict:
    printed = dry_run(capsys, 'gke', *(words or TPU_FLAGS))
    return yaml.safe_load(part(printed, 'its standard input'))


def test_the_manifest_is_a_jobset(capsys):
    """Its fields survive JobSet's models, which drop what they do not know."""
    text = manifest(capsys)
    spec = models.JobsetV1alpha2JobSet.from_dict(text)
    assert json.loads(spec.to_json()) == text
    wrong = json.loads(json.dumps(text))
    wrong['spec']['failurePolicy']['maxRestart'] = 3
    assert json.loads(models.JobsetV1alpha2JobSet.from_dict(wrong).to_json()) == text


def test_the_manifest_outlives_a_repair(capsys):
    """A limit on each Job is used up in minutes; the JobSet starts all hosts again."""
    spec = manifest(capsys)['spec']
    job = spec['replicatedJobs'][0]['template']['spec']
    assert job['backoffLimit'] == 0 and spec['failurePolicy']['maxRestarts'] >= 100
    assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2]
    assert spec['failurePolicy']['rules'][0]['action'] == 'FailJobSet'


@pytest.mark.parametrize('slices', (1, 2))
def test_the_manifest_has_every_host_of_every_slice(slices, capsys):
    words = [w for w in TPU_FLAGS if not w.startswith('--slices')]
    spec = manifest(capsys, *words, f'--slices={slices}')['spec']['replicatedJobs'][0]
    job = spec['template']['spec']
    assert (spec['replicas'], job['completions'], job['parallelism']) == (slices, 4, 4)
    pod = job['template']['spec']
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
    [container] = pod['containers']
    assert container['resources']['limits'] == {'google.com/tpu': 4}
    names = {variable['name'] for variable in container['env']}
    four = {f'MEGASCALE_{name}' for name in FOUR}
    assert names & four == (four if slices > 1 else set())


def test_the_skypilot_job_recovers_from_our_exit_codes(capsys):
    job = yaml.safe_load(part(dry_run(capsys, 'skypilot'), 'job.yaml'))
    recovery = job['resources']['job_recovery']
    assert recovery['recover_on_exit_codes'] == [75, 76, 134]
    environment = {'PATH': '/usr/bin:/bin', 'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2'}
    script = job['run'].replace('.venv/bin/python -m gptjax', 'env #')
    for rank, slice_id in ((0, 0), (3, 0), (4, 1), (7, 1)):
        done = subprocess.run(
            ['bash', '-c', script],
            env=environment | {'SKYPILOT_NODE_RANK': str(rank)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f'MEGASCALE_SLICE_ID={slice_id}\n' in done.stdout
        assert 'MEGASCALE_COORDINATOR_ADDRESS=10.0.0.1\n' in done.stdout


@pytest.fixture
def ray(monkeypatch):
    """A stand-in for Ray: its trainer runs one worker in this process."""
    seen = {}

    class Keywords:
        def __init__(self, **fields):
            seen[type(self).__name__] = fields

    class ScalingConfig(Keywords):
        pass

    class FailureConfig(Keywords):
        pass

    class RunConfig(Keywords):
        pass

    class JaxTrainer:
        def __init__(self, function, *, train_loop_config, **fields):
            self.run = lambda: function(train_loop_config)

        def fit(self):
            self.run()
            return types.SimpleNamespace(metrics=seen['report'])

    train = types.ModuleType('ray.train')
    train.ScalingConfig, train.RunConfig = ScalingConfig, RunConfig
    train.FailureConfig = FailureConfig
    train.report = lambda metrics: seen.update(report=metrics)
    module = types.ModuleType('ray')
    module.train, module.init = train, lambda **fields: seen.update(init=fields)
    trainers = types.ModuleType('ray.train.v2.jax')
    trainers.JaxTrainer = JaxTrainer
    for name, value in (
        *(('ray', module), ('ray.train', train), ('ray.train.v2.jax', trainers)),
        ('ray.train.v2', types.ModuleType('ray.train.v2')),
    ):
        monkeypatch.setitem(sys.modules, name, value)
    return seen


@pytest.mark.parametrize('code', (0, 2, 76))
def test_ray_runs_the_stage_on_every_host(code, ray, monkeypatch, capsys):
    from launch.ray import jax_trainer

    called = []
    monkeypatch.setattr(cli, 'main', lambda words: called.append(words) or code)
    for name in FOUR:
        monkeypatch.setenv(f'MEGASCALE_{name}', '1')
    step = launch_platforms.shlex.split(part(dry_run(capsys, 'ray'), 'command'))
    machine, *words = step[step.index('launch/ray/jax_trainer.py') + 1 :]
    machine = json.loads(machine)
    if code == 76:
        with pytest.raises(RuntimeError, match='exit code 76'):
            jax_trainer.train(machine, words)
    else:
        assert jax_trainer.train(machine, words) == code
    assert called == [['gptjax', *words]]
    assert ray['ScalingConfig']['num_workers'] == 8
    assert ray['ScalingConfig']['topology'] == '4x4'
    assert ray['FailureConfig'] == {'max_failures': 100}
    monkeypatch.delenv('MEGASCALE_PORT')
    with pytest.raises(RuntimeError, match='Ray did not set MEGASCALE_PORT'):
        jax_trainer.train(machine, words)


# ---- guards ----------------------------------------------------------------------


@pytest.mark.parametrize('platform', LAUNCHED)
def test_the_port_is_stated_and_nothing_goes_through_a_mount(platform, capsys):
    printed = dry_run(capsys, platform)
    assert 'gcsfuse' not in printed and '/gcs' not in printed
    assert ' mv ' not in printed
    assert platform == 'slurm' or '8476' in printed  # SLURM has one for each job


def test_no_credentials_are_in_the_files(capsys):
    secret = r'(?i)(api[_-]?key|token|password|secret|BEGIN .*PRIVATE|AIza)'
    texts = [dry_run(capsys, platform) for platform in LAUNCHED]
    folders = runs.ROOT.glob('launch/*/*')
    texts += [path.read_text() for path in folders if path.suffix != '.pyc']
    texts.append((runs.ROOT / 'launch' / 'Dockerfile').read_text())
    assert not [text for text in texts if re.search(secret, text)]


def test_the_image_has_two_stages_pinned_versions_and_no_root():
    lines = (runs.ROOT / 'launch' / 'Dockerfile').read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith('FROM')]
    assert len(bases) == 2
    assert all(re.fullmatch(r'python:3\.\d+\.\d+-slim-\w+', base) for base in bases)
    assert 'USER 1000' in lines
    pinned = (runs.ROOT / 'launch' / 'image-requirements.txt').read_text().splitlines()
    pinned = [line for line in pinned if not line.startswith('#')]
    assert all(re.match(r'[\w.-]+(\[\w+\])?==\S+', line) for line in pinned)
    names = {line.split('==')[0].lower() for line in pinned}
    for line in (runs.ROOT / 'requirements.txt').read_text().splitlines():
        if (name := re.match(r'[\w-]+', line)) and 'AMD64" and' not in line:
            assert name[0].lower().replace('_', '-') in names, line


# ---- refusals --------------------------------------------------------------------


def without(flag, words=TPU_FLAGS):
    return [word for word in words if word.split('=')[0] != flag]


@pytest.mark.parametrize(
    'words, message',
    (
        ((), "launch: no platform '': use one of tpu, gke, slurm, skypilot, ray"),
        (('cloud',), "launch: no platform 'cloud': use one of tpu"),
        (('tpu', 'stop'), "launch tpu: no action 'stop': use one of create, logs"),
        (('tpu', '--gpus=8', *TPU_FLAGS), '--gpus: `launch tpu` ignores it'),
        (('tpu', '--hosts=8', *TPU_FLAGS), '--hosts: `launch tpu` ignores it'),
        (('ray', *IMAGE, *TPU_FLAGS), '--image: `launch ray` ignores it'),
        (('slurm', '--zone=z', *SLURM_FLAGS), '--zone: `launch slurm` ignores it'),
        (('slurm', '--spot', *SLURM_FLAGS), '--spot: `launch slurm` ignores it'),
        (('tpu', *without('--zone')), '--zone is missing: `launch tpu create`'),
        (('tpu', *without('--config')), '--config.train.num_steps: add --config'),
        (('tpu', 'delete'), '--name is missing: `launch tpu delete` needs it'),
        (
            ('tpu', *without('--accelerator'), '--accelerator=v5litepod-17'),
            '--accelerator=v5litepod-17: no such TPU slice: use one of v5litepod-1, ',
        ),
        (
            ('tpu', *without('--accelerator'), '--accelerator=h100'),
            'use one of v4-N, v5p-N, v5litepod-N, v6e-N',
        ),
        (('tpu', *without('--slices'), '--slices=0'), '--slices=0: use at least 1'),
        (('tpu', *without('--name'), '--name=My_run'), '--name=My_run: use at most 40'),
        (('tpu', *without('--workdir'), '--workdir=/r'), 'share no disk: use gs://'),
        (
            ('tpu', *without('--workdir'), '--workdir=gs://b'),
            'share no disk: use gs://',
        ),
        (
            ('slurm', *without('--workdir', SLURM_FLAGS), '--workdir=r'),
            '--workdir=r: use a shared folder',
        ),
        (('tpu', *TPU_FLAGS), '--yes is missing: `launch tpu create` starts machines'),
        (('tpu', 'delete', '--name=a', '--zone=z'), '`launch tpu delete` ends the job'),
        (('gke', '--yes', *TPU_FLAGS), '--image is missing'),
        (
            ('tpu', *TPU_FLAGS, '--', '--workdir=x'),
            'after `--` come flags of the stage',
        ),
    ),
)
def test_what_is_refused(words, message, capsys, programs):
    assert message in error_of(capsys, *words)
    assert programs() == []


def test_a_config_outside_the_repository_is_refused(tmp_path, capsys):
    shutil.copy(runs.ROOT / 'configs' / 'tiny.py', tmp_path / 'mine.py')
    words = (f'--config={tmp_path}/mine.py', *without('--config'))
    assert 'put it into configs/' in error_of(capsys, 'tpu', '--dry_run', *words)


def test_a_bucket_is_refused_while_stages_cannot_write_to_it(
    programs, monkeypatch, capsys
):
    monkeypatch.setattr(launch_stage, 'WRITES_BUCKETS', False)
    error = error_of(capsys, 'tpu', '--yes', *TPU_FLAGS)
    assert 'stages cannot write to a bucket yet' in error and programs() == []


@pytest.mark.parametrize(
    'platform, command, reply',
    (
        ('tpu', 'gcloud compute tpus queued-resources list', 'other\n'),
        ('gke', 'kubectl get', 'jobset.jobset.x-k8s.io/other\n'),
        ('slurm', 'squeue', 'a 6 (null)\nother 7 gptjax-{run}\n'),
        ('skypilot', 'sky jobs queue', 'ID NAME\n3 other-{run} RUNNING\n'),
        (
            'ray',
            'ray job submit',
            '!Job with submission_id gptjax-{run} already exists',
        ),
    ),
)
def test_a_second_job_on_a_run_directory_is_refused(
    platform, command, reply, programs, monkeypatch, capsys
):
    words = (*FLAGS_OF[platform], *IMAGE * (platform == 'gke'))
    workdir = '/shared/R' if platform == 'slurm' else 'gs://B/R'
    job = launch_platforms.Job(*[''] * 13)._replace(workdir=workdir)
    replies = {command: reply.format(run=job.run_id)}
    monkeypatch.setenv('REPLIES', json.dumps(replies))
    error = error_of(capsys, platform, '--yes', *words)
    assert ('other' in error) == (platform != 'ray')
    assert [called for called, *_ in programs()] == [command]


def test_an_error_of_a_program_is_one_line(programs, monkeypatch, capsys):
    command = 'gcloud compute tpus queued-resources delete'
    text = '!ERROR: (gcloud)\nNOT_FOUND: Resource run was not found'
    monkeypatch.setenv('REPLIES', json.dumps({command: text}))
    error = error_of(capsys, 'tpu', 'delete', '--yes', '--name=run', '--zone=z')
    assert 'gcloud compute tpus queued-resources: exit code 1: NOT_FOUND' in error


def test_a_program_that_is_missing_or_hangs(programs, monkeypatch, capsys, tmp_path):
    words = ('tpu', 'delete', '--yes', '--name=run', '--zone=z')
    (tmp_path / 'bin' / 'gcloud').write_text('#!/bin/bash\nexec sleep 60\n')
    monkeypatch.setattr(launch_stage, 'COMMAND_SECONDS', 0.3)
    assert 'no answer in 0.3 s' in error_of(capsys, *words)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert 'no program `gcloud`: install the Google' in error_of(capsys, *words)


def test_tune_and_check_refuse_stages_that_do_not_train(capsys):
    capsys.readouterr()
    assert runs.gptjax('check', '--config=configs/tiny.py', '--stage=eval') == 2
    assert '--stage=eval: `check` needs one of pretrain' in capsys.readouterr().err
