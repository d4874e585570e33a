"""Joins the processes that train together, and keeps what they compile.

The config section `distributed` names the processes, or the platform does: `PLATFORMS`.
JAX is imported only when there is something to join, and no device may be used before.
"""

import os
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping
from glob import glob
from importlib import metadata

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.hashing import hash_words

# JAX's own default for Cloud TPU and GKE has changed with its versions, and a firewall
# has to let it through. JAX_COORDINATOR_PORT names another; SLURM has one for each job.
PORT = '8476'
RETRY_SECONDS = 0.5
METADATA = 'computeMetadata/v1/instance/attributes'


# ---- what the platforms say


def _by_address(environ: Mapping[str, str]) -> bool:
    """JAX_COORDINATOR_ADDRESS, with JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    return 'JAX_COORDINATOR_ADDRESS' in environ and (
        environ.get('JAX_NUM_PROCESSES') != '1'
    )


def _on_slurm(environ: Mapping[str, str]) -> bool:
    """A step of `srun` with several tasks, not the batch script or a shell in it."""
    tasks = environ.get('SLURM_STEP_NUM_TASKS', environ.get('SLURM_NTASKS', '1'))
    return {'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= environ.keys() and tasks != '1'


def _on_tpus(environ: Mapping[str, str]) -> bool:
    """A TPU slice of several hosts, or several slices: GKE, Ray, Cloud TPU VMs."""
    if environ.get('JAX_PLATFORMS', 'tpu') not in ('', 'tpu', 'tpu,cpu'):
        return False
    if ',' in environ.get('TPU_WORKER_HOSTNAMES', ''):
        return True
    if environ.get('MEGASCALE_NUM_SLICES', '1') != '1':
        return True
    if 'TPU_WORKER_HOSTNAMES' in environ or 'TPU_SKIP_MDS_QUERY' in environ:
        return False
    if not glob('/dev/accel*') + glob('/dev/vfio/[0-9]*'):
        return False
    hosts = _read_metadata(environ, 'worker-network-endpoints')
    slices = _read_metadata(environ, 'tpu-env')
    return ',' in hosts or bool(re.search(r"MEGASCALE_NUM_SLICES: '(?!1')\d+'", slices))


def _on_jobset(environ: Mapping[str, str]) -> bool:
    """A JobSet of Kubernetes without TPUs; JAX needs the package `kubernetes` there."""
    return {'JOBSET_NAME', 'JOB_COMPLETION_INDEX'} <= environ.keys()


PLATFORMS = {
    'JAX_COORDINATOR_ADDRESS': _by_address,
    'SLURM': _on_slurm,
    'Cloud TPU': _on_tpus,
    'JobSet': _on_jobset,
}


def find_platform(environ: Mapping[str, str]) -> str | None:
    """The key of PLATFORMS that says that this is one of several processes."""
    return next((name for name, says in PLATFORMS.items() if says(environ)), None)


def _read_metadata(environ, name: str) -> str:
    """An attribute of a Cloud TPU VM, from its metadata server; '' elsewhere."""
    host = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    request = urllib.request.Request(
        f'http://{host}/{METADATA}/{name}', headers={'Metadata-Flavor': 'Google'}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ''


# ---- joining


def join_cluster(section: ConfigDict) -> None:
    """Joins the other processes, if the config or the platform says so.

    Raises UserError for fields that do not fit each other, and if process 0 does not
    answer within `distributed.join_timeout`.
    """
    if section.enabled == 'off' or is_joined():
        return
    coordinator, num_processes, process_id = _read_cluster(section, os.environ)
    platform = coordinator and 'distributed.coordinator'
    platform = platform or find_platform(os.environ)
    if platform is None and section.enabled == 'auto':
        return
    seconds = section.join_timeout
    name = 'a process' if process_id is None else f'process {process_id}'
    count = f' of {num_processes}' if num_processes else ''
    if platform not in ('SLURM', None):
        os.environ.setdefault('JAX_COORDINATOR_PORT', PORT)
    where = (
        coordinator or f'port {os.environ.get("JAX_COORDINATOR_PORT", "of the job")}'
    )
    print(
        f'{name}{count} joins the others by {platform} ({where}), in at most '
        f'{seconds} s (distributed.join_timeout)',
        flush=True,
    )
    if coordinator and (process_id or 0) > 0:
        _wait_for_answer(coordinator, seconds)
    import jax

    # A process that dies is noticed by our own watchdog, which says more: JAX, which
    # ends the process at once, comes after it.
    longest = max(section.timeout, section.first_timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=longest + 60,
            shutdown_timeout_seconds=min(300, section.timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(_explain(error, platform)) from error


def is_joined() -> bool:
    """Whether this process has joined others."""
    if 'jax' not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _read_cluster(section, environ) -> tuple[str | None, int | None, int | None]:
    """(address, number of processes, number of this one); None: JAX finds it."""
    coordinator = section.coordinator or environ.get('JAX_COORDINATOR_ADDRESS', '')
    if not section.coordinator and section.enabled == 'auto':
        if not _by_address(environ):
            coordinator = ''
    count = section.num_processes or int(environ.get('JAX_NUM_PROCESSES', 0))
    index = environ.get('JOB_COMPLETION_INDEX', -1) if count else -1
    number = int(environ.get('JAX_PROCESS_ID', index))
    number = section.process_id if section.process_id >= 0 else number
    if not coordinator:
        return None, None, None
    if not re.fullmatch(r'.+:\d+', coordinator):
        raise UserError(
            f'distributed.coordinator={coordinator!r}: add a port that the other hosts '
            f'can reach, such as {coordinator}:{PORT}'
        )
    if section.coordinator and not count:
        raise UserError(
            f'distributed.coordinator={coordinator!r}: also give '
            'distributed.num_processes, and distributed.process_id, from 0 on each host'
        )
    if count and not 0 <= number < count:
        raise UserError(
            f'distributed.process_id={number}: give a number from 0 to {count - 1}, as '
            f'distributed.num_processes={count}'
        )
    return coordinator, count or None, number if number >= 0 else None


def _wait_for_answer(coordinator: str, seconds: float) -> None:
    """Returns when process 0 listens; JAX itself would abort without a line to read."""
    host, port = coordinator.rsplit(':', 1)
    limit = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > limit:
                raise UserError(
                    f'distributed.coordinator={coordinator!r}: process 0 does not '
                    f'answer after {seconds} s ({error}): start it, let the firewall '
                    'pass this port, or raise distributed.join_timeout'
                ) from error
        time.sleep(RETRY_SECONDS)


def _explain(error: Exception, platform: str | None) -> str:
    if 'must be called before' in str(error):
        return (
            'distributed.enabled: the config file has used a device of JAX: create '
            'arrays later, inside the stage'
        )
    reason = str(error).strip().split('\n')[0]
    return (
        f'distributed.enabled: JAX finds no cluster ({platform or "no platform"}: '
        f'{reason}): give distributed.coordinator=HOST:PORT, .num_processes and '
        '.process_id'
    )


# ---- what was compiled


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder for this version of JAX, libtpu and flags.

    Another version may not read, or may misread, what one has written. With `gs://`,
    JAX itself reads and writes.
    """
    if not folder:
        return
    import jax

    flags = [os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    names = ['jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'jax-cuda12-plugin']
    versions = []
    for name in names:
        try:
            versions.append(f'{name}-{metadata.version(name)}')
        except metadata.PackageNotFoundError:
            continue
    name = '_'.join([*versions, hash_words(*flags).hex()[:8]])
    if '://' not in folder:
        folder = os.path.abspath(os.path.expanduser(folder))
    jax.config.update('jax_compilation_cache_dir', f'{folder.rstrip("/")}/{name}')
