"""Who joins other processes: what the platforms say, and what the config says."""

import http.server
import subprocess
import sys
import threading

import jax
import pytest

from configs import common
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.parallel import distributed
from tests import runs

SLURM = dict(SLURM_STEP_NODELIST='n[1-2]', SLURM_PROCID='1', SLURM_NTASKS='2')
ADDRESS = dict(JAX_COORDINATOR_ADDRESS='a:1', JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1')


@pytest.mark.parametrize(
    'environ, platform',
    (
        ({}, None),
        (ADDRESS, 'JAX_COORDINATOR_ADDRESS'),
        (ADDRESS | dict(JAX_NUM_PROCESSES='1'), None),
        (SLURM, 'SLURM'),
        (SLURM | dict(SLURM_NTASKS='1'), None),
        # A shell in a step of one task, in a job of two; the batch script of the job.
        (SLURM | dict(SLURM_STEP_NUM_TASKS='1'), None),
        (dict(SLURM_NTASKS='2', SLURM_PROCID='0'), None),
        (dict(TPU_WORKER_HOSTNAMES='a,b', TPU_WORKER_ID='0'), 'Cloud TPU'),
        (dict(TPU_WORKER_HOSTNAMES='a'), None),
        (dict(TPU_WORKER_HOSTNAMES='a', MEGASCALE_NUM_SLICES='2'), 'Cloud TPU'),
        (dict(TPU_WORKER_HOSTNAMES='a,b', JAX_PLATFORMS='cpu'), None),
        (dict(JOBSET_NAME='j', JOB_COMPLETION_INDEX='0'), 'JobSet'),
        (dict(JOB_COMPLETION_INDEX='0'), None),  # one of several independent tasks
    ),
)
def test_platforms_say_so(environ, platform):
    assert distributed.find_platform(environ) == platform


@pytest.mark.parametrize(
    'hosts, slices, several',
    (('a', '', False), ('a,b', '', True), ('a', "MEGASCALE_NUM_SLICES: '2'\n", True)),
)
def test_a_cloud_tpu_vm_asks_its_metadata_server(hosts, slices, several, monkeypatch):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200)
            self.end_headers()
            text = slices if self.path.endswith('tpu-env') else hosts
            self.wfile.write(text.encode())

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(('localhost', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = dict(GCE_METADATA_IP=f'localhost:{server.server_port}')
    assert distributed.find_platform(environ) is None  # no chips: it does not ask
    monkeypatch.setattr(distributed, 'glob', lambda pattern: ['/dev/accel0'])
    assert (distributed.find_platform(environ) == 'Cloud TPU') == several
    assert distributed.find_platform(environ | dict(TPU_SKIP_MDS_QUERY='1')) is None
    server.shutdown()


@pytest.mark.parametrize(
    'fields, message',
    (
        (dict(coordinator='here'), "coordinator='here': add a port"),
        (dict(coordinator='here:1'), 'also give distributed.num_processes'),
        (dict(coordinator='here:1', num_processes=2), 'process_id=-1: give a number'),
        (
            dict(coordinator='here:1', num_processes=2, process_id=2),
            'process_id=2: give a number from 0 to 1',
        ),
        (dict(enabled='on'), 'JAX finds no cluster'),
        (
            # Nothing listens at port 1.
            dict(coordinator='localhost:1', num_processes=2, process_id=1),
            "coordinator='localhost:1': process 0 does not answer after 1 s",
        ),
    ),
)
def test_errors_name_the_field(fields, message, monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    section = common.base().distributed
    section.update(join_timeout=1, **fields)
    with pytest.raises(UserError, match=message) as error:
        distributed.join_cluster(section)
    assert '\n' not in str(error.value)


def test_nothing_is_joined_by_default(monkeypatch):
    monkeypatch.setattr(jax.distributed, 'initialize', None)
    distributed.join_cluster(common.base().distributed)
    for name, value in ADDRESS.items():
        monkeypatch.setenv(name, value)
    section = common.base().distributed
    section.enabled = 'off'
    distributed.join_cluster(section)


def test_the_processes_are_no_part_of_a_run(tmp_path):
    config = common.base()
    run_dir.write_config(config, tmp_path)
    text = (tmp_path / 'config.json').read_text()
    config.distributed.update(coordinator='a:1', num_processes=2, process_id=1)
    run_dir.write_config(config, tmp_path)
    assert (tmp_path / 'config.json').read_text() == text
    again = run_dir.read_config(tmp_path).distributed.to_dict()
    assert again == common.base().distributed.to_dict()
    words = ['--config=a.py', '--config.distributed.process_id=1', '--config.seed=2']
    assert run_dir.config_words(words) == ['--config=a.py', '--config.seed=2']


def test_no_import_uses_a_device():
    """Of all modules and configs: `jax.distributed` has to come first."""
    modules = [
        '.'.join(path.relative_to(runs.ROOT).with_suffix('').parts)
        for folder in ('gptjax', 'configs')
        for path in sorted((runs.ROOT / folder).rglob('*.py'))
        if not path.name.startswith(('__', 'torch_', 'llama_cpp_'))
    ]
    code = (
        f'import importlib\nfor name in {modules}: importlib.import_module(name)\n'
        'from jax._src import xla_bridge\n'
        'print(xla_bridge.backends_are_initialized())\n'
        'import jax; jax.devices(); print(xla_bridge.backends_are_initialized())'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=runs.ROOT, env=runs.environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ['False', 'True'], done.stderr


def test_compiled_programs_of_other_versions_are_apart(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(jax.config, 'update', lambda name, value: folders.append(value))
    versions = dict(jax='1')
    monkeypatch.setattr(distributed.metadata, 'version', lambda name: versions['jax'])
    distributed.use_compilation_cache('')
    distributed.use_compilation_cache(str(tmp_path))
    distributed.use_compilation_cache(str(tmp_path))
    versions['jax'] = '2'
    distributed.use_compilation_cache(str(tmp_path))
    monkeypatch.setenv('XLA_FLAGS', '--xla_else')
    distributed.use_compilation_cache(str(tmp_path))
    distributed.use_compilation_cache('gs://bucket/compiled/')
    assert folders[0] == folders[1] and len({*folders}) == 4
    assert all(folder.startswith(f'{tmp_path}/jax-') for folder in folders[:4])
    assert folders[4].startswith('gs://bucket/compiled/jax-2')
