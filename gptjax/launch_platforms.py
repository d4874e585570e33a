"""What `launch` does on each platform: from a `Job` to files and commands.

The files are the templates of `launch/PLATFORM/`; each folder's README.md says what was
tried and on what. All platforms run the same `Job.command`.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gptjax.tpu_types import TpuType

ROOT = Path(__file__).parents[1]
# What every template is given besides the job. The port of the first process is
# stated, as JAX's default has changed; a repair takes minutes, so restarts are many.
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
    steps = [Step(upload), Step(create)]
    if action == 'resume':  # a preempted spot request stays, suspended, in the queue
        steps.insert(0, delete)
    running = f'tpu.nodeSpec.node.labels.gptjax-run:{job.run_id}'
    running += ' AND NOT state.state:(SUSPENDED FAILED)'
    others = [*group, 'list', zone, f'--filter={running}']
    return Plan(steps, files, [*others, '--format=value(name.basename())'])


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
