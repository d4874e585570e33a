"""PPO-ptx: pretraining text in the updates."""

import numpy as np
import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.post import ppo
from tests import runs
from tests.post import starts


def test_text_must_divide_into_micro_batches():
    config = starts.bare_config('ppo')
    config.train.accumulation = 3
    with pytest.raises(UserError, match='ppo.ptx_rows=32 is not divisible by .* = 6'):
        ppo.check_text_rows(config, shards=2)
    config.ppo.ptx_rows = 36
    ppo.check_text_rows(config, shards=2)


def config_for(run, **fields):
    config = common.base()
    config.start = common.start_section(str(run))
    config.ppo = common.ppo_section()
    config.ppo.update(dict(ptx=0.5, ptx_run=str(run), ptx_rows=4))
    config.ppo.update(fields)
    return config


def test_text_depends_on_the_update_and_its_loss_is_a_mean(prepared_run):
    config = config_for(prepared_run)
    text_arrays = ppo.make_text_arrays(config, ppo.open_text(config))
    batch = dict(weights=np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32))
    first, again, other = (text_arrays(number, batch)['ptx'] for number in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert first['inputs'].shape[0] == 4
    assert (first['inputs'] != other['inputs']).any()
    # The step divides by the 4 tokens of the replies: the weights give a mean.
    assert first['weights'].sum() / 4 == pytest.approx(1, rel=1e-6)


def test_text_that_does_not_fit_is_refused(prepared_run, tmp_path):
    with pytest.raises(UserError, match='set ppo.ptx_run to the run with the text'):
        ppo.open_text(config_for(prepared_run, ptx_run=''))
    with pytest.raises(UserError, match='is not there: run the stage `prepare`'):
        ppo.open_text(config_for(prepared_run, ptx_run=str(tmp_path)))
    other = runs.copy(prepared_run, tmp_path / 'other')
    with open(other / 'tokenizer' / 'tokenizer.model', 'ab') as file:
        file.write(b'\xc0\x3e\x01')  # a field that SentencePiece does not know
    with pytest.raises(UserError, match='prepared with another tokenizer'):
        config = config_for(prepared_run)
        config.start.run = str(other)
        ppo.open_text(config)
