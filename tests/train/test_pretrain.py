"""Continued pretraining: the model and tokenizer of an earlier run, other text."""

import pytest

from configs import common, more, tiny
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.train import pretrain
from tests import runs

CONFIG = """
from configs import common, tiny

def get_config(variant=''):
    config = tiny.get_config()
    config.start = common.start_section(variant)
    return config
"""


def test_the_config_is_that_of_ones_own_text_with_a_start():
    config = more.get_config('jsonl=logs/')
    assert config.data.sources.own.kind == 'jsonl'
    assert config.start.run == 'runs/base' and config.data.context == 0
    with pytest.raises(ValueError, match='^configs/more.py: add your data'):
        more.get_config()


def test_adapters_are_not_pretrained():
    config = tiny.get_config()
    config.lora = common.lora_section()
    pretrain.check_config(config)
    config.lora.rank = 4
    with pytest.raises(UserError, match='lora.rank=4: `pretrain` trains all'):
        pretrain.check_config(config)


def test_it_goes_on_where_the_earlier_run_ended(trained_run, tmp_path):
    path, run, other = tmp_path / 'more.py', tmp_path / 'run', tmp_path / 'other'
    path.write_text(CONFIG)
    words = [f'--config={path}:{trained_run}', *runs.SHORT[1:]]
    words += ['--config.optim.learning_rate=0.0']
    words += ['--config.optim.matrix_learning_rate=0.0']
    # Augmentations change the text that is trained on, not that of the validation.
    augment = "--config.data.augment=('token_masking','delete_spans')"
    runs.finish(runs.start('pretrain', f'--workdir={run}', *words, augment))
    step = run_dir.read_config(run).start.step

    def validations(workdir):
        found = [r for r in runs.records(workdir) if r['split'] == 'validation']
        return {record['step']: record['bits_per_byte'] for record in found}

    was, now = validations(trained_run)[step], validations(run)
    assert now == pytest.approx({2: was, 4: was}, rel=1e-6)

    # Other text does not train another tokenizer.
    words += ['--config.data.sources.chitchat.limit=200', f'--workdir={other}']
    assert runs.gptjax('prepare', *words) == 0
    name = 'tokenizer/tokenizer.model'
    assert (other / name).read_bytes() == (trained_run / name).read_bytes()
