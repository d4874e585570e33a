"""A run directory belongs to one config and describes itself."""

import json
import sys

import pytest

from configs import common
from gptjax import rundir
from gptjax.errors import UserError


def trained(workdir, config):
    """A run directory that looks as if it had been trained with `config`."""
    rundir.write_config(config, workdir)
    (workdir / 'checkpoints' / '00000010').mkdir(parents=True)


def test_config_survives_the_file(tmp_path):
    config = common.base()
    config.model.windows = (4, 0)
    rundir.write_config(config, tmp_path)
    assert rundir.read_config(tmp_path) == config
    assert isinstance(rundir.read_config(tmp_path).model.windows, tuple)


def test_environment_names_command_versions_and_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gptjax', 'sample', '--prompt', 'two words'])
    rundir.write_config(common.base(), tmp_path)
    environment = json.loads((tmp_path / 'environment.json').read_text())
    assert environment['command'] == "python -m gptjax sample --prompt 'two words'"
    assert environment['packages']['jax'].split('.')[0].isdigit()
    assert environment['processor'] and environment['python']


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
        rundir.check_run(config, tmp_path)
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
    'field, value',
    (('mesh.tensor', 2), ('train.eval_batches', 1), ('sample.top_k', 5)),
)
def test_what_does_not_may_change(field, value, tmp_path):
    trained(tmp_path, common.base())
    config = common.base()
    config.update_from_flattened_dict({field: value})
    rundir.check_run(config, tmp_path)


def test_before_there_is_a_checkpoint_everything_may_change(tmp_path):
    rundir.check_run(common.base(), tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    rundir.write_config(common.base(), tmp_path)
    config = common.base()
    config.model.width = 96
    rundir.check_run(config, tmp_path)


def test_no_run_directory_and_a_broken_config(tmp_path):
    with pytest.raises(UserError, match='no run directory'):
        rundir.read_config(tmp_path)
    (tmp_path / 'config.json').write_text('{"seed":')
    with pytest.raises(UserError, match=r'config\.json is no JSON .*: delete it'):
        rundir.read_config(tmp_path)


def test_differences_are_named_in_order():
    old = {'a': 1, 'b': {'c': [1, 2], 'd': None}, 'gone': 0}
    new = {'a': 1, 'b': {'c': [1, 3], 'd': None}, 'new': {'x': 1}}
    assert rundir.differences(old, new) == [
        ('b.c', [1, 2], [1, 3]),
        ('gone', 0, None),
        ('new', None, {'x': 1}),
    ]
