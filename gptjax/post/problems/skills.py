"""Small problems with one right answer, asked in many wordings: `task.name=skills`.

    user: hi
    assistant: Hello! What can I do for you?
    user: what is 17 plus 25?
    assistant: 42

A problem is a question of one skill (what is asked) in one wording (how it is asked),
sometimes after some talk or after another problem with its answer. Held-out problems
ask questions that are in no other split, in wordings that are in no other split.
"""

import itertools
import random
import string
from collections.abc import Callable
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_integer
from gptjax.post.problems.problem_sources import MAX_DRAWS, Problem, choose_split

DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
MONTHS = (
    'January February March April May June July August September October November '
    'December'
).split()
NAMES = (
    'Ann Bob Carl Dora Emma Fred Gina Hugo Ida Jack Kim Leo Mia Ned Olga Paul'.split()
)
MORE, LESS = (
    ('taller', 'older', 'faster', 'stronger'),
    ('shorter', 'younger', 'slower', 'weaker'),
)
OPPOSITES = (
    'hot cold, big small, up down, left right, day night, good bad, fast slow, '
    'happy sad, old young, open closed, black white, full empty, hard soft, high low, '
    'in out, light dark, long short, loud quiet, rich poor, strong weak, wet dry, '
    'yes no, first last, early late, easy difficult, near far, clean dirty, '
    'sweet sour, true false, win lose'
)
CAPITALS = (
    'France Paris, Italy Rome, Spain Madrid, Germany Berlin, England London, '
    'Japan Tokyo, China Beijing, Russia Moscow, Greece Athens, Egypt Cairo, '
    'Austria Vienna, Poland Warsaw, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, '
    'Ireland Dublin, Portugal Lisbon, Hungary Budapest, Canada Ottawa, Cuba Havana'
)


class Skill(NamedTuple):
    """One kind of question.

    draw: random numbers -> (the values for the wordings, the answer).
    wordings: texts with {names} of the values.
    new_wordings: texts that only held-out problems use.
    is_fact: the questions are few and have to be known, so held-out problems ask the
        same ones, in new wordings.
    """

    draw: Callable[[random.Random], tuple[dict, str]]
    wordings: tuple[str, ...]
    new_wordings: tuple[str, ...]
    is_fact: bool = False


