"""The stage `transfer`: sizes over widths, and the whole stage once."""

import pytest

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.tune import transfer
from gptjax.tune.search_space import parse_space
from tests import helpers, runs

SPACE = 'model.width=choice(32,64); optim.learning_rate=log(1e-3,1e-2,2)'


def test_heads_keep_their_size_and_the_rest_grows():
    derive = transfer.make_derive(helpers.config(num_kv_heads=2), (32, 64))
    assert derive({'model.width': 64}) == {
        'model.width': 64,
        'model.num_heads': 8,
        'model.num_kv_heads': 4,
        'model.mlp_width': 256,
        'model.head_dim': 8,
        'optim.base_width': 32,
    }
    with pytest.raises(UserError, match='model.width=24: .* need multiples of 16'):
        transfer.make_derive(helpers.config(num_kv_heads=2), (24, 32))
    with pytest.raises(UserError, match='tie_embeddings=True'):
        transfer.make_derive(helpers.config(tie_embeddings=True), (32, 64))


@pytest.mark.parametrize(
    'space',
    ('model.width=choice(32,64)', 'seed=int(0,9)', f'{SPACE}; seed=choice(1,2)'),
)
def test_a_space_without_widths_and_a_rate_is_refused(space):
    with pytest.raises(UserError, match='use widths and a learning rate'):
        transfer.make_options(parse_space(space), space)


@pytest.mark.slow
def test_the_stage(tmp_path):
    words = (*runs.SHORT, f'--workdir={tmp_path}', f'--space={SPACE}')
    output, _ = runs.finish(runs.start('transfer', *words, '--config.optim.name=lion'))
    assert '8 trials: 8 complete' in output
    results = storage.read_json(tmp_path / 'transfer.json')
    losses = {
        (t['parametrization'], t['width'], t['learning_rate']): t['loss']
        for t in results['trials']
    }
    for rate in (1e-3, 1e-2):
        assert losses['standard', 32, rate] == losses['mup', 32, rate]
        assert losses['standard', 64, rate] != losses['mup', 64, rate]
    assert [(t['parametrization'], t['width']) for t in results['best']] == [
        *(('standard', 32), ('standard', 64), ('mup', 32), ('mup', 64))
    ]
    slopes = {name: c['slopes'][1] for name, c in results['coordinates'].items()}
    assert slopes['mup'] < slopes['standard']
    assert (tmp_path / 'report.html').read_text().count('<figure>') == 5
    # The command that a trial names has the sizes that follow from the width.
    config = run_dir.read_config(tmp_path / 'trials' / '005')
    assert (config.model.num_heads, config.model.head_dim) == (2, 16)
    environment = storage.read_json(tmp_path / 'trials' / '005' / 'environment.json')
    assert '--config.model.num_heads=2' in environment['config']
