"""Skills that a small model can learn: questions with one right answer, and wordings.

The letters of words are apart (`reverse k i t e`), because a model sees the pieces of
its tokenizer and not their letters. Digits are single pieces in our tokenizer.
"""

import random
import string
from collections.abc import Callable
from typing import NamedTuple

DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
MONTHS = (
    'January February March April May June July August September October November '
    'December'
).split()
NAMES = (
    'Ann Bob Carl Dora Emma Fred Gina Hugo Ida Jack Kim Leo Mia Ned Olga Paul'.split()
)
COMPARATIVES = 'taller shorter older younger faster slower stronger weaker'.split()
OPPOSITES = (
    'hot cold, big small, up down, day night, good bad, fast slow, happy sad, '
    'open closed, black white, full empty, high low, in out, loud quiet, rich poor, '
    'strong weak, wet dry, first last, early late, near far, clean dirty, '
    'true false, push pull'
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
    wordings: texts with {names} of the values; the first is the shortest.
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
    words = ('larger', 'bigger') if larger else ('smaller', 'lower')
    answer = max(a, b) if larger else min(a, b)
    return dict(a=a, b=b, word=rng.choice(words)), str(answer)


def count_letter(rng):
    wanted = rng.choice(string.ascii_lowercase)
    count = rng.randrange(4)
    others = string.ascii_lowercase.replace(wanted, '')
    letters = [wanted] * count + rng.choices(others, k=rng.randint(3, 6) - count)
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
    word, is_true = rng.choice(COMPARATIVES), rng.random() < 0.5
    asked = (first, second) if is_true else (second, first)
    said = f'{first} is {word} than {second}'
    question = f'is {asked[0]} {word} than {asked[1]}'
    return dict(said=said, question=question), 'Yes' if is_true else 'No'


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
            '{a} + {b}',
            'what is {a} plus {b}',
            '{a} + {b} =',
            'what is {a} + {b}',
            'add {a} and {b}',
            'what is the sum of {a} and {b}',
            'how much is {a} plus {b}',
            'calculate {a} + {b}',
            'what do you get if you add {a} and {b}',
            'i have {a} and get {b} more. how many do i have',
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
            '{a} - {b}',
            'what is {a} minus {b}',
            '{a} - {b} =',
            'what is {a} - {b}',
            'subtract {b} from {a}',
            'take {b} away from {a}',
            'how much is {a} minus {b}',
            'calculate {a} - {b}',
            'what is the difference between {a} and {b}',
            'i have {a} and lose {b}. how many are left',
        ),
        (
            'how much is {a} - {b}',
            'what do you get if you take {b} from {a}',
            'tell me the difference between {a} and {b}',
        ),
    ),
    compare=Skill(
        compare,
        (
            '{word} of {a} and {b}',
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
            '{letter} in {letters}',
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
            '{letters} backwards',
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
            '{kind} {word} {name}',
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
            'opposite of {word}',
            'what is the opposite of {word}',
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
            'capital of {country}',
            'what is the capital of {country}',
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
