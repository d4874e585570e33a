"""Rewards: float32 whatever a function gives, mixed by weight, and never silent."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from gptjax.core.console import UserError
from gptjax.post import reward_functions
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task

ITEMS = [
    Problem(str(n), (dict(role='user', content=f'{n}?'),), str(n)) for n in range(4)
]
REPLIES = ['0', '1', 'two words', '3.0']


def task(score=lambda problem, reply: {'0': 1.0, '1': 0.7}.get(reply, 0.0)):
    return Task(None, None, None, None, score)


def section(**parts):
    return ConfigDict(dict(rewards=parts))


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


def test_correct_is_whole_and_score_has_parts():
    correct = reward_functions.make_reward(
        section(a=common.reward_part('correct')), task()
    )
    score = reward_functions.make_reward(section(a=common.reward_part('score')), task())
    assert correct(ITEMS, REPLIES).tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(score(ITEMS, REPLIES), np.float32([1, 0.7, 0, 0]))


def test_a_mixture_is_the_weighted_sum_in_float32():
    parts = dict(
        score=common.reward_part('score', weight=2.0),
        place=dict(named(whole_numbers), weight=-0.5),
        length=dict(named(by_length), weight=0.25),
    )
    found = reward_functions.make_reward(section(**parts), task())(ITEMS, REPLIES)
    assert found.dtype == np.float32
    expected = np.array([2, 1.4 - 0.5, -1, -1.5]) + 0.25 * np.array([1, 1, 9, 3])
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # rounding of float32


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (one_too_few, r'task.rewards.mine gave the shape \(3,\) for 4 replies'),
        (nan_at_two, "task.rewards.mine gave nan for the reply 'two words' to 2"),
        (raises_at_two, r'task.rewards.mine raised KeyError.* to 2 \(the reply .two'),
    ],
)
def test_what_is_no_reward_is_an_error_that_names_it(function, message):
    reward = reward_functions.make_reward(section(mine=named(function)), task())
    with pytest.raises(UserError, match=message):
        reward(ITEMS, REPLIES)


def test_functions_that_do_not_exist():
    for name in ('wrong', 'gptjax.post.reward_functions.nothing', 'no.such.module'):
        with pytest.raises(UserError, match=f'task.rewards.mine.function={name}'):
            reward_functions.make_reward(section(mine=common.reward_part(name)), task())
    with pytest.raises(UserError, match='task.rewards is empty'):
        reward_functions.make_reward(section(), task())


def test_a_verifier_needs_answers():
    for name in ('correct', 'score'):
        its = section(a=common.reward_part(name))
        with pytest.raises(UserError, match=f'{name} needs answers.*ppo.py:reward=RUN'):
            reward_functions.make_reward(its, task(None))


def test_a_verifier_that_gives_no_number_is_one_clear_error():
    judged = reward_functions.verifier_reward(
        lambda problem, reply: float('nan' if problem.id == '2' else 1)
    )
    with pytest.raises(
        UserError, match="the verifier gave nan for .* 'two words' to 2"
    ):
        judged(ITEMS, REPLIES)
    correct = section(a=common.reward_part('correct'))
    with pytest.raises(UserError, match='the verifier raised ZeroDivisionError'):
        reward_functions.make_reward(correct, task(lambda problem, reply: 1 / 0))(
            ITEMS, REPLIES
        )
