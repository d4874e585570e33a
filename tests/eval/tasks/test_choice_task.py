"""Multiple choice by likelihood, by hand."""

import pytest

from gptjax.eval import bootstrap
from gptjax.eval.tasks.choice_task import FIGURES, RULES, ScoredChoices, choice_columns


def figures(choices):
    sums = bootstrap.sum_columns(choice_columns([choices]))
    return {name: figure(sums) for name, figure in FIGURES.items()}


def test_the_three_rules_by_hand():
    # Highest: -2 (first); per token -1.5 (third); per byte -0.3 (second).
    choices = ScoredChoices(
        logprobs=[-2.0, -3.0, -4.5],
        without_prompt=[-9.0, -8.0, -7.0],
        tokens=[1, 1, 3],
        num_bytes=[2, 10, 9],
        right=0,
    )
    for right, rule in ((0, 'accuracy'), (1, 'accuracy_bytes'), (2, 'accuracy_tokens')):
        found = figures(choices._replace(right=right))
        assert found == {name: float(name == rule) for name in RULES}
    columns = choice_columns([choices._replace(right=2)])
    # Without the prompt: -7; per token -7/3; per byte -7/9 against -8/10.
    assert [columns[f'blind_{rule}'][0] for rule in RULES] == [1, 1, 1]
    assert columns['chance'][0] == pytest.approx(1 / 3)


def test_ties_choose_the_first_and_an_empty_answer_has_length_one():
    choices = ScoredChoices([-1.0, -1.0], [-1.0, -1.0], [1, 1], [1, 1], 0)
    assert figures(choices)['accuracy'] == 1
    assert figures(choices._replace(right=1))['accuracy'] == 0
    empty = ScoredChoices([0.0, -1.0], [0.0, -1.0], [0, 1], [0, 1], 0)
    assert figures(empty)['accuracy_bytes'] == 1
