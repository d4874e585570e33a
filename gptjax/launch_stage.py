"""Starts a stage on other machines: the command `launch PLATFORM [ACTION]`.

The flags make a `Job`; the platform's function makes of it the files and commands of an
action, which `--dry_run` prints. The files are the templates of `launch/PLATFORM/`.
"""

import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gptjax import command_line
from gptjax.command_line import FLAGS, LAUNCHED, SEVERAL_HOSTS
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.tpu_types import TpuType, find_tpu_type

ROOT = Path(__file__).parents[1]
ACTIONS = ('create', 'logs', 'resume', 'delete')
FREE = ('logs',)  # all other actions need --yes: they cost money, or end a job
QUERY_SECONDS, COMMAND_SECONDS = 60, 900
CODE = ('gptjax', 'configs', 'launch', 'requirements.txt')
# What every template is given besides the job. The port of the first process is
# stated, as JAX's default has changed; a repair takes minutes, so restarts are many.
NO_IMAGE = 'REGISTRY/gptjax:TAG'  # what --dry_run prints without --image
SETTINGS = dict(port=8476, megascale_port=8080, max_restarts=100, grace_seconds=120)


class Job(NamedTuple):
    """One stage on one kind of machine; '' and None: not given."""

    name: str
    stage: str
    config: str  # a file of the repository, with its variant
    workdir: str  # a folder that all hosts share, or gs://BUCKET/FOLDER
    words: tuple[str, ...]  # --config.field=value …, and flags of the stage
    zone: str
    machine: TpuType | None
    slices: int
    spot: bool
    hosts: int
    gpus: int
    image: str
    local_queue: str

    @property
    def run_id(self) -> str:
        """Names the run directory where only letters and digits are allowed."""
        return hashlib.sha256(self.workdir.encode()).hexdigest()[:12]

    @property
    def command(self) -> list[str]:
        """The words after `python -m gptjax`, the same on every host and platform."""
        config = [f'--config={self.config}'] if self.config else []
        return [self.stage, *config, f'--workdir={self.workdir}', *self.words]


class Step(NamedTuple):
    """One command of an action, run at the root of the repository.

    words: '{folder}' in a word is where `files` are written.
    stdin: the text of its standard input.
    follows: it prints until the user ends it.
    """

    words: list[str]
    stdin: str = ''
    follows: bool = False


class Plan(NamedTuple):
    """What an action does.

    files: name -> text. `CODE` is packed beside them if a step needs it.
    others: a command that lists jobs, one a line; those with `mark` in their line have
        the same run directory.
    """

    steps: list[Step]
    files: dict[str, str] = {}
    others: list[str] | None = None
    mark: str = ''
    note: str = ''  # another command that does the same, only printed


class Platform(NamedTuple):
    """A kind of machine: what `launch` needs to know of it.

    needs: flags that `create` and `resume` need; those that every action needs.
    tool: (program, what installs it).
    """

    needs: tuple[str, ...]
    always: tuple[str, ...]
    tool: tuple[str, str]
    plan: Callable[[Job, str], Plan]


# ---- the command ---------------------------------------------------------------


def run_launch(words: Sequence[str]) -> None:
    """Prints what an action on a platform does (--dry_run), or does it."""
    platform, action, more = _read_words(words)
    job = _read_job(platform, action, more)
    plan = PLATFORMS[platform].plan(job, action)
    if FLAGS.dry_run:
        _print_plan(plan)
        return
    if action not in FREE and not FLAGS.yes:
        what = 'ends the job' if action == 'delete' else 'starts machines that cost'
        raise UserError(
            f'--yes is missing: `launch {platform} {action}` {what}: look at it with '
            '--dry_run first, then add --yes'
        )
    if platform == 'gke' and job.image == NO_IMAGE and action in ('create', 'resume'):
        raise UserError('--image is missing: build and push launch/Dockerfile, name it')
    program, install = PLATFORMS[platform].tool
    if not shutil.which(program):
        raise UserError(f'no program `{program}`: {install}')
    _refuse_other_jobs(job, plan)
    _run_plan(plan)


def _read_words(words) -> tuple[str, str, tuple[str, ...]]:
    """(platform, action, flags of the stage) of the positional arguments."""
    platform, *rest = words or ['']
    if platform not in PLATFORMS:
        raise UserError(
            f'launch: no platform {platform!r}: use one of {", ".join(PLATFORMS)}'
        )
    action = rest.pop(0) if rest and not rest[0].startswith('--') else 'create'
    if action not in ACTIONS:
        raise UserError(
            f'launch {platform}: no action {action!r}: use one of {", ".join(ACTIONS)}'
        )
    for word in rest:
        if not word.startswith('--') or word.startswith(('--config', '--workdir')):
            raise UserError(
                f'{word!r}: after `--` come flags of the stage, such as --step=100'
            )
    return platform, action, tuple(rest)


