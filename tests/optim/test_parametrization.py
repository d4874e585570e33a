"""muP: the coordinate check, the base width, and what is refused."""

import itertools

import jax
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.optim.parametrization import scale_initial
from gptjax.tune.coordinates import measure_changes, measure_slope
from tests import helpers

WIDTHS = 32, 128


def make_config(parametrization, width=32, name='adamw', **model):
    config = helpers.config(width=width, num_heads=width // 8, **model)
    config.tokenizer.vocab_size = helpers.VOCAB
    config.optim.update(
        dict(name=name, learning_rate=4e-3, schedule='constant', warmup_steps=0)
    )
    config.optim.update(dict(parametrization=parametrization, base_width=32))
    return config


def changes(parametrization, width):
    batches = map(helpers.packed_batch, itertools.count())
    return measure_changes(make_config(parametrization, width), batches, num_steps=5)


def test_coordinate_check():
    """Hidden vectors move as far at every width with muP, and not without it."""
    narrow = changes('standard', 32)
    assert narrow == changes('mup', 32)  # bitwise: 32 is the base width
    slope = {
        name: [measure_slope(WIDTHS, pair) for pair in zip(narrow, wide, strict=True)]
        for name, wide in (
            ('standard', changes('standard', 128)),
            ('mup', changes('mup', 128)),
        )
    }
    assert min(slope['standard'][:-1]) > 1.0 and slope['standard'][-1] > 0.3
    # The head starts small, ~ 1 / width, so that its logits move a little less.
    assert max(map(abs, slope['mup'][:-1])) < 0.3 and -0.6 < slope['mup'][-1] < 0.1


@pytest.mark.parametrize('name', ('adamw', 'lion', 'muon'))
def test_factors_by_hand(name):
    """m = 4: initial weights / 2 and updates / 4 in matrices; decay as before."""
    params, updates = {}, {}
    for parametrization in ('standard', 'mup'):
        config = make_config(parametrization, width=128, name=name)
        model = settings.resolve(config.model, helpers.VOCAB)
        init = gpt.init_params(model, jax.random.key(0))
        params[parametrization] = scale_initial(config, init)
        for decay in (0.0, 0.5):
            config.optim.update(dict(weight_decay=decay, clip_norm=0.0))
            transform = make_optimizer(config, init)
            found, _ = jax.jit(transform.update)(init, transform.init(init), init)
            updates[parametrization, decay] = found
    ratio = lambda a, b: {
        jax.tree_util.keystr(path): np.median(x / y)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        )
    }
    initial = ratio(params['mup'], params['standard'])
    step = ratio(updates['mup', 0.0], updates['standard', 0.0])
    for path in initial:
        matrix = any(
            f"'{word}'" in path
            for word in ('query', 'key', 'value', 'out', 'up', 'down', 'kernel')
        )
        assert initial[path] == pytest.approx(0.5 if matrix else 1.0), path
        orthogonal = name == 'muon' and 'kernel' not in path
        want = 0.25 if matrix and not orthogonal else 1.0
        assert step[path] == pytest.approx(want, rel=1e-4), path
    decays = [
        jax.tree.map(np.subtract, updates[key, 0.5], updates[key, 0.0])
        for key in ('standard', 'mup')
    ]
    helpers.assert_trees_close(*decays, atol=1e-6)


@pytest.mark.parametrize(
    'change, message',
    (
        (dict(base_width=0), 'optim.base_width=0: optim.parametrization=mup needs'),
        (dict(name='adafactor'), 'optim.name=adafactor: its updates are relative'),
    ),
)
def test_refused_settings(change, message):
    config = make_config('mup')
    config.optim.update(change)
    with pytest.raises(UserError, match=message):
        make_optimizer(config, {})


def test_refused_models():
    with pytest.raises(UserError, match='model.tie_embeddings=True'):
        make_optimizer(make_config('mup', tie_embeddings=True), {})
    config = make_config('mup')
    config.lora = dict(rank=2)
    with pytest.raises(UserError, match='lora.rank=2'):
        make_optimizer(config, {})
    config.optim.parametrization = 'standard'
    make_optimizer(config, {})
