"""Multiple choice by likelihood, by hand."""

from types import SimpleNamespace

import pytest

from configs import common
from gptjax.eval import bootstrap
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.tasks.choice_task import (
    FIGURES,
    RULES,
    ScoredChoices,
    choice_columns,
    evaluate_choices,
)
from gptjax.eval.tasks.examples import Example
from gptjax.eval.tasks.likelihood import Scored


def figures(choices):
    sums = bootstrap.sum_columns(choice_columns([choices]))
    return {name: figure(sums) for name, figure in FIGURES.items()}


MESSAGES = [dict(role='user', content='a ')]


@pytest.mark.parametrize(
    ('prompt', 'given', 'space'), [('Sky: ', 'Sky:', ' '), (MESSAGES, MESSAGES, '')]
)
def test_a_space_at_the_end_of_a_text_belongs_to_the_choice(prompt, given, space):
    pairs = []

    def score_pairs(new):
        pairs.extend(new)
        return [Scored(-float(number), False) for number in range(len(new))]

    settings = common.base().eval
    predictor = SimpleNamespace(
        tokenizer=SimpleNamespace(bos_id='BOS', encode=lambda text: [text]),
        encode_prompt=lambda prompt: [prompt],
        score_pairs=score_pairs,
        settings=settings,
        bootstrap_settings=BootstrapSettings.of(settings),
        template='text',
        context=64,
    )
    example = Example('a', prompt, choices=('blue', 'tea'), answer=0)
    found = evaluate_choices(predictor, [example], 'x')
    choices = [[space + 'blue'], [space + 'tea']]
    assert pairs == [(before, c) for before in ([given], ['BOS']) for c in choices]
    assert found['items'][0]['logprobs'] == [0.0, -1.0]
    assert found['figures']['accuracy']['value'] == 1


def test_the_three_rules_by_hand():
    # Highest: -2 (first); per token -1.5 (third); per byte -0.3 (second).
    choices = ScoredChoices(
        logprobs=[-2.0, -3.0, -4.5],
        without_prompt=[-9.0, -8.0, -7.0],
        num_tokens=[1, 1, 3],
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
