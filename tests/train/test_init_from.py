"""What a run takes from the run that it is initialised from."""

import shutil

import pytest

from configs import common
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.train import init_from


def config_of(run, step=-1):
    config = common.base()
    config.start = common.start_section(str(run), step)
    config.data.context = 0
    return config


def test_model_and_tokenizer_are_the_earlier_runs(trained_run, tmp_path):
    earlier = run_dir.read_config(trained_run)
    config = init_from.inherit_config(config_of(trained_run), tmp_path)
    assert config.model == earlier.model and config.tokenizer == earlier.tokenizer
    assert config.data.context == earlier.model.context
    assert config.start.run == str(trained_run) and config.start.step in (2, 4)
    for name in ('tokenizer.model', 'manifest.json'):
        copied = tmp_path / 'tokenizer' / name
        assert copied.read_bytes() == (trained_run / 'tokenizer' / name).read_bytes()
    assert init_from.inherit_config(config, tmp_path) == config
    assert (
        init_from.inherit_config(config_of(trained_run, step=2), tmp_path).start.step
        == 2
    )


def test_rows_of_a_long_model_are_limited(trained_run, tmp_path, monkeypatch, capsys):
    earlier = run_dir.read_config(trained_run)
    inherit = lambda: init_from.inherit_config(config_of(trained_run), tmp_path)
    monkeypatch.setattr('gptjax.core.config.DEFAULT_CONTEXT', 16)
    # A run that was trained on longer rows goes on with them.
    assert inherit().data.context == earlier.data.context == earlier.model.context > 16
    assert capsys.readouterr().out == ''
    earlier.data.context = 8  # as in the run of an imported model
    monkeypatch.setattr(init_from, 'read_start_config', lambda run: earlier)
    assert inherit().data.context == 16
    printed = capsys.readouterr().out
    assert printed.startswith('data.context=0: rows have 16 of the 64 tokens of the')


def test_how_the_model_is_trained_can_be_changed_and_its_shape_not(
    trained_run, tmp_path
):
    def adopted(**changes):
        named = {f'model.{name}': value for name, value in changes.items()}
        return init_from.inherit_config(config_of(trained_run), tmp_path, named)

    config = adopted(residual_dropout=0.2, remat='full')
    assert (config.model.residual_dropout, config.model.remat) == (0.2, 'full')
    before = adopted()
    before.model.update(residual_dropout=0.2, remat='full')
    assert config == before
    with pytest.raises(UserError, match='model.width: model and tokenizer are those'):
        adopted(width=128)
    # A config file, too, can set dropout: 0 is the default and inherits.
    with_dropout = config_of(trained_run)
    with_dropout.model.residual_dropout = 0.3
    inherit = lambda named: init_from.inherit_config(with_dropout, tmp_path, named)
    assert inherit({}).model.residual_dropout == 0.3
    assert inherit({'model.residual_dropout': 0.0}).model.residual_dropout == 0.0
    # The resumed run keeps it, without the flag.
    run_dir.write_config(config, tmp_path)
    (tmp_path / 'checkpoints' / '00000002').mkdir(parents=True)
    assert adopted() == config


def test_a_run_under_way_needs_the_earlier_one_no_more(trained_run, tmp_path):
    earlier = shutil.copytree(trained_run, tmp_path / 'earlier')
    run = tmp_path / 'run'
    config = init_from.inherit_config(config_of(earlier, step=2), run)
    run_dir.write_config(config, run)
    shutil.rmtree(earlier)
    with pytest.raises(UserError, match='no run directory there'):
        init_from.inherit_config(config_of(earlier), run)
    (run / 'checkpoints' / '00000002').mkdir(parents=True)
    assert init_from.inherit_config(config_of(earlier), run) == config
    # Another step is another start.
    with pytest.raises(UserError, match='no run directory there'):
        init_from.inherit_config(config_of(earlier, step=4), run)


def test_what_cannot_be_started_from(trained_run, prepared_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, step, message in (
        ('', -1, 'start.run is empty'),
        (tmp_path / 'nowhere', -1, 'there: run the stage that makes it, or name ano'),
        ('runs/base', -1, 'there: run launch/local.sh'),
        (prepared_run, -1, 'has no checkpoint: train that run'),
        (
            trained_run,
            3,
            'start.step=3: .* has no such checkpoint; its checkpoints are 2, 4',
        ),
    ):
        with pytest.raises(UserError, match=message):
            init_from.inherit_config(config_of(run, step), tmp_path / 'run')
    copy = tmp_path / 'run' / 'tokenizer' / 'tokenizer.model'
    storage.write_text(copy, 'other')
    # Without a config the copy is what a refused command with another start left.
    init_from.inherit_config(config_of(trained_run), tmp_path / 'run')
    own = trained_run / 'tokenizer' / 'tokenizer.model'
    assert copy.read_bytes() == own.read_bytes()
    storage.write_text(copy, 'other')
    storage.write_text(tmp_path / 'run' / 'config.json', '{}')
    with pytest.raises(UserError, match='has another tokenizer than start.run='):
        init_from.inherit_config(config_of(trained_run), tmp_path / 'run')
