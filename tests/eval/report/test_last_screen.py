"""The last screen."""

import pytest

from gptjax.core import storage
from gptjax.eval.report.last_screen import last_screen


@pytest.fixture(autouse=True)
def checkpoint(tmp_path):
    folder = tmp_path / 'checkpoints' / '00000010'
    folder.mkdir(parents=True)
    return folder


def test_figures_and_their_baselines(tmp_path):
    results = dict(documents=1297, bytes=654321, bits_per_byte=1.5875)
    results.update(context=128, stride=64)
    baselines = dict(bits_per_byte=dict(xz=2.59, xz_given_train=2.1312))
    evaluation = dict(results=results, baselines=baselines, checkpoint_step=1200)
    storage.write_json(tmp_path / 'eval.json', evaluation)
    lines = last_screen(tmp_path, tmp_path / 'report.html').splitlines()
    assert f'Made: {tmp_path}/report.html' in lines
    assert 'On 1,297 documents it never saw (0.65 MB), bits per byte:' in lines
    assert '   1.587  this model, step 1,200 (context 128, stride 64)' in lines
    assert '   2.131  xz -9e, given training text' in lines
    assert '   2.590  xz -9e alone' in lines
    assert lines[-2].endswith(f'-m gptjax serve --workdir {tmp_path}')
    assert lines[-1].endswith(f'-m gptjax chat --workdir {tmp_path}')


def test_figures_that_are_not_finite_are_a_dash(tmp_path):
    results = dict(documents=1, bytes=9, bits_per_byte=None, context=8, stride=4)
    reply_bits = dict(value=None, baselines=dict(before=dict(value=2.5)))
    dialogue = dict(items=[{}], figures=dict(reply_bits=reply_bits))
    baselines = dict(bits_per_byte=dict(xz=2.59))
    evaluation = dict(results=results, baselines=baselines, checkpoint_step=3)
    evaluation['tasks'] = dict(dialogue=dialogue)
    storage.write_json(tmp_path / 'eval.json', evaluation)
    lines = last_screen(tmp_path, tmp_path / 'report.html').splitlines()
    assert '       –  this model, step 3 (context 8, stride 4)' in lines
    assert '       –  this model, step 3' in lines
    assert '   2.590  xz -9e alone' in lines and '   2.500  before' in lines


def test_an_evaluation_without_baselines_or_a_damaged_one(tmp_path):
    results = dict(documents=1, bytes=9, bits_per_byte=2.5, context=8, stride=4)
    evaluation = dict(results=results, checkpoint_step=3, tasks=None)
    storage.write_json(tmp_path / 'eval.json', evaluation)
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert '   2.500  this model, step 3' in screen and 'xz' not in screen
    (tmp_path / 'eval.json').write_bytes(b'')
    (tmp_path / 'environment.json').write_bytes(b'')
    assert 'gptjax serve' in last_screen(tmp_path, tmp_path / 'report.html')


def test_without_an_evaluation_the_next_command_is_there(tmp_path):
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert 'bits per byte' not in screen and 'gptjax serve' in screen


def test_without_a_checkpoint_the_next_command_trains(tmp_path, checkpoint):
    # The process was killed while it saved the first.
    checkpoint.rename(checkpoint.with_name('00000010.orbax-checkpoint-tmp'))
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert screen.endswith(f'-m gptjax pretrain --workdir {tmp_path}')
    assert 'serve' not in screen
    command = dict(command='python -m gptjax sft --workdir r')
    storage.write_json(tmp_path / 'environment.json', command)
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert screen.endswith(f'-m gptjax sft --workdir {tmp_path}')


def test_the_next_command_of_a_reward_model_is_select(tmp_path):
    (tmp_path / 'ratings').mkdir()
    command = dict(command='python -m gptjax reward --workdir r')
    storage.write_json(tmp_path / 'environment.json', command)
    screen = last_screen(tmp_path, tmp_path / 'report.html')  # it was interrupted
    assert screen.endswith(f'-m gptjax reward --workdir {tmp_path}')
    storage.write_json(tmp_path / 'results.json', {})
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert f'select --config configs/select.py:reward={tmp_path} ' in screen
    sft = tmp_path.parent / 'sft'
    assert screen.endswith(
        f' --config.start.run={sft} --config.task.path={sft}/dialogue'
    )
    assert 'serve' not in screen and 'chat' not in screen and ' eval' not in screen


def test_paths_are_short_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    screen = last_screen(tmp_path, tmp_path / 'report.html')
    assert screen.endswith(f'--workdir {tmp_path.name}')
