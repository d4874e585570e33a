"""Problems of skills, asked in many wordings: `task.name=skills`.

    user: hi
    assistant: Hello! What can I do for you?
    user: what is 17 plus 25?
    assistant: 42

A problem is a question of one skill (what is asked) in one wording (how it is asked),
sometimes after some talk or after another problem with its answer. Held-out problems
ask questions that are in no other split, in wordings that are in no other split. Facts
(days, opposites, capitals) are few and have to be known: there only the wordings of
held-out problems are new, and validation asks what training asks.

A part of the training problems are drills: the shortest wording alone, in which a model
practises much in few tokens (`17 + 25`).
"""

import itertools
import math
import random

from ml_collections import ConfigDict

from gptjax.core import schema, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_integer
from gptjax.post.problems.problem_sources import MAX_DRAWS, Problem, choose_split
from gptjax.post.problems.skills import SKILLS

DRILL_SHARE = 0.4  # of the training problems
# Shares of other problems after some talk, after another problem, and of questions that
# begin with a capital letter.
TALK_SHARE = EARLIER_SHARE = CAPITAL_SHARE = 0.2
# What people put around a question.
BEFORE = ('', '', '', 'hey, ', 'ok, ')
AFTER = ('', '?')
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


def skill_problems(section: ConfigDict, fits, advice: str):
    """Problems of the skills in `task.options`, {skill: share}; {}: all equally often.

    The shares are those of training problems; evaluation asks all skills equally often.

    The arguments and results are those of all sources of problems. `Problem.meta` has
    the name of the skill, by which `eval` reports.
    """
    shares = read_shares(section.options.to_dict())

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


def read_shares(options: dict) -> dict[str, float]:
    """The skills with their shares; without options, or with the default of
    `chain_sum`, all skills equally often."""
    if not options or options == schema.TASK['options'].default:
        return dict.fromkeys(SKILLS, 1.0)
    for name, share in options.items():
        if name not in SKILLS:
            raise UserError(
                f'task.options: skills has no {name}: use {", ".join(SKILLS)}'
            )
        if not (isinstance(share, int | float) and 0 <= share < math.inf):
            raise UserError(f'task.options.{name}={share}: use a share of at least 0')
    if not any(options.values()):
        raise UserError('task.options: all shares are 0: make one larger')
    return options


def draw_skill(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices([*shares], [*shares.values()])[0]


def draw_problem(
    rng: random.Random, shares: dict, split: str, fraction: float
) -> Problem:
    """A random problem of the split, in any wording."""
    if split != 'train':  # reported by skill, so all skills are as frequent
        shares = {name: 1.0 for name, share in shares.items() if share}
    skill = draw_skill(rng, shares)
    if split == 'train' and rng.random() < DRILL_SHARE:
        values, answer = draw_values(rng, skill, split, fraction)
        turns = [SKILLS[skill].wordings[0].format(**values)]
    else:
        turns = [*rng.choice(TALK)] if rng.random() < TALK_SHARE else []
        if rng.random() < EARLIER_SHARE:
            turns += draw_question(rng, draw_skill(rng, shares), split, fraction)
        question, answer = draw_question(rng, skill, split, fraction)
        turns.append(question)
    messages = tuple(
        dict(role=('user', 'assistant')[place % 2], content=content)
        for place, content in enumerate(turns)
    )
    identity = storage.fingerprint(messages)[:16]
    return Problem(identity, messages, answer, dict(skill=skill))


def draw_question(
    rng: random.Random, name: str, split: str, fraction: float
) -> tuple[str, str]:
    """(a question of the skill and split as text, its answer)."""
    skill = SKILLS[name]
    values, answer = draw_values(rng, name, split, fraction)
    wordings = skill.new_wordings if split == 'held_out' else skill.wordings
    text = rng.choice(wordings).format(**values)
    text = rng.choice(BEFORE) + text + rng.choice(AFTER)
    # Not in 'k i t e backwards', whose reverse would be another one.
    if rng.random() < CAPITAL_SHARE and text[1:2] != ' ':
        text = text[0].upper() + text[1:]
    return text, answer


def draw_values(
    rng: random.Random, name: str, split: str, fraction: float
) -> tuple[dict, str]:
    """(the values of a question of the skill and split, its answer)."""
    for _ in range(MAX_DRAWS):
        values, answer = SKILLS[name].draw(rng)
        # 3 + 5 and 5 + 3, larger and bigger of two numbers are in the same split.
        asked = sorted(str(value) for key, value in values.items() if key != 'word')
        if SKILLS[name].is_fact or choose_split(f'{name} {asked}', fraction) == split:
            return values, answer
    raise UserError(
        f'task.held_out_fraction={fraction}: no question of {name} is in the split '
        f'{split}: use a larger fraction'
    )
