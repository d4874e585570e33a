"""Bad input: one line that names the field and the fix, and nothing lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

from gptjax.core import run_dir
from gptjax.parallel.mesh import make_mesh
from gptjax.train.load_model import load_model
from tests import runs

TINY = '--config=configs/tiny.py'
SOURCE = '--config.data.sources.chitchat'


def error_of(capsys, *words) -> str:
    """The one line on standard error of a command that is refused."""
    capsys.readouterr()
    assert runs.gptjax(*words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith('error: '), printed.err
    assert printed.err.count('\n') == 1 and len(printed.err) < 600, printed.err
    return printed.err


def contents(folder):
    """All files of a folder and its subfolders, with their contents."""
    return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture
def run(prepared_run, tmp_path):
    """A new run directory with the data of configs/tiny.py."""
    return runs.copy(prepared_run, tmp_path / 'run')


# ---- data


def write_lines(path, *lines):
    path.write_text(''.join(line + '\n' for line in lines))


GOOD = json.dumps({'text': 'Once upon a time there was a text.'})
BAD_FILES = {
    'missing': ('jsonl', None, ('path=', 'no such file', 'give')),
    'empty': ('jsonl', b'', ('path=', 'empty', 'give')),
    'blank': ('text', b' \n\n', ('path=', 'empty', 'give')),
    'binary': ('text', bytes(range(256)) * 64, ('path=', 'data.txt')),
    'broken line': (
        'jsonl',
        f'{GOOD}\n{GOOD}\n{{"text": \n'.encode(),
        ('path=', 'line 3', 'not valid JSON'),
    ),
    'without text': (
        'jsonl',
        f'{GOOD}\n{{"body": "x"}}\n'.encode(),
        ('line 2', 'text_field', 'body'),
    ),
    'no object': ('jsonl', b'[1, 2]\n', ('line 1', 'object')),
    'no chat': ('chat', GOOD.encode() + b'\n', ('line 1', 'messages')),
    'no parquet': ('parquet', b'PAR0' * 100, ('path=', 'Parquet')),
    'unknown kind': ('csv', b'a,b\n', ("kind='csv'", 'use')),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_bad_data_file(case, tmp_path, capsys):
    kind, content, expected = BAD_FILES[case]
    path = tmp_path / ('data.txt' if kind == 'text' else f'data.{kind}')
    if kind == 'chat':
        path = tmp_path / 'data.jsonl'
    if content is not None:
        path.write_bytes(content)
    workdir = tmp_path / 'run'
    words = (f'{SOURCE}.kind={kind}', f'{SOURCE}.path={path}')
    error = error_of(capsys, 'pretrain', TINY, '--workdir', workdir, *words)
    assert 'data.sources.chitchat' in error
    for word in expected:
        assert word in error, error
    assert not (workdir / 'documents').exists()
    assert not (workdir / 'config.json').exists()


def test_the_place_in_a_file_is_mended_and_the_command_goes_on(tmp_path, capsys):
    path, workdir = tmp_path / 'data.jsonl', tmp_path / 'run'
    good = [json.dumps({'text': f'A text with number {n}.'}) for n in range(60)]
    words = ('data', TINY, f'--workdir={workdir}', f'{SOURCE}.kind=jsonl')
    words = (*words, f'{SOURCE}.path={path}', f'{SOURCE}.limit=0')
    write_lines(path, *good[:30], '{broken', *good[30:])
    assert 'line 31' in error_of(capsys, *words)
    write_lines(path, *good)
    assert runs.gptjax(*words) == 0
    assert 'documents: ' in capsys.readouterr().out


def test_vocabulary_larger_than_the_text_allows(tmp_path, capsys):
    path, workdir = tmp_path / 'data.txt', tmp_path / 'run'
    path.write_text('\n\n'.join('A short text that says little. ' * 400 for _ in 'abc'))
    words = (f'{SOURCE}.kind=text', f'{SOURCE}.path={path}', f'{SOURCE}.limit=0')
    words = (*words, '--config.data.validation_fraction=0.5')
    words = (*words, "--config.data.clean=('normalize_whitespace',)")
    words = ('tokenizer', TINY, f'--workdir={workdir}', *words)
    assert runs.gptjax('data', *words[1:]) == 0
    assert runs.gptjax(*words, '--config.tokenizer.vocab_size=30000') == 0
    printed = capsys.readouterr().out
    assert 'as the text allows no more (tokenizer.vocab_size=30000)' in printed


# ---- the config


BAD_CONFIGS = {
    'model.num_heads=3': 'model.num_heads=3 does not divide model.width=64',
    'model.num_kv_heads=3': 'model.num_kv_heads=3 does not divide',
    'model.num_heads=0': 'model.num_heads=0: use a number of at least 1',
    'model.num_kv_heads=-1': 'model.num_kv_heads=-1: use 0 or a positive number',
    'optim.learning_rate=inf': 'optim.learning_rate=inf: use',
    'data.sources.chitchat.weight=-1.0': 'data.sources.chitchat.weight=-1.0: use',
    'model.mlp=tanh': "model.mlp='tanh': use one of",
    'model.context=32': 'data.context=64 is longer than the model.context=32',
    'mesh.tensor=3 mesh.data=1': 'mesh',
    'mesh.tensor=8': 'model.num_heads=4 is not divisible by mesh.tensor=8',
    'mesh.tensor=16': 'needs 16 devices and there are 8',
    'mesh.data=0': 'mesh.data=0: use a positive size, or -1',
    'mesh.fsdp=-1': 'mesh.data and mesh.fsdp are both -1',
    'mesh.data=2': 'set mesh.data=-1',
    'mesh.data=1 mesh.context=8 data.context=60': 'data.context=60',
    'train.batch_size=12': 'train.batch_size=12',
    'train.accumulation=3': 'train.accumulation=3 does not divide',
    'train.accumulation=0': 'train.accumulation=0: use a number of at least 1',
    'train.num_steps=0': 'train.num_steps=0: use',
    'train.eval_every=0': 'train.eval_every=0: use',
    'checkpoint.every=0': 'checkpoint.every=0: use',
    'checkpoint.keep=0': 'checkpoint.keep=0: use',
    'optim.name=adam': "optim.name='adam': use one of",
    'optim.schedule=step': "optim.schedule='step': use one of",
    'optim.learning_rate=-1.0': 'optim.learning_rate=-1.0: use',
    'optim.beta2=1.5': 'optim.beta2=1.5: use',
    'train.label_smoothing=1.0': 'train.label_smoothing=1.0: use',
    'train.num_steps=4': 'optim.warmup_steps=10 is not below train.num_steps=4',
    'seed=-1': 'seed=-1: use',
    'model.size=3': '--config.model.size: no such config field',
    'model.width=wide': 'width',
}


@pytest.mark.parametrize('fields', BAD_CONFIGS)
def test_bad_config_is_refused_before_there_is_data(fields, tmp_path, capsys):
    words = [f'--config.{field}' for field in fields.split()]
    workdir = tmp_path / 'run'
    error = error_of(capsys, 'pretrain', TINY, f'--workdir={workdir}', *words)
    assert BAD_CONFIGS[fields] in error, error
    assert not workdir.exists()


@pytest.mark.parametrize('stage', ('data', 'tokenizer', 'prepare'))
def test_bad_numbers_are_refused_by_the_stages_before(stage, tmp_path, capsys):
    for field in ('data.validation_fraction=7.0', 'data.workers=-1'):
        words = (stage, TINY, f'--workdir={tmp_path}/run', f'--config.{field}')
        assert f'{field}: use' in error_of(capsys, *words)
    field = "data.augment=('fill_in_middle',)"
    words = (stage, TINY, f'--workdir={tmp_path}/run', f'--config.{field}')
    assert "no augmentation is called 'fill_in_middle'" in error_of(capsys, *words)
    assert not (tmp_path / 'run').exists()


def test_training_on_other_data_is_refused_and_reading_is_not(
    trained_run, tmp_path, capsys
):
    run = runs.copy(trained_run, tmp_path / 'run')
    shutil.rmtree(run / 'prepared')
    words = (*runs.SHORT, f'--workdir={run}', f'{SOURCE}.weight=1.0')
    error = error_of(capsys, 'pretrain', *words)
    assert 'made with other data' in error and 'restore the data' in error
    config = run_dir.read_config(run)
    assert load_model(config, run, make_mesh(config.mesh)).step == 4


def test_environment_is_of_the_command_that_made_something(trained_run, tmp_path):
    run = runs.copy(trained_run, tmp_path / 'run')
    before = (run / 'environment.json').read_bytes()
    assert b'"command": "python -m gptjax pretrain' in before
    for stage in ('data', 'prepare', 'pretrain'):
        assert runs.gptjax(stage, f'--workdir={run}') == 0
    assert (run / 'environment.json').read_bytes() == before
    shutil.rmtree(run / 'prepared')
    assert runs.gptjax('prepare', f'--workdir={run}') == 0
    after = json.loads((run / 'environment.json').read_text())
    assert after['command'] == f'python -m gptjax prepare --workdir={run}'
    assert after['config'] == json.loads(before)['config'] == list(runs.SHORT)


def test_bad_config_leaves_a_run_as_it_was(run, capsys):
    before = contents(run)
    error_of(capsys, 'pretrain', TINY, f'--workdir={run}', '--config.mesh.tensor=16')
    words = (TINY, f'--workdir={run}', '--config.tokenizer.vocab_size=600')
    error = error_of(capsys, 'pretrain', *words)
    assert 'tokenizer.vocab_size: 512 there, 600 here' in error
    assert 'use another --workdir, or delete' in error
    assert contents(run) == before


def test_another_model_than_that_of_the_start(trained_run, tmp_path, capsys):
    words = ('sft', '--config=configs/sft.py', f'--workdir={tmp_path}/run')
    started = f'--config.start.run={trained_run}'
    error = error_of(capsys, *words, started, '--config.model.width=128')
    assert '--config.model.width: model and tokenizer are those of start.run' in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_run_directory_of_another_config(trained_run, tmp_path, capsys):
    workdir = runs.copy(trained_run, tmp_path / 'run')
    before = contents(workdir)
    for stage, field, message in (
        ('pretrain', 'model.width=128', 'model.width: 64 there, 128 here'),
        ('pretrain', 'seed=3', 'seed: 0 there, 3 here'),
        ('eval', 'optim.name=lion', "optim.name: 'muon' there, 'lion' here"),
        ('pretrain', 'data.context=32', 'data.context: 64 there, 32 here'),
    ):
        words = (stage, f'--workdir={workdir}', *runs.SHORT, f'--config.{field}')
        error = error_of(capsys, *words)
        assert message in error and 'use another --workdir' in error, error
    assert contents(workdir) == before


# ---- the place


def test_unwritable_places(tmp_path, capsys):
    (tmp_path / 'file').write_text('not a folder')
    for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run', '/dev/null/run'):
        error = error_of(capsys, 'pretrain', TINY, f'--workdir={workdir}')
        assert f'--workdir={workdir}: cannot write there' in error
        assert 'use another --workdir' in error
    assert (tmp_path / 'file').read_text() == 'not a folder'


def limited(size):
    """For a new process: no file can grow beyond `size` bytes, as on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_full_disk_while_data_is_made(tmp_path):
    path, workdir = tmp_path / 'data.jsonl', tmp_path / 'run'
    lines = (json.dumps({'text': f'A text with the number {n}.'}) for n in range(9999))
    write_lines(path, *lines)
    words = ('data', TINY, f'--workdir={workdir}', f'{SOURCE}.kind=jsonl')
    words = (*words, f'{SOURCE}.path={path}', f'{SOURCE}.limit=0')
    _, errors = runs.finish(runs.start(*words, preexec_fn=limited(200_000)), code=2)
    assert errors.count('\n') == 1 and errors.startswith('error: --workdir='), errors
    assert 'File too large' in errors and 'free some space' in errors
    assert not (workdir / 'documents').exists()