def add(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return dict(a=a, b=b), str(a + b)


def subtract(rng):
    b, a = sorted((rng.randrange(100), rng.randrange(100)))
    return dict(a=a, b=b), str(a - b)


def compare(rng):
    a, b = rng.sample(range(100), 2)
    larger = rng.random() < 0.5
    words = ('larger', 'bigger', 'greater') if larger else ('smaller', 'lower', 'less')
    answer = max(a, b) if larger else min(a, b)
    return dict(a=a, b=b, word=rng.choice(words[:2])), str(answer)


def count_letter(rng):
    wanted = rng.choice(string.ascii_lowercase)
    count = rng.randrange(5)
    others = string.ascii_lowercase.replace(wanted, '')
    letters = [wanted] * count + rng.choices(others, k=rng.randint(3, 7) - count + 1)
    rng.shuffle(letters)
    return dict(letter=wanted, letters=' '.join(letters)), str(count)


def _letters(rng):
    return rng.sample(string.ascii_lowercase, rng.randint(3, 5))


def reverse(rng):
    letters = _letters(rng)
    return dict(letters=' '.join(letters)), ' '.join(letters[::-1])


def sort(rng):
    letters = _letters(rng)
    return dict(letters=' '.join(letters)), ' '.join(sorted(letters))


def calendar(rng):
    kind, names = rng.choice([('day', DAYS), ('month', MONTHS)])
    place, after = rng.randrange(len(names)), rng.random() < 0.5
    answer = names[(place + (1 if after else -1)) % len(names)]
    return dict(
        kind=kind, name=names[place], word='after' if after else 'before'
    ), answer


def logic(rng):
    first, second = rng.sample(NAMES, 2)
    kind = rng.randrange(4)
    claim = rng.choice([(first, second, MORE, kind), (second, first, LESS, kind)])
    asked = rng.choice([(first, second), (second, first)])
    said = f'{claim[0]} is {claim[2][kind]} than {claim[1]}'
    question = f'is {asked[0]} {MORE[kind]} than {asked[1]}'
    return dict(said=said, question=question), 'Yes' if asked[0] == first else 'No'


def opposite(rng):
    pair = rng.choice(OPPOSITES.split(', ')).split()
    word, answer = rng.sample(pair, 2)
    return dict(word=word), answer


def capital(rng):
    country, answer = rng.choice(CAPITALS.split(', ')).split()
    return dict(country=country), answer


SKILLS = dict(
    add=Skill(
        add,
        (
            'what is {a} plus {b}',
            '{a} + {b}',
            '{a} + {b} =',
            'what is {a} + {b}',
            'add {a} and {b}',
            'what is the sum of {a} and {b}',
            'how much is {a} plus {b}',
            'calculate {a} + {b}',
            'what do you get if you add {a} and {b}',
            'i have {a} apples and get {b} more. how many do i have',
        ),
        (
            'how much is {a} + {b}',
            'can you add {b} to {a}',
            'tell me the sum of {a} and {b}',
        ),
    ),
    subtract=Skill(
        subtract,
        (
            'what is {a} minus {b}',
            '{a} - {b}',
            '{a} - {b} =',
            'what is {a} - {b}',
            'subtract {b} from {a}',
            'take {b} away from {a}',
            'how much is {a} minus {b}',
            'calculate {a} - {b}',
            'what is the difference of {a} and {b}',
            'i have {a} apples and eat {b}. how many are left',
        ),
        (
            'how much is {a} - {b}',
            'what do you get if you take {b} from {a}',
            'tell me the difference of {a} and {b}',
        ),
    ),
    compare=Skill(
        compare,
        (
            'which is {word}, {a} or {b}',
            'which number is {word}, {a} or {b}',
            'what is {word}, {a} or {b}',
            '{a} or {b}, which is {word}',
            'name the {word} of {a} and {b}',
            'which of {a} and {b} is {word}',
            'i have the numbers {a} and {b}. which one is {word}',
            'choose the {word} number: {a} or {b}',
        ),
        ('tell me which is {word}, {a} or {b}', '{a} and {b}: which one is {word}'),
    ),
    count_letter=Skill(
        count_letter,
        (
            'how many {letter} are in {letters}',
            'how often is {letter} in {letters}',
            'count the {letter} in {letters}',
            'how many times is {letter} in {letters}',
            'in {letters}, how many {letter} are there',
            'count how many {letter} you see in {letters}',
            'how many letters {letter} are in {letters}',
        ),
        (
            'how many {letter} do you see in {letters}',
            'in {letters}, count the {letter}',
        ),
    ),
    reverse=Skill(
        reverse,
        (
            'reverse {letters}',
            'what is {letters} backwards',
            'write {letters} backwards',
            'turn around {letters}',
            'say {letters} in reverse',
            'reverse the letters {letters}',
            'spell {letters} backwards',
            'what is the reverse of {letters}',
        ),
        ('can you reverse {letters}', 'tell me {letters} backwards'),
    ),
    sort=Skill(
        sort,
        (
            'sort {letters}',
            'put {letters} in order',
            'sort the letters {letters}',
            'order {letters}',
            'write {letters} in the order of the alphabet',
            'what is {letters} in order',
            'bring {letters} in order',
            'put the letters {letters} in order',
        ),
        ('can you sort {letters}', 'tell me {letters} in order'),
    ),
    calendar=Skill(
        calendar,
        (
            'what {kind} comes {word} {name}',
            'which {kind} is {word} {name}',
            'which {kind} comes {word} {name}',
            'what is the {kind} {word} {name}',
            'name the {kind} {word} {name}',
            '{word} {name} comes which {kind}',
            'what {kind} is right {word} {name}',
        ),
        (
            'tell me the {kind} that comes {word} {name}',
            'can you name the {kind} {word} {name}',
        ),
        is_fact=True,
    ),
    logic=Skill(
        logic,
        (
            '{said}. {question}',
            '{said}. so {question}',
            'if {said}, {question}',
            'suppose {said}. {question}',
            'i know that {said}. {question}',
            '{said}. tell me, {question}',
            'when {said}, then {question}',
        ),
        ('let us say {said}. {question}', 'we know that {said}. now {question}'),
    ),
    opposite=Skill(
        opposite,
        (
            'what is the opposite of {word}',
            'opposite of {word}',
            'name the opposite of {word}',
            'what word is the opposite of {word}',
            'give me the opposite of {word}',
            'the opposite of {word} is',
            'what is not {word} but the opposite',
        ),
        ('tell me the opposite of {word}', 'which word means the opposite of {word}'),
        is_fact=True,
    ),
    capital=Skill(
        capital,
        (
            'what is the capital of {country}',
            'capital of {country}',
            'which city is the capital of {country}',
            'name the capital of {country}',
            'what is the capital city of {country}',
            'the capital of {country} is',
            'do you know the capital of {country}',
        ),
        ('tell me the capital of {country}', 'what city is the capital of {country}'),
        is_fact=True,
    ),
)

TALK_SHARE = EARLIER_SHARE = 0.2  # of problems after some talk, after another problem
# What people put around a question.
BEFORE = ('', '', '', '', 'please ', 'hey, ', 'ok, ', 'now ', 'can you tell me, ')
AFTER = ('', '?', '?', '?', '.', ' please', ' please?')
TALK = (
    ('hi', 'Hello! What can I do for you?'),
    ('hello', 'Hi! Ask me something.'),
    ('hey there', 'Hi! How can I help?'),
    ('good morning', 'Good morning! What can I do for you?'),
    ('hi, how are you?', 'I am fine, thank you. How can I help?'),
    ('can you help me?', 'Sure. What is it?'),
    ('thank you', 'You are welcome!'),
    ('i have a question', 'Sure, go ahead.'),
)


def skill_problems(section, fits, advice: str):
    """Problems of the skills in `task.options`, {skill: share}; {}: all equally often.

    The arguments and results are those of all sources of problems. `Problem.meta` has
    the name of the skill, by which `eval` reports.
    """
    shares = section.options.to_dict() or dict.fromkeys(SKILLS, 1)
    if unknown := set(shares) - set(SKILLS):
        raise UserError(
            f'task.options: skills has no {", ".join(sorted(unknown))}: use '
            f'{", ".join(SKILLS)}'
        )

    def problems_of(split: str, n: int) -> list[Problem]:
        problems, draws_without_new = {}, 0
        for place in itertools.count():
            if len(problems) == n or draws_without_new == MAX_DRAWS:
                break
            draws_without_new += 1
            rng = random.Random(hash_integer(split, place))
            problem = draw_problem(rng, shares, split, section.held_out_fraction)
            if problem.id not in problems and fits(problem.messages):
                problems[problem.id], draws_without_new = problem, 0
        if not problems:
            raise UserError(
                f'task.name=skills: no {split} problem fits the context in '
                f'{MAX_DRAWS:,} draws: {advice}'
            )
        return list(problems.values())

    equals = lambda problem, reply: float(reply.strip() == problem.answer)
    return problems_of, equals


def draw_problem(
    rng: random.Random, shares: dict, split: str, fraction: float
) -> Problem:
    """A random problem of the split."""
    [skill] = rng.choices([*shares], [*shares.values()])
    turns = [*rng.choice(TALK)] if rng.random() < TALK_SHARE else []
    if rng.random() < EARLIER_SHARE:
        turns += draw_question(rng, rng.choice([*shares]), split, fraction)
    question, answer = draw_question(rng, skill, split, fraction)
    messages = tuple(
        dict(role=('user', 'assistant')[place % 2], content=content)
        for place, content in enumerate([*turns, question])
    )
    identity = storage.fingerprint(messages)[:16]
    return Problem(identity, messages, answer, dict(skill=skill))


def draw_question(
    rng: random.Random, name: str, split: str, fraction: float
) -> tuple[str, str]:
    """(a question of the skill and split, its answer)."""
    skill, held_out = SKILLS[name], split == 'held_out'
    wordings = skill.new_wordings if held_out else skill.wordings
    while True:
        values, answer = skill.draw(rng)
        text = rng.choice(wordings).format(**values)
        text = rng.choice(BEFORE) + text + rng.choice(AFTER)
        # Sorted, so that 3 + 5 and 5 + 3 are in the same split.
        asked = text if skill.is_fact else sorted(map(str, values.values()))
        home = choose_split(f'{name} {asked}', fraction)
        if skill.is_fact and home != 'validation':
            home = 'held_out' if held_out else 'train'
        if home == split:
            break
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text, answer
