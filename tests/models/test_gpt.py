"""The model against a GPT in plain loops, and properties of every architecture."""

import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models import gpt, layers, settings
from gptjax.train.losses import make_language_loss
from tests import helpers

T = 32
KEY = jax.random.key(0, impl='rbg')  # compiles in a fraction of the time
# Together these models use every choice of every field.
MODELS = {
    'default': dict(),
    'gpt2': dict(
        position='learned',
        norm='layernorm',
        mlp='gelu',
        qk_norm=False,
        bias=True,
        tie_embeddings=True,
    ),
    'llama': dict(mlp='swiglu', qk_norm=False, num_kv_heads=2, rotary_base=500.0),
    'gemma': dict(
        mlp='swiglu',
        num_kv_heads=1,
        head_dim=6,
        windows=(5, 0),
        attention_softcap=1.5,
        logit_softcap=2.0,
        norm='layernorm',
    ),
    'bare': dict(
        position='none', mlp='gelu', mlp_width=20, bias=True, norm_epsilon=0.1
    ),
}
every_model = pytest.mark.parametrize('name', MODELS)


def random_params(model, seed=0):
    """Parameters of order one, biases and scales too, so that all change the logits."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == 'scale':
            return 1 + 0.3 * noise
        return 0.5 * noise if leaf.ndim < 3 else noise / math.sqrt(model.width / 4)

    return jax.tree_util.tree_map_with_path(draw, gpt.abstract_params(model))


@lru_cache
def make_forward(name):
    """(settings, parameters, jitted logits of a batch), compiled once per module."""
    model = helpers.model_settings(**MODELS[name])
    params = random_params(model)

    @jax.jit
    def logits(params, batch):
        bound = gpt.bind(model, params)
        return bound(batch['inputs'], batch['segments'], batch['positions'])

    return model, params, lambda batch: np.asarray(logits(params, batch))


def make_batch(seed=0):
    return helpers.packed_batch(seed, batch=4, context=T)


# ---- against plain loops ------------------------------------------------------


def naive_logits(model, params, tokens, segments, positions):
    """Logits of one row, computed for each token, head and layer separately."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    xs = [params['embed']['token'][t] for t in tokens]
    if model.position == 'learned':
        table = params['embed']['position']
        xs = [x + table[p] for x, p in zip(xs, positions, strict=True)]
    for i in range(model.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], params['layers'])
        window = model.windows[i % len(model.windows)]
        mixed = naive_attention(model, layer, xs, segments, positions, window)
        xs = [x + y for x, y in zip(xs, mixed, strict=True)]
        xs = [
            x + naive_mlp(model, layer['mlp'], naive_norm(model, layer['mlp_norm'], x))
            for x in xs
        ]
    hidden = np.stack([naive_norm(model, params['final_norm'], x) for x in xs])
    tied = model.tie_embeddings
    logits = hidden @ (params['embed']['token'].T if tied else params['head']['kernel'])
    cap = model.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits


def naive_norm(model, params, x):
    if model.norm == 'layernorm':
        x = x - x.mean()
    x = x / np.sqrt((x**2).mean() + model.norm_epsilon) * params['scale']
    return x + params.get('bias', 0)