def mounted(folder, size):
    """Whether a small disk could be mounted at `folder`."""
    folder.mkdir()
    words = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', str(folder)]
    if os.geteuid() or not shutil.which('mount'):
        return False
    return subprocess.run(words, capture_output=True).returncode == 0


def check_full_disk(process, workdir, space_again):
    """Expects one line and exit code 2; with more space the run reaches its end."""
    _, errors = runs.finish(process, code=2)
    lines = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and 'free some space' in lines[0], errors
    assert 'Traceback' not in errors, errors
    space_again()
    whole = sorted((workdir / 'checkpoints').glob('[0-9]' * 8))
    output, _ = runs.finish(runs.start(*training(workdir)))
    assert whole
    assert f'from the checkpoint of step {int(whole[-1].name)}' in output
    steps = [r['step'] for r in runs.records(workdir) if r['split'] == 'train']
    assert steps == list(range(1, 61))


def training(workdir):
    words = ('pretrain', TINY, f'--workdir={workdir}', '--config.train.num_steps=60')
    words = (*words, '--config.train.eval_batches=1', '--config.checkpoint.every=5')
    return (*words, '--config.checkpoint.keep=100')


@pytest.mark.slow
def test_full_disk_while_training(prepared_run, tmp_path):
    disk = tmp_path / 'disk'
    if not mounted(disk, '64m'):
        pytest.skip('mounts a small disk, for root; the next test is for all')
    try:
        workdir = runs.copy(prepared_run, disk / 'run')
        left = os.statvfs(disk)
        used = left.f_bavail * left.f_frsize - 7_000_000
        (disk / 'ballast').write_bytes(b'x' * used)
        process = runs.start(*training(workdir))
        check_full_disk(process, workdir, (disk / 'ballast').unlink)
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.mark.slow
def test_files_that_may_not_grow_while_training(prepared_run, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    # metrics.jsonl reaches the limit after about twenty steps
    size = 8_000
    process = runs.start(*training(workdir))
    try:
        while not (workdir / 'checkpoints' / '00000010').exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
        check_full_disk(process, workdir, lambda: None)
    finally:
        process.kill()


# ---- stages after training


def test_eval_and_sample_without_a_checkpoint(run, tmp_path, capsys):
    for stage in ('eval', 'sample'):
        error = error_of(capsys, stage, f'--workdir={run}')
        assert 'has no checkpoint: run the stage pretrain first' in error
        error = error_of(capsys, stage, f'--workdir={tmp_path}/none')
        assert 'is not a run directory' in error
    error = error_of(capsys, 'data', f'--workdir={tmp_path}/none', '--step=0')
    assert 'is not a run directory' in error
    assert not (tmp_path / 'none').exists()


BAD_SAMPLES = {
    '--temperature=-1': 'sample.temperature=-1',
    '--top_k=-1': 'sample.top_k=-1',
    '--top_p=0': 'sample.top_p=0',
    '--min_p=2': 'sample.min_p=2',
    '--max_tokens=0': 'sample.max_tokens=0',
    '--seed=-1': '--seed=-1',
    '--temperature=warm': 'temperature',
}


@pytest.mark.parametrize('flag', BAD_SAMPLES)
def test_bad_sampling_is_refused_before_the_model_is_read(flag, run, capsys):
    assert BAD_SAMPLES[flag] in error_of(capsys, 'sample', f'--workdir={run}', flag)


def test_every_way_to_a_config_is_checked(run, capsys):
    error = error_of(capsys, 'eval', f'--workdir={run}', '--top_p=0')
    assert 'eval.top_p=0.0: use a share above 0' in error
    for kind in ('train', 'decode'):
        words = ('bench', kind, '--config=configs/bench.py', '--config.model.width=0')
        assert 'model.width=0: use a number of at least 1' in error_of(capsys, *words)


@pytest.mark.slow
def test_a_prompt_longer_than_the_model(trained_run, capsys):
    words = ('sample', f'--workdir={trained_run}', '--prompt', 'many words ' * 60)
    error = error_of(capsys, *words)
    assert 'the context 64' in error and 'shorten it to 63' in error
