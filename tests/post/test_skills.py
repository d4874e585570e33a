"""Problems of the skills: right answers, splits without shared questions, wordings."""

import random
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.post.problems.skill_problems import draw_question
from gptjax.post.problems.skills import SKILLS
from gptjax.post.problems.verifiable_tasks import make_task, mix

SPLITS = ('train', 'validation', 'held_out')


def make(**fields):
    section = common.task_section(name='skills', problems=200, **fields)
    section.options = {}
    return make_task(section, seed=0)


def draw(name: str, split: str = 'train', n: int = 200) -> list[tuple[str, str]]:
    rng = random.Random(name)
    return [draw_question(rng, name, split, 0.1) for _ in range(n)]


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r'\d+', text)]


@pytest.mark.parametrize(
    ('name', 'answer'),
    [
        ('add', lambda text: sum(numbers(text))),
        ('subtract', lambda text: max(numbers(text)) - min(numbers(text))),
        (
            'compare',
            lambda text: (max if re.search('larger|bigger', text.lower()) else min)(
                numbers(text)
            ),
        ),
    ],
)
@pytest.mark.parametrize('split', ['train', 'held_out'])
def test_the_answers_of_numbers_are_right(name, answer, split):
    for text, right in draw(name, split):
        assert str(answer(text)) == right, text


def test_the_answers_of_letters_are_right():
    right = dict(
        count_letter=lambda letters, letter: str(letters.count(letter)),
        reverse=lambda letters: ' '.join(letters[::-1]),
        sort=lambda letters: ' '.join(sorted(letters)),
    )
    rng = random.Random(0)
    for name, compute in right.items():
        for _ in range(100):
            values, answer = SKILLS[name].draw(rng)
            letters = values.pop('letters').split()
            assert compute(letters, **values) == answer


def test_logic_follows_from_what_is_said():
    for text, right in draw('logic'):
        said, asked = re.findall(r'(\w+) (?:is )?(\w+) than (\w+)', text)
        assert said[1] == asked[1] and {said[0], said[2]} == {asked[0], asked[2]}
        assert right == ('Yes' if said == asked else 'No'), text


def test_splits_share_no_question_and_no_held_out_wording():
    for name, skill in SKILLS.items():
        assert not {*skill.wordings} & {*skill.new_wordings}
        shown = {split: {text for text, _ in draw(name, split)} for split in SPLITS}
        assert not shown['train'] & shown['held_out']
        if not skill.is_fact:
            assert not shown['train'] & shown['validation']


def test_held_out_values_are_in_no_other_split():
    pairs = {
        split: {tuple(sorted(numbers(text))) for text, _ in draw('add', split, 1000)}
        for split in SPLITS
    }
    for first, second in combinations(SPLITS, 2):
        assert not pairs[first] & pairs[second]


def test_problems_are_the_same_every_time_and_name_their_skill():
    first, second = make(), make()
    assert first.held_out(50) == second.held_out(50)
    assert [first.train(n) for n in range(20)] == [second.train(n) for n in range(20)]
    problems = first.held_out(300)
    assert {problem.meta['skill'] for problem in problems} == set(SKILLS)
    for problem in problems:
        assert first.score(problem, f' {problem.answer}\n') == 1
        assert first.score(problem, problem.answer + '0') == 0
        assert [m['role'] for m in problem.messages][::2].count('user') * 2 - 1 == len(
            problem.messages
        )


def test_options_are_shares_of_skills():
    section = common.task_section(name='skills')
    section.options = dict(add=1)
    problems = make_task(section, seed=0).held_out(50)
    assert {problem.meta['skill'] for problem in problems} == {'add'}
    section.options = dict(add=1, capital=0)
    asked = [
        message['content']
        for p in make_task(section, seed=0).held_out(100)
        for message in p.messages
    ]
    assert not any('capital' in text for text in asked)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(juggle=1), 'task.options: skills has no juggle'),
        (dict(add=-1, sort=1), 'task.options.add=-1'),
        (dict(add=float('nan')), 'task.options.add=nan'),
        (dict(add='x'), 'task.options.add=x'),
        (dict(add=0), 'all shares are 0'),
    ],
)
def test_shares_that_cannot_be_are_refused(options, message):
    section = common.task_section(name='skills')
    section.options = options
    with pytest.raises(UserError, match=message):
        make_task(section, seed=0)


def test_a_split_without_questions_is_an_error_in_bounded_time():
    with pytest.raises(UserError, match='task.held_out_fraction=1e-09'):
        make(held_out_fraction=1e-9).held_out(30)


@pytest.mark.parametrize('share', [0.25, 0.5, 1 / 3])
def test_mixed_sources_keep_their_order_and_share(share):
    problem_at = mix(lambda n: ('first', n), lambda n: ('second', n), share)
    drawn = [problem_at(index) for index in range(120)]
    for name in ('first', 'second'):
        numbers_of = [n for which, n in drawn if which == name]
        assert numbers_of == list(range(len(numbers_of)))
    assert sum(which == 'second' for which, _ in drawn) == pytest.approx(
        120 * share, abs=1
    )


def test_training_practises_by_shares_and_evaluation_asks_all_skills_as_often():
    section = common.task_section(name='skills', problems=400)
    section.options = dict(add=8.0, sort=1.0, reverse=1.0, logic=0.0)
    task = make_task(section, seed=0)
    count = lambda problems: Counter(problem.meta['skill'] for problem in problems)
    train, held_out = count(task.demonstrations(300)), count(task.held_out(300))
    assert train.keys() == held_out.keys() == {'add', 'sort', 'reverse'}
    assert train['add'] > 200 and 60 < held_out['add'] < 140


def test_some_training_problems_are_drills_and_held_out_ones_are_not():
    section = common.task_section(name='skills', problems=400)
    section.options = dict(add=1.0)
    task = make_task(section, seed=0)
    are_drills = lambda problems: [
        bool(re.fullmatch(r'\d+ \+ \d+', problem.messages[0]['content']))
        for problem in problems
    ]
    assert 0.3 < np.mean(are_drills(task.demonstrations(300))) < 0.6
    assert not any(are_drills(task.held_out(300)))
