"""Starts a stage on other machines: the command `launch PLATFORM [ACTION]`.

The flags make a `Job`; its platform makes of it what an action needs, and this file
prints that (--dry_run) or does it.
"""

import io
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gptjax import command_line
from gptjax.command_line import FLAGS, SEVERAL_HOSTS
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.launch_platforms import PLATFORMS, ROOT, Job
from gptjax.tpu_types import find_tpu_type

ACTIONS = ('create', 'logs', 'resume', 'delete')
STARTING = ('create', 'resume')
QUERY_SECONDS, COMMAND_SECONDS = 60, 900
CODE = ('gptjax', 'configs', 'launch', 'requirements.txt')  # what the machines need
NO_IMAGE = 'REGISTRY/gptjax:TAG'  # what --dry_run prints without --image
# Stages still take gs://B/R for a folder of the machine's own disk, which is lost with
# it. True, and this line away, as soon as they write to buckets.
WRITES_BUCKETS = False


# ---- the command ---------------------------------------------------------------


def run_launch(words: Sequence[str]) -> None:
    """Prints what an action on a platform does (--dry_run), or does it."""
    platform, action, more = _read_words(words)
    job = _read_job(platform, action, more)
    plan = PLATFORMS[platform].plan(job, action)
    if FLAGS.dry_run:
        _print_plan(plan)
        return
    if action != 'logs' and not FLAGS.yes:
        what = 'ends the job' if action == 'delete' else 'starts machines that cost'
        raise UserError(
            f'--yes is missing: `launch {platform} {action}` {what}: look at it with '
            '--dry_run first, then add --yes'
        )
    if platform == 'gke' and job.image == NO_IMAGE and action in STARTING:
        raise UserError('--image is missing: build and push launch/Dockerfile, name it')
    if action in STARTING and job.workdir.startswith('gs://') and not WRITES_BUCKETS:
        raise UserError(
            f'--workdir={job.workdir}: stages cannot write to a bucket yet, and the '
            'result would be lost with the machine: only --dry_run works'
        )
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
    starts = action in STARTING
    needs = about.always + about.needs * starts
    stage = FLAGS.stage or 'pretrain'
    if starts and stage in SEVERAL_HOSTS:
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
        stage=stage,
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
    if plan.others:
        print(
            f'# ---- no job on the run directory may be in\n{shlex.join(plan.others)}'
        )
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
