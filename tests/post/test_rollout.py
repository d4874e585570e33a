"""Rollouts: functions of weights, seed and step, on what is trained."""

import jax
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.infer.model_runner import count_compilations
from gptjax.infer.request import Reply, Token
from gptjax.post import rollout
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.train import init_from
from tests import helpers
from tests.post import starts


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """(config, trained, prompt format, task, sampler), from random weights."""
    path = tmp_path_factory.mktemp('rollout')
    starts.write_start(path)
    config = init_from.inherit_config(starts.config(path, 'grpo'), path / 'run')
    trained = init_from.load_start(config, helpers.mesh_of())
    prompt_format = rollout.make_prompt_format(config, 'policy', trained.tokenizer)
    task = make_task(config.task, 0, prompt_format.fits)
    sampler = rollout.Sampler(
        trained.settings, trained.params, trained.tokenizer, slots=8
    )
    return config, trained, prompt_format, task, sampler


def drawn(begun, seed=0, step=0, complete=None):
    *_, prompt_format, task, sampler = begun
    problems = [task.train(index) for index in range(4)]
    return rollout.draw_rollout(
        complete or sampler.complete, prompt_format, problems, 4, seed, step
    )


# ---- the rows


def test_a_row_has_prompt_reply_and_stop_token(begun):
    _, trained, prompt_format, task, _ = begun
    problem = task.train(0)
    prompt = prompt_format.prompt(problem.messages)
    end = trained.tokenizer.specials['<|end|>']
    said = Token(70, -1.0), Token(71, -2.0)
    stopped = Reply('ab', said, None, 'stop', end, Token(end, -0.5))
    cut = Reply('a', (Token(70, -1.0),), None, 'length', None, None)
    rows = rollout.build_rollout(
        prompt_format, [problem] * 2, [prompt] * 2, [stopped, cut]
    )

    P = len(prompt)
    # The token that ends a reply is part of it; padding is not.
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


def test_a_prompt_and_a_right_reply_are_the_row_that_fine_tuning_has(begun):
    _, trained, prompt_format, task, _ = begun
    problem = task.train(1)
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


# ---- what is drawn


def test_a_rollout_is_a_function_of_seed_and_step(begun):
    first = drawn(begun)
    again = drawn(begun)
    for name, array in first.batch.items():
        np.testing.assert_array_equal(array, again.batch[name])
    assert first.replies == again.replies
    assert len(set(first.replies[:4])) > 1  # each reply has a seed of its own
    for other in (drawn(begun, seed=1), drawn(begun, step=1)):
        assert other.replies != first.replies


@pytest.mark.slow
def test_how_many_are_drawn_at_once_changes_nothing(begun):
    _, trained, *_ = begun
    few = rollout.Sampler(trained.settings, trained.params, trained.tokenizer, slots=3)
    one, other = drawn(begun), drawn(begun, complete=few.complete)
    np.testing.assert_array_equal(one.batch['targets'], other.batch['targets'])
    # Another batch size is another program: the sums may be rounded otherwise.
    np.testing.assert_allclose(one.sampled_BT, other.sampled_BT, atol=2e-5)


@pytest.mark.parametrize('tensor', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_samplers_logprobs_are_the_trainers(begun, tensor):
    _, trained, *_ = begun
    sampler = rollout.Sampler(
        trained.settings, trained.params, trained.tokenizer, slots=8, tensor=tensor
    )
    rows = drawn(begun, complete=sampler.complete)
    logprobs_BT, _ = token_logprobs(trained.settings, trained.params, rows.batch)
    mask_BT = rows.batch['weights'] > 0
    np.testing.assert_allclose(
        rows.sampled_BT[mask_BT], np.asarray(logprobs_BT)[mask_BT], atol=2e-5
    )
    assert rows.sampled_BT[~mask_BT].tolist() == [0.0] * int((~mask_BT).sum())


def test_dropout_does_not_reach_a_rollout(begun):
    config, trained, *_ = begun
    model = config.model.copy_and_resolve_references()
    model.update(residual_dropout=0.5, attention_dropout=0.5, embedding_dropout=0.5)
    from gptjax.models import settings

    dropping = settings.resolve(model, trained.tokenizer.vocab_size)
    sampler = rollout.Sampler(dropping, trained.params, trained.tokenizer, slots=8)
    one, other = drawn(begun), drawn(begun, complete=sampler.complete)
    np.testing.assert_array_equal(one.batch['targets'], other.batch['targets'])


# ---- new weights


@pytest.mark.slow
def test_new_weights_compile_nothing_and_forget_what_was_read(begun):
    _, trained, prompt_format, task, _ = begun
    prompt = prompt_format.prompt(task.train(0).messages) * 2  # longer than a chunk
    make = lambda params: rollout.Sampler(
        trained.settings, params, trained.tokenizer, slots=8
    )
    other = jax.tree.map(lambda leaf: leaf * 1.5, trained.params)
    greedy = rollout.sampling_parameters(prompt_format, temperature=0.0)
    sampler, fresh = make(trained.params), make(other)
    before = sampler.complete([prompt], [greedy])[0]
    sampler.update_weights(other, 'other')
    sampler.update_weights(trained.params, 'first')
    assert sampler.complete([prompt], [greedy])[0] == before
    count = count_compilations()
    sampler.update_weights(other, 'other')
    found = sampler.complete([prompt], [greedy])[0]
    assert count_compilations() == count
    assert found == fresh.complete([prompt], [greedy])[0] != before


@pytest.mark.slow
def test_weights_of_another_shape_are_refused(begun):
    _, trained, *_ = begun
    sampler = rollout.Sampler(
        trained.settings, trained.params, trained.tokenizer, slots=2
    )
    wider = jax.tree.map(lambda leaf: leaf.astype(np.float16), trained.params)
    with pytest.raises(ValueError, match='shape, dtype or sharding'):
        sampler.update_weights(wider, 'half')


# ---- refusals


def test_no_reply_is_longer_than_the_context(begun):
    config, trained, *_ = begun
    config = config.copy_and_resolve_references()
    config.policy.max_tokens = 32
    with pytest.raises(UserError, match='policy.max_tokens=32: .*data.context=32'):
        rollout.make_prompt_format(config, 'policy', trained.tokenizer)


def test_a_template_without_a_stop_token_is_refused(begun):
    config, trained, *_ = begun
    config = config.copy_and_resolve_references()
    config.chat.template = 'text'
    with pytest.raises(UserError, match='chat.template=text'):
        rollout.make_prompt_format(config, 'policy', trained.tokenizer)
