"""Updates of a stage as its config builds them, and their gradients by plain NumPy.

`capture` calls a stage's own function up to `fit`. `start` then does what `fit` would
do, and keeps the parameters, the batch and the gradient of each optimizer step. Before
each step the parameters are moved, so that they differ from those of the rollout.

The expected gradient needs only the model's forward pass: `Forward` gives what a loss
is made of (log-probabilities, entropies, values), the test writes the loss from the
paper's equation in NumPy, `Forward.gradient` differentiates it by differences, and
pulls the result back to the parameters.
"""

import contextlib
import itertools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common
from gptjax.models import gpt, settings
from gptjax.train.load_model import Trained
from gptjax.train.loop import Setup
from gptjax.train.state import abstract_state, new_state
from gptjax.train.step import make_train_step
from tests import helpers

T, VOCAB = 16, 24
ROLES = ('<|system|>', '<|user|>', '<|end|>', '<|assistant|>')
TOKENIZER = SimpleNamespace(
    pad_id=0,
    bos_id=1,
    eos_id=2,
    eos_ids=[2],
    start_ids=[1],
    chat_template=None,
    specials={name: number for number, name in enumerate(ROLES, 3)},
    encode_batch=lambda texts: [[7 + ord(c) % (VOCAB - 7) for c in t] for t in texts],
    fingerprint='of the tokenizer',
    vocab_size=VOCAB,
)
END = TOKENIZER.specials['<|end|>']


def make_config(**sections):
    """A config of a tiny model with dropout; `sections` are their changed fields."""
    config = common.base()
    config.seed, config.data.context, config.chat.template = 5, T, 'turns'
    config.model.update(num_layers=2, width=16, num_heads=2, context=T, mlp_width=32)
    config.model.update(unroll=2, qk_norm=False)  # compiles in half the time
    config.model.update(init_std=0.4, embedding_std=0.7, embedding_dropout=0.1)
    config.model.update(attention_dropout=0.2, residual_dropout=0.3)
    config.tokenizer.vocab_size, config.mesh.data = VOCAB, 1
    config.start = common.start_section('')
    for name, fields in sections.items():
        if name not in config:
            config[name] = getattr(common, f'{name}_section')()
        config[name].update(fields)
    return config


SETTINGS = settings.resolve(make_config().model, VOCAB)


def moved(params, seed: int, scale=0.15):
    """The parameters plus noise: NumPy arrays."""
    rng = np.random.default_rng(seed)
    noise = lambda x: np.float32(np.asarray(x) + scale * rng.normal(size=x.shape))
    return jax.tree.map(noise, params)


TRAINED = Trained(
    SETTINGS, moved(gpt.init_params(SETTINGS, jax.random.key(0)), 1), TOKENIZER, 0
)


# ---- the stage


class Captured(Exception):
    """Raised in place of `fit`, with its config and stage."""


def capture(monkeypatch, module, train, config, workdir, **patches):
    """(config, stage) that `train(config, workdir)` passes to `fit` of its module."""

    def stop(config, workdir, stage):
        raise Captured(config, stage)

    one_device = lambda section: helpers.mesh_of()
    for name, value in dict(patches, make_mesh=one_device, fit=stop).items():
        monkeypatch.setattr(module, name, value)
    try:
        train(config, workdir)
    except Captured as captured:
        return captured.args
    raise AssertionError('the stage does not call fit')


class Step(NamedTuple):
    """An optimizer step; `arguments` follow the batch."""

    params: dict
    batch: dict
    arguments: tuple
    gradient: dict
    metrics: dict


