"""PPO-ptx: pretraining text beside the replies of an update."""

import numpy as np
import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.post import ppo
from tests import runs


def config_for(run, **fields):
    config = common.base()
    config.start = common.start_section(str(run))
    config.ppo = common.ppo_section()
    config.ppo.update(dict(ptx=0.5, ptx_run=str(run), ptx_rows=4))
    config.ppo.update(fields)
    return config


def test_text_is_a_function_of_the_update_and_weighs_its_own_mean(prepared_run):
    config = config_for(prepared_run)
    beside = ppo.make_text_arrays(config, ppo.open_text(config))
    part = dict(weights=np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32))
    first, again, other = (beside(number, part)['ptx'] for number in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert first['inputs'].shape[0] == 4
    assert (first['inputs'] != other['inputs']).any()
    # Divided by the replies' 4 tokens, as the step does, they are a mean.
    assert first['weights'].sum() / 4 == pytest.approx(1, rel=1e-6)


def test_what_cannot_be_beside_is_refused(prepared_run, tmp_path):
    with pytest.raises(UserError, match='name the run with the text in ppo.ptx_run'):
        ppo.open_text(config_for(prepared_run, ptx_run=''))
    with pytest.raises(UserError, match='is not there: run the stage `prepare`'):
        ppo.open_text(config_for(prepared_run, ptx_run=str(tmp_path)))
    other = runs.copy(prepared_run, tmp_path / 'other')
    with open(other / 'tokenizer' / 'tokenizer.model', 'ab') as file:
        file.write(b'\n')
    with pytest.raises(UserError, match='prepared with another tokenizer'):
        config = config_for(prepared_run)
        config.start.run = str(other)
        ppo.open_text(config)