def _read_job(platform, action, more) -> Job:
    about = PLATFORMS[platform]
    starts = action in ('create', 'resume')
    needs = about.always + about.needs * starts
    if starts and FLAGS.stage in SEVERAL_HOSTS:
        needs += ('config',)
    for name in needs:
        if name == 'config' and FLAGS.config is not None:
            continue
        if name == 'config' or not FLAGS[name].value:
            raise UserError(
                f'--{name} is missing: `launch {platform} {action}` needs it'
            )
    if not re.fullmatch('[a-z]([-a-z0-9]{0,38}[a-z0-9])?', FLAGS.name or 'x'):
        raise UserError(
            f'--name={FLAGS.name}: use at most 40 lower-case letters, digits and '
            'hyphens, a letter first'
        )
    for name in ('slices', 'hosts', 'gpus'):
        if FLAGS[name].value < 1:
            raise UserError(f'--{name}={FLAGS[name].value}: use at least 1')
    if starts:
        _check_workdir(platform, FLAGS.workdir)
    changes = command_line.changed_fields() if FLAGS.config is not None else {}
    fields = tuple(f'--config.{name}={value}' for name, value in changes.items())
    return Job(
        name=FLAGS.name or '',
        stage=FLAGS.stage,
        config=_find_config() if starts else '',
        workdir=(FLAGS.workdir or '').rstrip('/'),
        words=fields + more,
        zone=FLAGS.zone or '',
        machine=find_tpu_type(FLAGS.accelerator) if FLAGS.accelerator else None,
        slices=FLAGS.slices,
        spot=FLAGS.spot,
        hosts=FLAGS.hosts,
        gpus=FLAGS.gpus,
        image=FLAGS.image or NO_IMAGE,
        local_queue=FLAGS.local_queue,
    )


def _check_workdir(platform, workdir):
    """All hosts have to see one folder, by the same path."""
    on_bucket = re.fullmatch('gs://[^/]+/.+', workdir)
    if platform == 'slurm' and not workdir.startswith('/'):
        raise UserError(
            f'--workdir={workdir}: use a shared folder, such as /shared/run'
        )
    if platform in ('tpu', 'gke') and not on_bucket:
        raise UserError(
            f'--workdir={workdir}: the hosts of `{platform}` share no disk: use '
            'gs://BUCKET/FOLDER'
        )
    if not on_bucket and not workdir.startswith('/'):
        raise UserError(
            f'--workdir={workdir}: use gs://BUCKET/FOLDER or a shared folder'
        )


def _find_config() -> str:
    """--config as a path of the repository, which is what the machines have."""
    if FLAGS.config is None:
        return ''
    path = Path(FLAGS['config'].config_filename).absolute()
    try:
        relative = path.relative_to(ROOT)
    except ValueError:
        raise UserError(
            f'--config={path}: the machines have the files of this repository: put it '
            'into configs/'
        ) from None
    return str(relative)


def _print_plan(plan):
    for name, text in plan.files.items():
        print(f'# ---- {name}\n{text}')
    for step in plan.steps:
        line = shlex.join(word.replace('{folder}/', '') for word in step.words)
        print(f'# ---- command\n{line}')
        if step.stdin:
            print(f'# ---- its standard input\n{step.stdin}')
    if plan.note:
        print(f'# ---- or\n{plan.note}')


def _refuse_other_jobs(job, plan):
    """Raises UserError if a job on the same run directory exists."""
    if plan.others is None:
        return
    lines = _run(plan.others, seconds=QUERY_SECONDS).splitlines()
    for line in lines:
        if line.strip() and plan.mark in line:
            raise UserError(
                f'--workdir={job.workdir}: the job {line.strip()} writes there: '
                'wait until it ends or delete it (its data stays), or use another one'
            )


def _run_plan(plan):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in plan.files.items():
            (Path(folder) / name).write_text(text, encoding='utf-8')
        if any('code.tgz' in word for step in plan.steps for word in step.words):
            _pack_code(Path(folder) / 'code.tgz')
        for step in plan.steps:
            words = [word.replace('{folder}', folder) for word in step.words]
            if step.follows:
                subprocess.run(words, cwd=ROOT)
            else:
                print(_run(words, step.stdin, COMMAND_SECONDS), end='')


