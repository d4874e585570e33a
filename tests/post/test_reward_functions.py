"""Rewards: always float32, mixed by weight, with an error for bad values."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.data.comparisons import EncodedConversation
from gptjax.infer.request import Reply, Token
from gptjax.post import reward_functions, reward_model
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.rollout import PromptFormat, build_rollout
from tests import helpers
from tests.post import starts

PROBLEMS = [
    Problem(str(n), (dict(role='user', content=f'{n}?'),), str(n)) for n in range(4)
]
REPLIES = ['0', '1', 'two words', '3.0']
VERIFIER = lambda problem, reply: {'0': 1.0, '1': 0.7}.get(reply, 0.0)


def make_reward(verifier=VERIFIER, **parts):
    task = Task(None, None, None, None, verifier)
    return reward_functions.make_reward(ConfigDict(dict(rewards=parts)), task)


def whole_numbers(problems, replies):
    return np.arange(len(problems))  # int64


def by_length(problems, replies):
    return np.array([len(reply) for reply in replies], np.float64)


def one_too_few(problems, replies):
    return [0.0] * (len(problems) - 1)


def nan_at_two(problems, replies):
    return [float('nan') if 'two' in reply else 1.0 for reply in replies]


def raises_at_two(problems, replies):
    if any('two' in reply for reply in replies):
        raise KeyError('two')
    return [1.0] * len(problems)


def named(function):
    return common.reward_part(f'{__name__}.{function.__name__}')


def test_a_reward_counts_for_answered_or_for_open_problems():
    problems = [*PROBLEMS[:2], PROBLEMS[2]._replace(answer=''), PROBLEMS[3]]
    name = f'{__name__}.{by_length.__name__}'
    reward = make_reward(
        right=common.reward_part('score', on='answered'),
        long=common.reward_part(name, weight=2.0, on='open'),
    )
    lengths = [2.0 * len(reply) for reply in REPLIES]
    np.testing.assert_array_equal(
        reward(problems, REPLIES), np.float32([1, 0.7, lengths[2], 0])
    )
    everywhere = make_reward(long=common.reward_part(name, weight=2.0))
    np.testing.assert_array_equal(everywhere(problems, REPLIES), np.float32(lengths))


def test_rewards_of_older_configs_count_for_all_and_keep_their_hash():
    new = common.reward_part('score')
    old = ConfigDict({key: value for key, value in new.items() if key != 'on'})
    np.testing.assert_array_equal(
        make_reward(a=old)(PROBLEMS, REPLIES), make_reward(a=new)(PROBLEMS, REPLIES)
    )
    hashes = {
        reward_functions.rewards_fingerprint(ConfigDict(dict(rewards=dict(a=part))))
        for part in (old, new)
    }
    assert len(hashes) == 1
    part = common.reward_part('score', on='answered')
    other = ConfigDict(dict(rewards=dict(a=part)))
    assert reward_functions.rewards_fingerprint(other) not in hashes


def test_correct_is_whole_and_score_has_parts():
    for name, expected in dict(correct=[1, 0, 0, 0], score=[1, 0.7, 0, 0]).items():
        rewards = make_reward(a=common.reward_part(name))(PROBLEMS, REPLIES)
        np.testing.assert_array_equal(rewards, np.float32(expected))


def test_a_mixture_is_the_weighted_sum_in_float32():
    rewards = make_reward(
        score=common.reward_part('score', weight=2.0),
        place=dict(named(whole_numbers), weight=-0.5),
        length=dict(named(by_length), weight=0.25),
    )(PROBLEMS, REPLIES)
    assert rewards.dtype == np.float32
    expected = np.array([2, 1.4 - 0.5, -1, -1.5]) + 0.25 * np.array([1, 1, 9, 3])
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)  # rounding of float32


@pytest.mark.parametrize(
    ('function', 'message'),
    (
        (one_too_few, r'task.rewards.mine returned the shape \(3,\) for 4 replies'),
        (nan_at_two, "task.rewards.mine returned nan for the reply 'two words' to 2"),
        (raises_at_two, r'task.rewards.mine raised KeyError.* to 2 \(the reply .two'),
    ),
)
def test_a_function_that_fails_is_named(function, message):
    reward = make_reward(mine=named(function))
    with pytest.raises(UserError, match=message):
        reward(PROBLEMS, REPLIES)


def test_a_verifier_that_fails_is_one_clear_error():
    verifier = reward_functions.verifier_reward(
        lambda problem, reply: float('nan' if problem.id == '2' else 1)
    )
    with pytest.raises(
        UserError, match="verifier returned nan for .* 'two words' to 2"
    ):
        verifier(PROBLEMS, REPLIES)
    correct = make_reward(lambda *_: 1 / 0, a=common.reward_part('correct'))
    with pytest.raises(UserError, match='the verifier raised ZeroDivisionError'):
        correct(PROBLEMS, REPLIES)


def test_functions_that_do_not_exist():
    for name in ('wrong', 'gptjax.post.reward_functions.nothing', 'no.such.module'):
        with pytest.raises(UserError, match=f'task.rewards.mine.function={name}'):
            make_reward(mine=common.reward_part(name))
    with pytest.raises(UserError, match='task.rewards is empty'):
        make_reward()


@pytest.mark.parametrize('name', ('correct', 'score'))
def test_a_verifier_needs_answers(name):
    with pytest.raises(UserError, match=f'{name} needs answers.*ppo.py:reward=RUN'):
        make_reward(None, a=common.reward_part(name))


def test_a_reward_model_reads_the_tokens_of_a_rollout(tmp_path):
    """A whole reply with its stop token; a truncated one as it was cut, without one."""
    starts.write_start(tmp_path)
    run, mesh = starts.write_reward(tmp_path), helpers.mesh_of()
    trained = reward_model.load_reward_model(run_dir.read_config(run), run, mesh)
    tokenizer = trained.tokenizer
    prompt_format = PromptFormat(tokenizer, 'turns', 32, 6, 1.0)
    end = Token(tokenizer.specials['<|end|>'], -1.0)
    said = tuple(Token(token, -1.0) for token in tokenizer.encode('2 + 1'))
    drawn = build_rollout(
        prompt_format,
        [PROBLEMS[0]] * 2,
        [prompt_format.prompt(PROBLEMS[0].messages)] * 2,
        [
            Reply('2 + 1', said, None, 'length', None, None),
            Reply('2 + 1', said, None, 'stop', end.id, end),
        ],
    )
    rows = []
    for row, length in enumerate(drawn.batch['segments'].sum(axis=1)):
        first, targets_T = drawn.batch['inputs'][row, 0], drawn.batch['targets'][row]
        rows.append(EncodedConversation(np.append(first, targets_T[:length]), 0, False))
    assert [row.tokens[-1] == end.id for row in rows] == [False, True]
    scorer = reward_model.make_reward_scorer(trained.settings, tokenizer, 32, mesh)
    expected = scorer(trained.params, rows) - reward_model.read_center(run)
    reward = make_reward(model=common.reward_part('model', run=str(run)))
    rewards = reward(drawn.problems, drawn.replies)
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)
    assert drawn.replies == ['2 + 1'] * 2 and abs(rewards[0] - rewards[1]) > 0.01
    # A text that does not say is a whole reply.
    np.testing.assert_allclose(reward([PROBLEMS[0]], ['2 + 1']), rewards[1:], 1e-5)
