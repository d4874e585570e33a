"""Rollouts: their rows, their seeds, and the engine that generates them."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.infer.model_runner import count_compilations
from gptjax.infer.request import Reply, Token
from gptjax.models import settings
from gptjax.parallel.sharding import replicated
from gptjax.post import rollout
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.train import init_from
from tests import helpers
from tests.post import starts


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
    """A model with random weights, a task and a sampler."""
    path = tmp_path_factory.mktemp('rollout')
    starts.write_start(path)
    config = init_from.inherit_config(starts.config(path, 'grpo'), path / 'run')
    trained = init_from.load_start(config, helpers.mesh_of())
    prompt_format = rollout.make_prompt_format(config, 'policy', trained.tokenizer)
    task = make_task(config.task, 0, prompt_format.fits)
    return SimpleNamespace(
        config=config,
        trained=trained,
        prompt_format=prompt_format,
        task=task,
        sampler=make_sampler(trained),
    )


def make_sampler(trained, slots=8, **options):
    return rollout.Sampler(*trained[:3], slots=slots, **options)


def with_settings(setup, **changes):
    """The model with other settings."""
    model = setup.config.model.copy_and_resolve_references()
    model.update(changes)
    resolved = settings.resolve(model, setup.trained.tokenizer.vocab_size)
    return setup.trained._replace(settings=resolved)


def draw(setup, seed=0, step=0, sampler=None):
    problems = [setup.task.train(index) for index in range(4)]
    complete = (sampler or setup.sampler).complete
    return rollout.draw_rollout(complete, setup.prompt_format, problems, 4, seed, step)


# ---- the rows


def test_a_row_has_prompt_reply_and_stop_token(setup):
    trained, prompt_format = setup.trained, setup.prompt_format
    problem = setup.task.train(0)
    prompt = prompt_format.prompt(problem.messages)
    end = trained.tokenizer.specials['<|end|>']
    said = Token(70, -1.0), Token(71, -2.0)
    stopped = Reply('ab', said, None, 'stop', end, Token(end, -0.5))
    cut = Reply('a', (Token(70, -1.0),), None, 'length', None, None)
    rows = rollout.build_rollout(
        prompt_format, [problem] * 2, [prompt] * 2, [stopped, cut]
    )

    P = len(prompt)
    # The stop token belongs to the reply; padding does not.
    for weights_T, length in zip(rows.batch['weights'], (3, 1), strict=True):
        expected_T = (np.arange(32) >= P - 1) & (np.arange(32) < P - 1 + length)
        np.testing.assert_array_equal(weights_T, expected_T)
    first, second = rows.batch['targets']
    assert first[: P + 2].tolist() == [*prompt[1:], 70, 71, end]
    assert rows.batch['inputs'][0, : P + 2].tolist() == [*prompt, 70, 71]
    assert second[:P].tolist() == [*prompt[1:], 70]
    assert set(first[P + 2 :]) == set(second[P:]) == {prompt_format.tokenizer.pad_id}
    assert rows.batch['segments'][0].tolist() == [1] * (P + 2) + [0] * (30 - P)
    assert rows.sampled_BT[0, P - 1 : P + 2].tolist() == [-1, -2, -0.5]
    assert rows.lengths_B.tolist() == [3, 1]
    assert rows.truncated_B.tolist() == [False, True]


def test_a_row_is_that_of_fine_tuning_on_the_same_messages(setup):
    trained, prompt_format = setup.trained, setup.prompt_format
    problem = setup.task.train(1)
    messages = [*problem.messages, dict(role='assistant', content=problem.answer)]
    tokens, learnt = chat_template.encode_conversation(
        messages, trained.tokenizer, 'turns'
    )
    prompt = prompt_format.prompt(problem.messages)
    reply = [Token(token, -1.0) for token in tokens[len(prompt) :]]
    said = Reply(problem.answer, tuple(reply[:-1]), None, 'stop', None, reply[-1])
    batch = rollout.build_rollout(prompt_format, [problem], [prompt], [said]).batch
    length = len(tokens) - 1
    assert batch['targets'][0, :length].tolist() == tokens[1:]
    assert batch['weights'][0, :length].tolist() == learnt[1:]


# ---- generating replies


def test_a_rollout_depends_on_seed_and_step(setup):
    first, again = draw(setup), draw(setup)
    for name, array in first.batch.items():
        np.testing.assert_array_equal(array, again.batch[name])
    assert first.replies == again.replies
    assert len(set(first.replies[:4])) > 1  # each reply has its own seed
    for other in (draw(setup, seed=1), draw(setup, step=1)):
        assert other.replies != first.replies


@pytest.mark.parametrize('longest, cache', ((64, 64), (4096, 4096), (131_072, 128)))
def test_the_cache_of_a_long_model_holds_a_row(setup, monkeypatch, longest, cache):
    monkeypatch.setattr(rollout, 'Sampler', lambda *_, **options: options)
    trained = with_settings(setup, context=longest)
    options = rollout.make_sampler(trained, setup.config.policy, 48)
    assert options['context'] == cache


@pytest.mark.slow
def test_a_rollout_does_not_depend_on_the_slots(setup):
    one, other = draw(setup), draw(setup, sampler=make_sampler(setup.trained, slots=3))
    np.testing.assert_array_equal(one.batch['targets'], other.batch['targets'])
    # Another batch size compiles another program, which may round differently.
    np.testing.assert_allclose(one.sampled_BT, other.sampled_BT, atol=2e-5)


def on_devices(trained, devices):
    """The model on a training mesh of so many devices."""
    everywhere = replicated(helpers.mesh_of(data=devices))
    return trained._replace(params=jax.device_put(trained.params, everywhere))


@pytest.mark.parametrize('devices', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_rollout_does_not_depend_on_the_devices_and_uses_all(setup, devices):
    one, sampler = draw(setup), make_sampler(on_devices(setup.trained, devices))
    many = draw(setup, sampler=sampler)
    np.testing.assert_array_equal(one.batch['targets'], many.batch['targets'])
    np.testing.assert_array_equal(one.sampled_BT, many.sampled_BT)
    drawn = [engine.stats().reply_tokens for engine in sampler._engines]
    assert len(drawn) == devices and min(drawn) > 0
    assert sum(drawn) == one.lengths_B.sum()
    sampler.close()


def test_a_bfloat16_model_rolls_out_with_bfloat16_weights(setup):
    trained = with_settings(setup, dtype='bfloat16')
    sampler = make_sampler(trained)
    sampler.update_weights(trained.params, 'first')
    [engine] = sampler._engines
    weights = jax.tree_util.tree_leaves_with_path(engine._runner._params)
    for path, weight in weights:
        small = path[-1].key in ('scale', 'bias')
        assert weight.dtype == ('float32' if small else 'bfloat16'), path
    rows = draw(setup, sampler=sampler)
    logprobs_BT, _ = token_logprobs(trained.settings, trained.params, rows.batch)
    gap_BT = np.abs(rows.sampled_BT - logprobs_BT) * rows.batch['weights']
    assert 0 < gap_BT.max() < 0.05


@pytest.mark.parametrize('tensor', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_samplers_logprobs_are_those_of_training(setup, tensor):
    trained, sampler = setup.trained, setup.sampler
    if tensor > 1:  # two engines
        sampler = make_sampler(on_devices(trained, 4), tensor=tensor)
    rows = draw(setup, sampler=sampler)
    logprobs_BT, _ = token_logprobs(trained.settings, trained.params, rows.batch)
    mask_BT = rows.batch['weights'] > 0
    np.testing.assert_allclose(
        rows.sampled_BT[mask_BT], np.asarray(logprobs_BT)[mask_BT], atol=2e-5
    )
    assert rows.sampled_BT[~mask_BT].tolist() == [0.0] * int((~mask_BT).sum())


def test_a_rollout_has_no_dropout(setup):
    rates = dict(residual_dropout=0.5, attention_dropout=0.5, embedding_dropout=0.5)
    sampler = make_sampler(with_settings(setup, **rates))
    one, other = draw(setup), draw(setup, sampler=sampler)
    np.testing.assert_array_equal(one.batch['targets'], other.batch['targets'])


def test_a_reply_is_judged_with_its_special_tokens(setup):
    special = setup.trained.tokenizer.specials['<|user|>']
    complete = lambda prompts, parameters: setup.sampler.complete(
        prompts, [replace(each, logit_bias={special: 1e3}) for each in parameters]
    )
    problem = setup.task.train(0)
    for replies in (
        rollout.draw_rollout(complete, setup.prompt_format, [problem], 1, 0, 0).replies,
        [
            reply.text
            for reply in rollout.generate_replies(
                complete, setup.prompt_format, [problem], 0.0, 0
            )
        ],
    ):
        assert replies == ['<|user|>' * setup.prompt_format.max_tokens]
    assert setup.task.score(problem, problem.answer) == 1
    assert setup.task.score(problem, problem.answer + '<|user|>') == 0


@pytest.mark.slow
def test_new_weights_compile_nothing_and_clear_the_prefix_cache(setup):
    trained, prompt_format = setup.trained, setup.prompt_format
    messages = setup.task.train(0).messages
    prompt = prompt_format.prompt(messages) * 2  # longer than a chunk
    greedy = rollout.sampling_parameters(prompt_format, temperature=0.0)
    other = jax.tree.map(lambda leaf: leaf * 1.5, trained.params)
    sampler = make_sampler(trained)
    fresh = make_sampler(trained._replace(params=other))
    before = sampler.complete([prompt], [greedy])[0]
    sampler.update_weights(other, 'other')
    sampler.update_weights(trained.params, 'first')
    assert sampler.complete([prompt], [greedy])[0] == before
    count = count_compilations()
    sampler.update_weights(other, 'other')
    after = sampler.complete([prompt], [greedy])[0]
    assert count_compilations() == count
    assert after == fresh.complete([prompt], [greedy])[0] != before
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), trained.params)
    with pytest.raises(ValueError, match='shape, dtype or sharding'):
        sampler.update_weights(half, 'half')


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('policy.max_tokens', 32, 'policy.max_tokens=32: .*data.context=32'),
        ('chat.template', 'text', 'chat.template=text: replies need a stop token'),
    ],
)
def test_a_prompt_format_that_cannot_be_is_refused(setup, field, value, message):
    config = setup.config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        rollout.make_prompt_format(config, 'policy', setup.trained.tokenizer)


def test_a_model_with_more_positions_gets_the_advice_to_use_them(setup):
    config = setup.config.copy_and_resolve_references()
    make = lambda: rollout.make_prompt_format(config, 'policy', None)
    advice = 'or a larger data.context, up to 64'
    config.model.context = config.data.context
    assert advice not in make().room_advice
    config.model.context = 64
    assert make().room_advice.endswith(advice)
    config.policy.max_tokens = config.data.context
    with pytest.raises(UserError, match=f'{advice}$'):
        make()