def _run(words, stdin='', seconds=QUERY_SECONDS) -> str:
    """The output of a program; UserError with its last line if it fails."""
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f'{shlex.join(words[:4])}: no answer in {seconds} s: try again'
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or 'no message').split('\n')
        raise UserError(
            f'{shlex.join(words[:4])}: exit code {done.returncode}: {last[-1]}'
        )
    return done.stdout


def _pack_code(path):
    """The code that the machines need, and its revision, which has no git there."""

    def leave_out(entry):
        return None if '__pycache__' in entry.name else entry

    with tarfile.open(path, 'w:gz') as archive:
        for name in CODE:
            archive.add(ROOT / name, name, filter=leave_out)
        revision = f'{run_dir.find_revision() or ""}\n'.encode()
        entry = tarfile.TarInfo('revision')
        entry.size = len(revision)
        archive.addfile(entry, io.BytesIO(revision))


def _render(template: str, job: Job, **values) -> str:
    """A template of `launch/`, whose words are quoted for a shell in `words`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ROOT / 'launch'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['quote'] = shlex.quote
    environment.policies['json.dumps_function'] = lambda value, **_: json.dumps(value)
    words = [shlex.quote(word) for word in job.command]
    return environment.get_template(template).render(
        job=job, words=words, plain_words=job.command, **SETTINGS, **values
    )


# ---- the platforms ---------------------------------------------------------------


def _plan_tpu(job, action) -> Plan:
    """Cloud TPU VMs, by a queued resource whose start-up script is the job."""
    group = 'gcloud compute tpus queued-resources'.split()
    zone = f'--zone={job.zone}'
    delete = Step([*group, 'delete', job.name, zone, '--force', '--quiet'])
    if action == 'delete':
        return Plan([delete])
    if action == 'logs':
        node = job.name if job.slices == 1 else f'{job.name}-0'
        follow = 'tail --lines=200 --follow=name /var/log/gptjax.log'
        ssh = 'gcloud compute tpus tpu-vm ssh'.split()
        words = [*ssh, node, zone, '--worker=0', f'--command=sudo {follow}']
        return Plan([Step(words, follows=True)])
    code = f'{job.workdir}/launch/{job.name}.tgz'
    nodes = [f'--node-id={job.name}']
    if job.slices > 1:
        nodes = [f'--node-count={job.slices}', f'--node-prefix={job.name}']
    create = [
        *(*group, 'create', job.name, zone),
        f'--accelerator-type={job.machine.name}',
        f'--runtime-version={job.machine.runtime}',
        *nodes,
        *['--spot'] * job.spot,
        f'--labels=gptjax-run={job.run_id}',
        '--metadata-from-file=startup-script={folder}/startup.sh',
        '--async',
    ]
    upload = ['gcloud', 'storage', 'cp', '{folder}/code.tgz', code]
    files = {'startup.sh': _render('tpu/startup.sh.j2', job, code=code)}
    if action == 'resume':  # a preempted spot request stays, suspended, in the queue
        return Plan([delete, Step(upload), Step(create)], files)
    labels = f'tpu.nodeSpec.node.labels.gptjax-run:{job.run_id}'
    others = [*group, 'list', zone, f'--filter={labels}']
    others += ['--format=value(name.basename())']
    return Plan([Step(upload), Step(create)], files, others)


def _plan_gke(job, action) -> Plan:
    """A JobSet, queued by Kueue, in the cluster and namespace of kubectl's context."""
    kind = 'jobsets.jobset.x-k8s.io'
    delete = Step(['kubectl', 'delete', kind, job.name])
    if action == 'delete':
        return Plan([delete])
    if action == 'logs':
        labels = f'jobset.sigs.k8s.io/jobset-name={job.name}'
        labels += ',jobset.sigs.k8s.io/job-index=0'
        labels += ',batch.kubernetes.io/job-completion-index=0'
        words = ['kubectl', 'logs', f'--selector={labels}', '--follow', '--tail=200']
        return Plan([Step(words, follows=True)])
    manifest = _render('gke/jobset.yaml.j2', job)
    create = Step(['kubectl', 'create', '--filename=-'], manifest)
    if action == 'resume':
        return Plan([delete, create])
    others = ['kubectl', 'get', kind, f'--selector=gptjax-run=r{job.run_id}']
    return Plan([create], others=[*others, '--output=name'], note=_by_gcluster(job))


