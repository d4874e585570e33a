"""Multiple choice by likelihood, by hand."""

import numpy as np
import pytest

from gptjax.eval import bootstrap
from gptjax.eval.tasks.choice_task import FIGURES, RULES, ScoredChoices, choice_columns


def figures(items):
    sums = bootstrap.sum_columns(choice_columns(items))
    return {name: of(sums) for name, of in FIGURES.items()}


def test_the_three_rules_by_hand():
    # plain: -2 is the greatest; by token -1.5 of the third; by byte -0.3 of the second
    item = ScoredChoices(
        logprobs=[-2.0, -3.0, -4.5],
        without_prompt=[-9.0, -8.0, -7.0],
        tokens=[1, 1, 3],
        num_bytes=[2, 10, 9],
        right=0,
    )
    assert figures([item]) == dict(accuracy=1, accuracy_tokens=0, accuracy_bytes=0)
    found = figures([item._replace(right=2)])
    assert found == dict(accuracy=0, accuracy_tokens=1, accuracy_bytes=0)
    found = figures([item._replace(right=1)])
    assert found == dict(accuracy=0, accuracy_tokens=0, accuracy_bytes=1)
    columns = choice_columns([item._replace(right=2)])
    # without the prompt: -7 plain, -7/3 by token, -7/9 by byte against -0.8
    assert [columns[f'blind_{rule}'][0] for rule in RULES] == [1, 1, 1]
    assert columns['chance'][0] == pytest.approx(1 / 3)


def test_a_model_that_knows_is_always_right_and_one_that_does_not_is_at_chance():
    random = np.random.default_rng(0)
    knows, guesses = [], []
    for _ in range(2000):
        logprobs = -random.random(4)
        right = int(random.integers(4))
        item = ScoredChoices(logprobs, logprobs, [5] * 4, [20] * 4, right)
        guesses.append(item)
        knows.append(item._replace(logprobs=-(np.arange(4) != right).astype(float)))
    assert set(figures(knows).values()) == {1}
    for value in figures(guesses).values():
        assert value == pytest.approx(0.25, abs=0.03)


def test_equals_choose_the_first_and_an_empty_answer_divides_by_one():
    item = ScoredChoices([-1.0, -1.0], [-1.0, -1.0], [1, 1], [1, 1], 0)
    assert figures([item])['accuracy'] == 1
    assert figures([item._replace(right=1)])['accuracy'] == 0
    empty = ScoredChoices([0.0, -1.0], [0.0, -1.0], [0, 1], [0, 1], 0)
    assert figures([empty])['accuracy_bytes'] == 1