def naive_attention(model, layer, xs, segments, positions, window):
    params = layer['attention']
    group = model.num_heads // model.num_kv_heads

    def project(x, name, position):
        """The projection (heads, H) of a token, with norm and rotary position."""
        heads = np.einsum('d,dnh->nh', x, params[name])
        heads = heads + params.get(f'{name}_bias', 0)
        if name == 'value':
            return heads
        if model.qk_norm:
            norm = params[f'{name}_norm']
            heads = np.stack([naive_norm(model, norm, head) for head in heads])
        if model.position == 'rotary':
            half = model.head_dim // 2
            for pair in range(half):  # rotates a complex number
                angle = position * model.rotary_base ** (-pair / half)
                number = heads[:, pair] + 1j * heads[:, pair + half]
                number = number * np.exp(1j * angle)
                heads[:, pair], heads[:, pair + half] = number.real, number.imag
        return heads

    xs = [naive_norm(model, layer['attention_norm'], x) for x in xs]
    queries, keys, values = (
        [project(x, name, p) for x, p in zip(xs, positions, strict=True)]
        for name in ('query', 'key', 'value')
    )
    out = []
    for t in range(len(xs)):
        first = max(0, t - window + 1) if window else 0
        seen = [s for s in range(first, t + 1) if segments[s] == segments[t]]
        total = np.zeros(model.width) + params.get('out_bias', 0)
        for n in range(model.num_heads):
            scores = np.array([keys[s][n // group] @ queries[t][n] for s in seen])
            scores = scores / math.sqrt(model.head_dim)
            if model.attention_softcap:
                cap = model.attention_softcap
                scores = cap * np.tanh(scores / cap)
            weights = np.exp(scores - scores.max())
            weights = weights / weights.sum()
            mixed = sum(
                w * values[s][n // group] for w, s in zip(weights, seen, strict=True)
            )
            total = total + mixed @ params['out'][n]
        out.append(total)
    return out


def naive_mlp(model, params, x):
    up = x @ params['up'] + params.get('up_bias', 0)
    if model.mlp == 'swiglu':
        gate = x @ params['gate']
        middle = gate / (1 + np.exp(-gate)) * up
    elif model.mlp == 'relu2':
        middle = np.where(up > 0, up, 0) ** 2
    else:
        inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        middle = 0.5 * up * (1 + np.tanh(inner))
    return middle @ params['down'] + params.get('down_bias', 0)


@every_model
def test_logits_equal_those_of_loops(name):
    model, params, logits = make_forward(name)
    batch = make_batch()
    row = 1
    ours = logits(batch)[row]
    arrays = (batch[part][row] for part in ('inputs', 'segments', 'positions'))
    expected = naive_logits(model, params, *arrays)
    # Measured: 2e-7 to 8e-7, float32 rounding (6e-8) through two layers.
    helpers.assert_close_in_norm(ours, expected, 3e-6)
    assert expected.std() > 0.3  # the logits are not all equal


# ---- properties of every model ------------------------------------------------


@every_model
def test_packed_equals_unpacked(name):
    _, _, logits = make_forward(name)
    batch = make_batch()
    packed = logits(batch)
    row = 2
    alone = {part: np.zeros_like(x) for part, x in batch.items()}
    spans = {n: np.flatnonzero(batch['segments'][row] == n) for n in (1, 2, 3)}
    for number, span in spans.items():  # each document in a row of its own
        size = len(span)
        alone['inputs'][number, :size] = batch['inputs'][row, span]
        alone['segments'][number, :size] = 1
        alone['positions'][number, :size] = np.arange(size)
    unpacked = logits(alone)
    for number, span in spans.items():
        # Measured: no difference, but the compiler may change the order of sums.
        helpers.assert_close_in_norm(
            unpacked[number, : len(span)], packed[row, span], 1e-6
        )


@every_model
def test_a_token_changes_nothing_before_it(name):
    _, _, logits = make_forward(name)
    batch = make_batch()
    batch['segments'][:], batch['positions'][:] = 1, np.arange(T)
    changed = dict(batch, inputs=batch['inputs'].copy())
    changed['inputs'][:, 20] = 3 + (changed['inputs'][:, 20] - 2) % 90
    before, after = logits(batch), logits(changed)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.abs(before[:, 20] - after[:, 20]).max() > 1e-3
    assert np.abs(before[:, 21] - after[:, 21]).max() > 1e-3


@every_model
def test_a_row_does_not_depend_on_its_neighbours(name):
    _, _, logits = make_forward(name)
    batch, other = make_batch(0), make_batch(1)
    mixed = {part: other[part].copy() for part in other}
    for part in mixed:
        mixed[part][2] = batch[part][2]
    np.testing.assert_array_equal(logits(batch)[2], logits(mixed)[2])


# ---- initialisation -----------------------------------------------------------


@pytest.mark.parametrize('name', ['default', 'gpt2', 'llama'])
def test_the_first_loss_is_ln_v(name):
    V = 2048
    config = helpers.config(**MODELS[name])
    model = settings.resolve(config.model, V)
    loss_fn = make_language_loss(model, config.train)
    batch = helpers.packed_batch(batch=16, context=T)
    rng = np.random.default_rng(0)
    for part in ('inputs', 'targets'):
        batch[part] = rng.integers(0, V, batch[part].shape).astype(np.int32)

    @jax.jit
    def first_loss(key):
        _, metrics = loss_fn(gpt.init_params(model, key), batch, None)
        return metrics['loss'] / metrics['tokens']

    assert first_loss(KEY) == pytest.approx(math.log(V), rel=0.01)


def test_init_scales_weights_that_write_to_the_residual_stream():
    model = helpers.model_settings(width=64, num_layers=8)
    params = jax.jit(partial(gpt.init_params, model))(KEY)
    attention, mlp = params['layers']['attention'], params['layers']['mlp']
    for leaf in (attention['query'], attention['value'], mlp['up']):
        assert float(jnp.std(leaf)) == pytest.approx(0.02, rel=0.05)
    for leaf in (attention['out'], mlp['down']):  # 1 / sqrt(2 * 8 layers)
        assert float(jnp.std(leaf)) == pytest.approx(0.02 / 4, rel=0.05)
    layer_means = jnp.mean(jnp.abs(attention['query'][0] - attention['query'][1]))
    assert float(layer_means) > 0.01  # layers differ


# ---- options that do not change the result ------------------------------------


@lru_cache
def loss_and_gradient(**changes):
    """Loss and gradient of the 'llama' model with other fields."""
    config = helpers.config(**MODELS['llama'])
    for field, value in changes.items():
        (config.train if field in config.train else config.model)[field] = value
    model = settings.resolve(config.model, helpers.VOCAB)
    loss_fn = make_language_loss(model, config.train)
    params = random_params(model)
    both = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, metrics), gradient = both(params, make_batch(), None)
    return (loss, metrics), gradient


@pytest.mark.parametrize(
    'changes',
    [
        dict(remat='full'),
        pytest.param(dict(remat='dots'), marks=pytest.mark.slow),
        pytest.param(dict(remat='block_outputs'), marks=pytest.mark.slow),
        dict(unroll=2),
        dict(loss_chunk=32),
    ],
    ids=str,
)
def test_options_change_neither_loss_nor_gradient(changes):
    expected = loss_and_gradient()
    ours = loss_and_gradient(**changes)
    # Measured: 0; with chunks of the loss 1.2e-7 and 5e-7, as the order of sums
    # differs.
    helpers.assert_close_in_norm(ours[0], expected[0], 1e-6)
    helpers.assert_close_in_norm(ours[1], expected[1], 3e-6)


def test_bfloat16_is_close_and_its_gradient_float32():
    (loss, metrics), _ = loss_and_gradient()
    (rough, rough_metrics), gradient = loss_and_gradient(dtype='bfloat16')
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    # Measured: 4e-4. bfloat16 rounds each activation to 2^-9; sums average it out.
    assert float(rough) == pytest.approx(float(loss), rel=2**-9)
    assert float(rough) != float(loss)
    assert rough_metrics['loss'].dtype == jnp.float32
    assert float(rough_metrics['tokens']) == float(metrics['tokens'])


# ---- dropout ------------------------------------------------------------------


def test_dropout_scales_the_elements_that_it_keeps():
    x = jnp.full((200, 100), 3.0)
    dropped = layers.dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.25, abs=0.01)
    assert float(jnp.mean(dropped)) == pytest.approx(3.0, rel=0.02)
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x
    assert layers.dropout(x, 0.5, None) is x


@pytest.mark.parametrize('place', ['embedding', 'attention', 'residual'])
def test_dropout_is_a_function_of_its_key(place):
    config = helpers.config(**{f'{place}_dropout': 0.3}, num_layers=1)
    model = settings.resolve(config.model, helpers.VOCAB)
    loss_fn = make_language_loss(model, config.train)
    params, batch = random_params(model), make_batch()
    loss = jax.jit(lambda key: loss_fn(params, batch, key)[0])
    one, again, other = (float(loss(jax.random.key(seed))) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    without = float(jax.jit(lambda: loss_fn(params, batch, None)[0])())
    assert without not in (one, other)


def test_without_dropout_the_key_changes_nothing():
    config = helpers.config()
    model = settings.resolve(config.model, helpers.VOCAB)
    loss_fn = make_language_loss(model, config.train)
    params = gpt.abstract_params(model)
    shapes = jax.eval_shape(lambda: make_batch())
    jaxpr = jax.make_jaxpr(loss_fn)(params, shapes, jax.random.key(0))
    assert 'random_bits' not in str(jaxpr)


# ---- noise on the embeddings ---------------------------------------------------


def test_noise_of_a_segment_has_the_size_of_neftune():
    segments = np.repeat([[1, 2, 0]], [9, 81, 10], axis=1)
    x = jnp.ones((1, 100, 64))
    noise = layers.add_embedding_noise(x, segments, 6.0, jax.random.key(0)) - x
    for span, length in ((slice(0, 9), 9), (slice(9, 90), 81)):
        bound = 6.0 / math.sqrt(length * 64)
        drawn = np.asarray(noise[0, span])
        assert 0.98 * bound < np.abs(drawn).max() <= bound * (1 + 1e-5)
        assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(drawn.mean()) < 0.1 * bound
    assert not noise[0, 90:].any()  # padding