def _by_gcluster(job) -> str:
    """The same job by the Cluster Toolkit, which writes a JobSet of its own."""
    words = ['gcluster', 'job', 'submit', f'--name={job.name}', f'--image={job.image}']
    words += [f'--compute-type={job.machine.name}', f'--num-slices={job.slices}']
    words += [f'--topology={job.machine.topology}', f'--queue={job.local_queue}']
    words += [f'--restarts={SETTINGS["max_restarts"]}']
    words += [f'--grace-period={SETTINGS["grace_seconds"]}s']
    words += ['--gke-nap-provisioning=spot'] * job.spot
    command = shlex.join(['python', '-m', 'gptjax', *job.command])
    return shlex.join([*words, f'--command={command}'])


def _plan_slurm(job, action) -> Plan:
    """A batch job on GPUs, which Slurm queues again when it is preempted."""
    log = f'{job.workdir}/slurm-{job.name}.log'
    if action == 'delete':
        return Plan([Step(['scancel', '--me', f'--name={job.name}'])])
    if action == 'logs':
        words = ['tail', '--lines=200', '--follow=name', '--retry', log]
        return Plan([Step(words, follows=True)])
    script = _render('slurm/job.sh.j2', job, log=log)
    make_folder = Step(['mkdir', '-p', job.workdir])
    others = ['squeue', '--me', '--noheader', '--format=%j %i %k']
    mark = f'gptjax-{job.run_id}'
    return Plan([make_folder, Step(['sbatch'], script)], {}, others, mark)


def _plan_skypilot(job, action) -> Plan:
    """A managed job of SkyPilot, which looks for new machines when it loses its own."""
    name = f'{job.name}-{job.run_id}'
    if action == 'delete':
        return Plan([Step(['sky', 'jobs', 'cancel', '--name', name, '--yes'])])
    if action == 'logs':
        return Plan([Step(['sky', 'jobs', 'logs', '--name', name], follows=True)])
    files = {'job.yaml': _render('skypilot/job.yaml.j2', job)}
    words = ['sky', 'jobs', 'launch', '--detach-run', '--yes', '{folder}/job.yaml']
    others = ['sky', 'jobs', 'queue', '--skip-finished']
    return Plan([Step(words)], files, others, job.run_id)


def _plan_ray(job, action) -> Plan:
    """A job of the Ray cluster that RAY_ADDRESS names; one job a run directory."""
    submission = f'gptjax-{job.run_id}'
    if action == 'delete':
        return Plan([Step(['ray', 'job', 'stop', submission])])
    if action == 'logs':
        return Plan(
            [Step(['ray', 'job', 'logs', '--follow', submission], follows=True)]
        )
    labels = {'ray.io/availability-zone': job.zone} if job.zone else {}
    if job.spot:
        labels['ray.io/market-type'] = 'spot'
    machine = dict(
        name=job.name,
        hosts=job.machine.hosts,
        slices=job.slices,
        chips_per_host=job.machine.chips_per_host,
        topology=job.machine.topology,
        accelerator_type=job.machine.ray_type,
        label_selector=labels,
        port=SETTINGS['port'],
        max_restarts=SETTINGS['max_restarts'],
    )
    entry = ['python', 'launch/ray/jax_trainer.py', json.dumps(machine), *job.command]
    submit = ['ray', 'job', 'submit', f'--submission-id={submission}', '--no-wait']
    create = Step([*submit, '--working-dir=.', '--', *entry])
    forget = Step(['ray', 'job', 'delete', submission])
    return Plan([forget, create] if action == 'resume' else [create])


CLOUD = ('name', 'workdir', 'accelerator')
PLATFORMS = {
    'tpu': Platform(
        (*CLOUD, 'zone'),
        ('name', 'zone'),
        ('gcloud', 'install the Google Cloud CLI, then `gcloud auth login`'),
        _plan_tpu,
    ),
    'gke': Platform(
        CLOUD,
        ('name',),
        ('kubectl', 'install it, then `gcloud container clusters get-credentials`'),
        _plan_gke,
    ),
    'slurm': Platform(
        ('name', 'workdir'),
        ('name', 'workdir'),
        ('sbatch', 'start this on a login node of the cluster'),
        _plan_slurm,
    ),
    'skypilot': Platform(
        CLOUD,
        ('name', 'workdir'),
        ('sky', "pip install 'skypilot[gcp]' in an environment of its own"),
        _plan_skypilot,
    ),
    'ray': Platform(
        CLOUD,
        ('workdir',),
        ('ray', "pip install 'ray[train]' in an environment of its own"),
        _plan_ray,
    ),
}
assert PLATFORMS.keys() == LAUNCHED.keys()
