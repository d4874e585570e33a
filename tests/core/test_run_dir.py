"""A run directory belongs to one config and describes itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from tests import runs


def trained(workdir, config):
    """A run directory that looks as if it had been trained with `config`."""
    run_dir.write_config(config, workdir)
    (workdir / 'checkpoints' / '00000010').mkdir(parents=True)


def test_config_survives_the_file(tmp_path):
    config = common.base()
    config.model.windows = (4, 0)
    run_dir.write_config(config, tmp_path)
    assert run_dir.read_config(tmp_path).to_dict() == config.to_dict()
    assert isinstance(run_dir.read_config(tmp_path).model.windows, tuple)


def test_environment_names_command_versions_and_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gptjax', 'sample', '--prompt', 'two words'])
    run_dir.write_environment(tmp_path)
    environment = json.loads((tmp_path / 'environment.json').read_text())
    assert environment['command'] == "python -m gptjax sample --prompt 'two words'"
    assert environment['packages']['jax'].split('.')[0].isdigit()
    assert environment['processor'] and environment['python']


def test_the_revision_is_gits_or_what_came_with_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_dir, '__file__', str(tmp_path / 'gptjax' / 'core' / 'run_dir.py')
    )
    assert run_dir.environment()['revision'] is None
    for written, read in (('0123abc+\n', '0123abc+'), ('\n', None)):
        (tmp_path / 'revision').write_text(written)
        assert run_dir.environment()['revision'] == read


def test_environment_keeps_the_config_that_was_named(tmp_path, monkeypatch):
    def written(*words):
        monkeypatch.setattr(sys, 'argv', ['gptjax', *words])
        run_dir.write_environment(tmp_path)
        return json.loads((tmp_path / 'environment.json').read_text())

    config = ['--config', 'configs/tiny.py', '--config.seed=3', '--config.optim.ema']
    first = written('prepare', *config, '0.5', '--workdir=r', '--step', '3')
    assert first['config'] == [*config, '0.5']
    later = written('pretrain', '--workdir=r')
    assert later['config'] == first['config']
    assert later['command'] == 'python -m gptjax pretrain --workdir=r'
    assert written('pretrain', '--config=b.py')['config'] == ['--config=b.py']
    (tmp_path / 'environment.json').write_bytes(b'')  # damaged: a resume goes on
    assert written('pretrain', '--workdir=r')['config'] == []


@pytest.mark.parametrize(
    'field, value',
    (('seed', 1), ('model.width', 96), ('optim.name', 'lion'), ('train.num_steps', 7)),
)
def test_what_decides_the_weights_may_not_change(field, value, tmp_path):
    trained(tmp_path, common.base())
    config = common.base()
    config.update_from_flattened_dict({field: value})
    before = (tmp_path / 'config.json').read_bytes()
    with pytest.raises(UserError, match=rf'{field}: .* there, {value!r} here'):
        run_dir.check_run(config, tmp_path)
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
    'field, value',
    (('mesh.tensor', 2), ('train.eval_batches', 1), ('sample.top_k', 5)),
)
def test_what_does_not_may_change(field, value, tmp_path):
    trained(tmp_path, common.base())
    config = common.base()
    config.update_from_flattened_dict({field: value})
    run_dir.check_run(config, tmp_path)


def test_a_field_that_came_or_went_since_is_unchanged(tmp_path):
    old = common.base()
    with old.optim.unlocked(), old.model.unlocked(), old.train.unlocked():
        del old.optim['ema'], old.model['unroll']
        old.train.gone = 3
    trained(tmp_path, old)
    run_dir.check_run(common.base(), tmp_path)


def test_a_section_or_an_entry_of_ones_own_that_came_is_a_change(tmp_path):
    trained(tmp_path, common.base())
    config = common.base()
    config.sft = common.sft_section()
    with pytest.raises(UserError, match='sft: None there'):
        run_dir.check_run(config, tmp_path)
    config = common.base()
    config.task = common.task_section()
    trained(tmp_path / 'task', config)
    other = config.copy_and_resolve_references()
    other.task.options.more = 1
    with pytest.raises(UserError, match='task.options.more: None there, 1 here'):
        run_dir.check_run(other, tmp_path / 'task')


def test_before_there_is_a_checkpoint_everything_may_change(tmp_path):
    run_dir.check_run(common.base(), tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    run_dir.write_config(common.base(), tmp_path)
    config = common.base()
    config.model.width = 96
    run_dir.check_run(config, tmp_path)


def test_a_first_checkpoint_that_was_not_finished_is_none(tmp_path):
    trained(tmp_path, common.base())
    finished = tmp_path / 'checkpoints' / '00000010'
    assert run_dir.has_checkpoint(tmp_path)
    finished.rename(tmp_path / 'checkpoints' / '00000010.orbax-checkpoint-tmp')
    assert not run_dir.has_checkpoint(tmp_path)
    config = common.base()
    config.model.width = 96
    run_dir.check_run(config, tmp_path)


def test_no_run_directory_and_a_broken_config(tmp_path):
    with pytest.raises(UserError, match='not a run directory'):
        run_dir.read_config(tmp_path)
    for content in ('{"seed":', '[]', ''):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(
            UserError, match=r'config\.json is not a JSON object: delete it'
        ):
            run_dir.read_config(tmp_path)


def test_differences_are_named_in_order():
    old = {'a': 1, 'b': {'c': [1, 2], 'd': None}, 'gone': 0}
    new = {'a': 1, 'b': {'c': [1, 3], 'd': None}, 'new': {'x': 1}}
    assert run_dir.differences(old, new) == [
        ('b.c', [1, 2], [1, 3]),
        ('gone', 0, None),
        ('new', None, {'x': 1}),
    ]


HOLDING = """
import sys, time
from pathlib import Path
from gptjax.core import run_dir
with run_dir.locked(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_none_after_its_death(tmp_path):
    run = tmp_path / 'run'
    words = [sys.executable, '-c', HOLDING, str(run)]
    with subprocess.Popen(
        words, cwd=runs.ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(UserError, match='another process is writing there: wait'):
            with run_dir.locked(run):
                pass
        other.kill()
    with run_dir.locked(run):
        (run / 'made').write_text('')
    assert [path.name for path in run.iterdir()] == ['made']


def test_a_lock_leaves_no_run_behind_that_was_not_there(tmp_path):
    with run_dir.locked(tmp_path / 'run'):
        assert (tmp_path / 'run').is_dir()
    assert not (tmp_path / 'run').exists()


def test_where_nothing_can_be_written_is_told(tmp_path):
    for place in ('/proc/none', '/dev/null/run'):
        with pytest.raises(UserError, match=f'{place}: cannot write there .*: use'):
            with run_dir.locked(Path(place)):
                pass


def test_an_environment_names_the_command_of_a_trial(tmp_path):
    words = ['sft', '--config=a.py', '--config.seed=3', '--workdir=b']
    with run_dir.written_as(words):
        run_dir.write_environment(tmp_path)
    environment = storage.read_json(tmp_path / 'environment.json')
    assert environment['command'] == 'python -m gptjax ' + ' '.join(words)
    assert environment['config'] == words[1:3]