def keep_gradient():
    """An optimizer that leaves parameters alone; its state is the last gradient."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    return optax.GradientTransformation(
        lambda params: (zeros(params),), lambda g, state, params: (zeros(g), (g,))
    )


def start(config, stage, params):
    """(state, `Training`, the list that optimizer steps are appended to)."""
    optimizer, steps = keep_gradient(), []
    abstract = abstract_state(stage.shapes, optimizer, stage.axes, stage.mesh)
    step = make_train_step(
        stage.loss_fn, optimizer, abstract, config.train.accumulation, config.seed
    )

    def recorded(state, batch, *arguments):
        before = moved(host(state.params), len(steps), 0.05)
        state = place(state._replace(params=before))
        state, metrics = step(state, batch, *arguments)
        gradient = host(state.opt_state[0])
        steps.append(Step(before, host(batch), arguments, gradient, host(metrics)))
        return state, metrics

    place = lambda state: jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), state, abstract
    )
    state = place(new_state(params, optimizer))
    setup = Setup(state, optimizer, abstract, recorded, contextlib.ExitStack())
    return state, stage.make_training(setup), steps


def model_of(params):
    """The parameters without critic and heads."""
    others = ('critic', 'value_head', 'reward_head')
    return {name: tree for name, tree in params.items() if name not in others}


def host(tree):
    """Copies of arrays that may be donated later."""
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


# ---- NumPy


class Forward:
    """The model's forward pass, without anything of the stages.

    rows: number of rows that are computed at a time, so that one shape is compiled.
    whole: (parameters, *frozen) -> the parameters of the model.
    """

    def __init__(self, rows, settings=SETTINGS, whole=lambda params: params):
        def compute(params, batch, temperature, key, *frozen):
            model = gpt.bind(settings, whole(model_of(params), *frozen))
            arrays = batch['inputs'], batch['segments'], batch['positions']
            hidden = model.hidden(*arrays, key)
            shape = *arrays[0].shape, -1
            logits = model.logits(hidden).reshape(shape) / temperature
            logprobs = jax.nn.log_softmax(logits)
            targets = batch['targets'][..., None]
            found = dict(
                logprob=jnp.take_along_axis(logprobs, targets, axis=-1)[..., 0],
                entropy=-jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1),
                mean=jnp.mean(logprobs, axis=-1),
                log_partition=jax.nn.logsumexp(logits, axis=-1),
            )
            if head := params.get('value_head', params.get('reward_head')):
                if 'critic' in params:
                    hidden = gpt.bind(settings, params['critic']).hidden(*arrays)
                found['value'] = hidden.reshape(shape) @ head['kernel'] + head['bias']
            return found

        def both(params, batch, temperature, key, slopes, *frozen):
            found, pull = jax.vjp(
                lambda params: compute(params, batch, temperature, key, *frozen), params
            )
            return found, pull({name: slopes[name] for name in found})[0]

        self._both, self._rows = jax.jit(both), rows

    def __call__(self, params, batch, *frozen, **options):
        """{name: float64 (B, T)}."""
        return self._run(params, batch, {}, *frozen, **options)[0]

    def gradient(self, params, batch, loss, *frozen, **options):
        """The gradient of the NumPy function `loss({name: (B, T)})`."""
        found = self(params, batch, *frozen, **options)
        slopes = {name: slope(loss, found, name) for name in found}
        return self._run(params, batch, slopes, *frozen, **options)[1]

    def _run(self, params, batch, slopes, *frozen, temperature=1.0, key=None):
        arrays = ('inputs', 'targets', 'segments', 'positions')
        names = ('logprob', 'entropy', 'mean', 'log_partition', 'value')
        B, parts = len(batch['inputs']), []
        zeros = np.zeros(batch['inputs'].shape)
        for first in range(0, B, self._rows):
            chosen = slice(first, first + self._rows)
            tokens = {name: np.asarray(batch[name])[chosen] for name in arrays}
            given = {n: np.float32(slopes.get(n, zeros)[chosen]) for n in names}
            parts.append(self._both(params, tokens, temperature, key, given, *frozen))
        parts = host(parts)
        found = {
            name: np.float64(np.concatenate([part[0][name] for part in parts]))
            for name in parts[0][0]
        }
        add = lambda *gradients: sum(gradients)
        return found, jax.tree.map(add, *(part[1] for part in parts))


def slope(loss, found, name, epsilon=1e-5):
    """d loss / d found[name], by central differences in float64.

    First of whole rows and columns: most have no effect.
    """
    x, result = found[name], np.zeros_like(found[name])

    def value_at(place, change):
        changed = x.copy()
        changed[place] += change
        return loss({**found, name: changed})

    noise = np.random.default_rng(0).normal(size=x.shape)
    used = lambda place: value_at(place, noise[place]) != value_at(place, 0)
    rows = [row for row in range(x.shape[0]) if used(row)] if used(...) else []
    columns = [column for column in range(x.shape[1]) if rows and used((..., column))]
    for place in itertools.product(rows, columns):
        difference = value_at(place, epsilon) - value_at(place, -epsilon)
        result[place] = difference / (2 * epsilon)
    return result


def assert_gradient(found, expected, bound=2e-4):
    """Each leaf's error is small beside the leaf, or beside the whole gradient."""
    whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))

    def check(path, a, b):
        error, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert error <= bound * size + 1e-6 * whole, (
            f'{jax.tree_util.keystr(path)}: error {error:.3g}, size {size:.3g}'
        )

    jax.tree_util.tree_map_with_path(check, found, expected)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def zeros_like(tree):
    return jax.tree.map(np.zeros_like, tree)


def text_rows(seed, rows):
    """A packed batch of random text, as `helpers.packed_batch`, of VOCAB tokens."""
    batch = helpers.packed_batch(seed, batch=rows, context=T, documents=2)
    drawn = {name: 7 + batch[name] % (VOCAB - 7) for name in ('inputs', 'targets')}
    rng = np.random.default_rng(seed)
    weights = batch['weights'] * (rng.random(batch['weights'].shape) < 0.8)
    return {**batch, **drawn, 'weights': np.float32(weights)}


def language_loss(found, weights, train):
    """The mean of the smoothed cross-entropy and z-loss over tokens with weight."""
    share = train.label_smoothing
    loss = -(1 - share) * found['logprob'] - share * found['mean']
    loss = loss + train.z_loss * found['log_partition'] ** 2
    return np.sum(weights * loss) / np.sum(weights)


def adapt(params, base, scale):
    """LoRA: W + scale A B, where `params` has A and B."""
    if 'a' in params:
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))
        return base + scale * product(params['a'], params['b'])
    return {
        name: adapt(params[name], tree, scale) if name in params else tree
        for name, tree in base.items()
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
