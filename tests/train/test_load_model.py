"""Loading a trained model: which parts of the state are read, and mismatches."""

import jax
import numpy as np
import pytest

from configs import common
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.models import heads, settings
from gptjax.models.linear import INPUT_AXES
from gptjax.optim.optimizer import ema_params, make_optimizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import load_model
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.state import abstract_state
from tests import helpers
from tests.post.starts import write_start

PLAIN = dict(optim=dict(name='muon'))
KINDS = {
    'muon': PLAIN,
    'adamw, averaged': dict(optim=dict(name='adamw', ema=0.99)),
    'lora, averaged': dict(optim=dict(ema=0.99), lora=dict(rank=2)),
    'ppo': dict(ppo=dict(critic='head')),
    'ppo, averaged': dict(optim=dict(ema=0.99), ppo=dict(critic='network')),
}


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """A run directory of a small model with random weights."""
    return write_start(tmp_path_factory.mktemp('load'))


def write_run(start, workdir, kind, **model):
    """(config, state) of a run in `workdir` with a random state."""
    config = run_dir.read_config(start)
    for name, fields in kind.items():
        if name != 'optim':
            config[name] = getattr(common, f'{name}_section')()
        config[name].update(fields)
    config.model.update(model)
    if 'lora' in kind:
        config.start = common.start_section(str(start))
        config.start.step = 0
    (workdir / 'tokenizer').mkdir(parents=True)
    content = (start / 'tokenizer' / 'tokenizer.model').read_bytes()
    (workdir / 'tokenizer' / 'tokenizer.model').write_bytes(content)
    run_dir.write_config(config, workdir)

    tokenizer, mesh = Tokenizer(content), helpers.mesh_of()
    resolved = settings.resolve(config.model, tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        shapes, axes = load_model.trained_shapes(config, resolved)
        abstract = abstract_state(shapes, make_optimizer(config, shapes), axes, mesh)
        state = jax.tree.map(
            lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype)), abstract
        )
        identity = load_model.model_identity(
            tokenizer, load_model.load_base(config, mesh)
        )
        checkpoints = Checkpoints(workdir / 'checkpoints', identity)
        checkpoints.save(0, state, {}, 1.0)
        checkpoints.close()
    return config, state


@pytest.mark.parametrize('kind', KINDS)
def test_the_weights_are_read_and_no_more(kind, start, tmp_path, monkeypatch):
    config, state = write_run(start, tmp_path / 'run', KINDS[kind])
    sizes = []

    def reading(self, step, item, args):
        found = read(self, step, item, args)
        arrays = [x for x in jax.tree.leaves(found) if isinstance(x, jax.Array)]
        sizes.append(sum(array.nbytes for array in arrays))
        return found

    read = Checkpoints._read
    monkeypatch.setattr(Checkpoints, '_read', reading)
    trained = load_model.load_model(config, tmp_path / 'run', helpers.mesh_of())
    # The last read is that of the run's own state and includes the step (4 bytes).
    size = sizes[-1] - 4

    expected = heads.without_critic(ema_params(state.opt_state, state.params))
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    if 'lora' in config:
        base = load_model.load_base(config, helpers.mesh_of()).params
        expected = load_model.merge_lora(config, base, expected, helpers.mesh_of())
    helpers.assert_trees_close(trained.params, expected)
    assert trained.step == int(state.step)


def test_another_model_is_refused_by_name(start, tmp_path):
    run = tmp_path / 'run'
    config, _ = write_run(start, run, PLAIN)
    config.model.mlp_width = 48
    message = (
        r'layers/mlp/down is float32\[2,64,32\], with this config it is float32\[2,48'
    )
    with pytest.raises(UserError, match=message):
        load_model.load_model(config, run, helpers.mesh_of())
    # The parts that are not read have to fit too.
    config.model.mlp_width = 64
    config.optim.ema = 0.5
    with pytest.raises(UserError, match='lacks the array opt_state/.*/average/'):
        load_model.load_model(config, run, helpers.mesh_of())


@pytest.mark.parametrize('position', ('rotary', 'learned'))
def test_an_engine_keeps_weights_as_it_computes_with_them(position, start, tmp_path):
    run = tmp_path / 'run'
    model = dict(dtype='bfloat16', position=position, tie_embeddings=True)
    config, _ = write_run(start, run, PLAIN, **model)
    half, whole = 'bfloat16', 'float32'
    token = half if position == 'rotary' else whole
    assert kept(load_model.load_engine(config, run, slots=2)) == {half, token}
    # One conversion is shared: with a draft in float32, the model stays float32.
    rounded = load_model.load_engine(config, run, slots=2, draft=start)
    assert kept(rounded, draft=True) == {whole}


def kept(engine, draft=False):
    """The dtypes of matrices of layers and embeddings of tokens."""
    params = engine._runner._params
    leaves = jax.tree_util.tree_leaves_with_path(params[0] if draft else params)
    names = INPUT_AXES.keys() | {'token'}
    return {str(leaf.dtype) for path, leaf in leaves if path[-1].key in names}
