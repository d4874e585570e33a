"""Generation equals the full forward, step by step, and row by row."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.errors import UserError
from gptjax.infer.generate import ENDED, generate
from gptjax.infer.sampling import Sampling
from gptjax.models import gpt
from gptjax.parallel.sharding import partition_spec
from tests import helpers

CONTEXT = 32
GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9], list(range(20, 33)), [3]]


@pytest.fixture(scope='module')
def model():
    return helpers.model_settings(num_kv_heads=2, windows=(6, 0), context=CONTEXT)


@pytest.fixture(scope='module')
def params(model):
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, gpt.abstract_params(model))


@pytest.fixture(scope='module')
def replies(model, params):
    """A function to the rows that `generate` yields: lists without `ENDED`."""

    def run(prompts, max_tokens, sampling=GREEDY, **options):
        drawn = generate(model, params, prompts, max_tokens, sampling, **options)
        table = np.stack(list(drawn), axis=1)
        rows = [row[row != ENDED].tolist() for row in table]
        for row, kept in zip(table, rows, strict=True):  # nothing follows an end
            assert (row[len(kept) :] == ENDED).all()
        return rows

    return run


@pytest.fixture(scope='module')
def by_full_forward(model, params):
    """Greedy replies from a full forward of the whole text for every token."""

    @jax.jit
    def logits(tokens):
        positions = np.arange(CONTEXT, dtype=np.int32)[None]
        return gpt.bind(model, params)(tokens, np.ones_like(positions), positions)[0]

    def run(prompt, max_tokens):
        text = list(prompt)
        for _ in range(max_tokens):
            padded = np.zeros((1, CONTEXT), np.int32)
            padded[0, : len(text)] = text
            text.append(int(np.argmax(logits(padded)[len(text) - 1])))
        return text[len(prompt) :]

    return run


def test_greedy_replies_equal_the_full_forward(replies, by_full_forward):
    ours = replies(PROMPTS, 10)
    assert ours == [by_full_forward(prompt, 10) for prompt in PROMPTS]
    assert len({*ours[0], *ours[1], *ours[2]}) > 6  # the model is no constant


def test_a_reply_does_not_depend_on_the_batch(replies):
    together = replies(PROMPTS, 10, Sampling(), seeds=[7, 8, 9])
    # The same shape, other neighbours: the row stays what it was, to the bit.
    others = [[40, 41], PROMPTS[1], [50] * 11]
    assert replies(others, 10, Sampling(), seeds=[1, 8, 2])[1] == together[1]
    for prompt, seed, reply in zip(PROMPTS, [7, 8, 9], together, strict=True):
        assert replies([prompt], 10, Sampling(), seeds=[seed]) == [reply]


def test_seeds_make_replies(replies):
    prompt = PROMPTS[0]
    rows = replies([prompt] * 3, 10, Sampling(), seeds=[1, 2, 1])
    assert rows[0] == rows[2] != rows[1]
    assert replies([prompt] * 3, 10, Sampling()) == replies(
        [prompt] * 3, 10, Sampling(), seeds=[0, 1, 2]
    )


def test_a_row_ends_with_its_stop_token(replies):
    free = replies(PROMPTS, 10)
    stop = free[0][3]

    def cut(row):
        return row[: row.index(stop) + 1] if stop in row else row

    assert replies(PROMPTS, 10, stop=stop) == [cut(row) for row in free]
    assert len(cut(free[0])) <= 4


def test_generation_ends_when_every_row_has(model, params, replies):
    reply = replies(PROMPTS[:1], 10)[0]
    rows = list(generate(model, params, PROMPTS[:1], 10, GREEDY, stop=reply[2]))
    assert len(rows) == reply.index(reply[2]) + 1


def test_prompt_and_reply_fill_the_context_exactly(replies, by_full_forward):
    prompts = [[4] * 30, [5] * 31, [6, 7]]
    ours = replies(prompts, 100)
    # A short row goes on after a long one has no place left.
    assert [len(row) for row in ours] == [2, 1, 30]
    assert ours == [
        by_full_forward(p, n) for p, n in zip(prompts, (2, 1, 30), strict=True)
    ]


def test_at_most_max_tokens(replies):
    assert [len(row) for row in replies(PROMPTS, 1)] == [1, 1, 1]


@pytest.mark.parametrize(
    'prompts, told',
    [
        ([[1], []], 'a prompt has no tokens: begin it with BOS'),
        (
            [[1] * 32],
            'the prompt has 32 tokens and model.context=32 .* shorten it to 31',
        ),
    ],
)
def test_prompts_that_cannot_be_gone_on_from(replies, prompts, told):
    with pytest.raises(UserError, match=told):
        replies(prompts, 4)


# Two key heads divide by 2; by 4 they stay whole on every device.
@pytest.mark.parametrize('tensor', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_model_split_over_devices_says_the_same(model, params, replies, tensor):
    alone = replies(PROMPTS, 6)
    mesh = helpers.mesh_of(tensor=tensor)
    with jax.set_mesh(mesh):

        def place(leaf, axes):
            return jax.device_put(leaf, sharding_of(leaf, axes, mesh))

        split = jax.tree.map(place, params, gpt.param_axes(model))
        up = split['layers']['mlp']['up']
        assert up.addressable_shards[0].data.size == up.size // tensor
        rows = np.stack(list(generate(model, split, PROMPTS, 6, GREEDY)), axis=1)
    assert rows.tolist() == alone


def sharding_of(leaf, axes, mesh):
    return NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh))
