"""The stage `select`: chooses the best replies of a model as new training data.

    RUN/replies/00000.jsonl, …      every reply with its score
    RUN/selected/chats.jsonl        conversations for `sft`: rejection sampling
    RUN/selected/pairs.jsonl        preferences for `dpo` and `reward`
    RUN/selected/manifest.json      counts

With `select.by='verifier'` the right replies are kept, and a right and a wrong reply to
the same problem are a pair (Zelikman et al. 2022; Yuan et al. 2023). With
`select.by='reward'` the replies with the highest rewards (`task.rewards`) are kept, and
the highest and the lowest are a pair. Replies are a function of the weights, the seed
and the index of the problem. A run that was killed continues after its last file.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptjax.core import artifact, console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_fraction
from gptjax.parallel.mesh import make_mesh
from gptjax.post.policy_model import apply_compute_settings
from gptjax.post.problems.problem_sources import MAX_DRAWS, Problem
from gptjax.post.problems.verifiable_tasks import (
    make_task,
    problem_inputs,
    problems_fingerprint,
)
from gptjax.post.reward_functions import (
    Reward,
    make_reward,
    rewards_fingerprint,
    verifier_reward,
)
from gptjax.post.rollout import (
    PromptFormat,
    draw_rollout,
    make_prompt_format,
    make_sampler,
)
from gptjax.train import config_checks
from gptjax.train.init_from import load_start
from gptjax.train.load_model import Trained, model_fingerprint

PROBLEMS_PER_FILE = 64  # of RUN/replies
FILES = ('chats.jsonl', 'pairs.jsonl')
# If these fields change, RUN/replies stays valid.
CHOICE_FIELDS = ('select.keep', 'select.pairs', 'select.noise')
# If these fields change, RUN/selected stays valid too.
IRRELEVANT_FIELDS = (
    *('select.slots', 'select.generation_tensor'),
    *('task.demonstrations', 'task.validation', 'task.held_out', 'task.samples'),
)


def select(config: ConfigDict, workdir: Path) -> dict:
    """Draws, scores and chooses replies; writes RUN/selected and returns its manifest.

    Args:
        config: from `init_from.inherit_config`.

    Raises:
        UserError: the task has no verifier, a reward fails, or nothing was kept.
    """
    section = config.select
    mesh = make_mesh(config.mesh)
    config_checks.check_context(config, mesh)
    with jax.set_mesh(mesh):
        trained = apply_compute_settings(config, load_start(config, mesh))
    inputs = {
        'seed': config.seed,
        'start': model_fingerprint(trained),
        'data.context': config.data.context,
        'problems': problems_fingerprint(config.task),
        'rewards': rewards_fingerprint(config.task),
    }
    fields = run_dir.to_json(section).items()
    fields = {f'select.{name}': value for name, value in fields}
    fields |= problem_inputs(run_dir.to_json(config.task))
    for field, value in fields.items():
        if field not in IRRELEVANT_FIELDS:
            inputs[field] = value

    def make(folder: Path) -> dict:
        prompt_format = make_prompt_format(config, 'select', trained.tokenizer)
        task = make_task(
            config.task, config.seed, prompt_format.fits, prompt_format.room_advice
        )
        problems = first_problems(task.train, section.problems)
        if section.by == 'reward':
            reward, choose = make_reward(config.task, task), choose_best
        elif task.score is None:
            raise UserError(
                'select.by=verifier needs answers, but some problems of task.path have '
                'none: add "answer" to each, or use select.by=reward with a reward '
                'model'
            )
        else:
            reward, choose = verifier_reward(task.score), choose_right
        replies = draw_replies(
            config, workdir, trained, prompt_format, problems, reward, inputs
        )
        choices = [choose(each, section.keep, section.pairs) for each in replies]
        return write_selected(config, folder, problems, replies, choices)

    return artifact.build(workdir / 'selected', inputs, make, needs=FILES)


def first_problems(train: Callable[[int], Problem], n: int) -> list[Problem]:
    """The first n different training problems, or all if there are fewer."""
    problems, repeats = {}, 0
    for index in itertools.count():
        if len(problems) == n or repeats == MAX_DRAWS:
            return list(problems.values())
        problem = train(index)
        repeats = repeats + 1 if problem.id in problems else 0
        problems.setdefault(problem.id, problem)


# ---- replies


class ScoredReply(NamedTuple):
    """The text of a reply, its score, and whether the model ended it as a message.

    A reply that was cut off has no end, and one with a special token within is none.
    """

    text: str
    score: float
    ended: bool


def draw_replies(
    config: ConfigDict,
    workdir: Path,
    trained: Trained,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    reward: Reward,
    inputs: dict,
) -> list[list[ScoredReply]]:
    """The replies to each problem, from RUN/replies or drawn and written there."""
    section = config.select
    fingerprint = storage.fingerprint(
        {name: value for name, value in inputs.items() if name not in CHOICE_FIELDS}
    )
    all_replies, specials = [], tuple(prompt_format.tokenizer.specials)
    with contextlib.ExitStack() as stack:
        sampler = None
        advance = stack.enter_context(
            console.progress_bar('drawing replies', len(problems), 'problems')
        )
        for number, first in enumerate(range(0, len(problems), PROBLEMS_PER_FILE)):
            path = workdir / 'replies' / f'{number:05d}.jsonl'
            some = problems[first : first + PROBLEMS_PER_FILE]
            replies = read_replies(path, fingerprint)
            if replies is None:
                if sampler is None:
                    sampler = make_sampler(trained, section, config.data.context)
                    stack.enter_context(contextlib.closing(sampler))
                rollout = draw_rollout(
                    sampler.complete,
                    prompt_format,
                    some,
                    section.replies,
                    config.seed,
                    number,
                )
                scored = [
                    ScoredReply(
                        text,
                        float(score),
                        not truncated and not any(name in text for name in specials),
                    )
                    for text, score, truncated in zip(
                        rollout.replies,
                        reward(rollout.problems, rollout.replies),
                        rollout.truncated_B,
                        strict=True,
                    )
                ]
                n = section.replies
                replies = [scored[i : i + n] for i in range(0, len(scored), n)]
                write_replies(path, fingerprint, some, replies)
            all_replies += replies
            advance(len(some))
    return all_replies


def write_replies(path: Path, fingerprint: str, problems, replies) -> None:
    """One line with the fingerprint, then one for each problem."""
    lines = [dict(about=fingerprint)]
    for problem, problem_replies in zip(problems, replies, strict=True):
        lines.append(dict(id=problem.id, replies=[list(r) for r in problem_replies]))
    storage.write_jsonl(path, lines)


def read_replies(path: Path, fingerprint: str) -> list[list[ScoredReply]] | None:
    """The replies in a file; None if it is absent, damaged or of other problems."""
    if not path.exists():
        return None
    lines = path.read_bytes().split(b'\n')[:-1]
    about, *values = map(storage.parse_undamaged, lines or [b''])
    if about is None or None in values or about.get('about') != fingerprint:
        return None
    return [[ScoredReply(*reply) for reply in value['replies']] for value in values]


# ---- the choice among the replies to one problem


class Choice(NamedTuple):
    """What is chosen among the replies to one problem.

    kept: texts, all different.
    pairs: (chosen, rejected).
    skipped: why there is no pair; '' if there is one.
    """

    kept: list[str]
    pairs: list[tuple[str, str]]
    skipped: str


def choose_right(replies: Sequence[ScoredReply], keep: int, pairs: int) -> Choice:
    """Keeps up to `keep` right replies and makes up to `pairs` pairs, in drawing order.

    Right replies have a score of 1. Replies that were cut off are ignored: a model that
    is trained on them learns not to stop.
    """
    ended = [reply for reply in replies if reply.ended]
    right = list(dict.fromkeys(r.text for r in ended if r.score >= 1))
    wrong = list(dict.fromkeys(r.text for r in ended if r.score < 1))
    if not right or not wrong:
        why = 'all right' if right else 'all wrong' if wrong else 'none ended'
        return Choice(right[:keep], [], why)
    number = min(pairs, max(len(right), len(wrong)))
    chosen = [(right[k % len(right)], wrong[k % len(wrong)]) for k in range(number)]
    return Choice(right[:keep], chosen, '')


def choose_best(replies: Sequence[ScoredReply], keep: int, pairs: int) -> Choice:
    """Keeps the best replies; pairs the best with the worst, then the next best, ….

    Replies that were cut off are ignored. Equal scores keep the drawing order.
    """
    scores = {}
    for reply in replies:
        if reply.ended:
            scores.setdefault(reply.text, reply.score)
    ranked = sorted(scores, key=lambda text: -scores[text])
    if not ranked:
        return Choice([], [], 'none ended')
    ends = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
    chosen = [ends for ends in ends if scores[ends[0]] > scores[ends[1]]]
    return Choice(ranked[:keep], chosen[:pairs], '' if chosen else 'all equal')


# ---- RUN/selected


def write_selected(
    config: ConfigDict,
    folder: Path,
    problems: Sequence[Problem],
    replies: Sequence[Sequence[ScoredReply]],
    choices: Sequence[Choice],
) -> dict:
    """Writes the files and returns the manifest."""
    section = config.select
    chats, pairs, num_swapped = [], [], 0
    for problem, choice in zip(problems, choices, strict=True):
        prompt = list(problem.messages)
        for text in choice.kept:
            reply = dict(role='assistant', content=text)
            # `sft` splits by id: with that of the problem, no problem is in two splits.
            chats.append(dict(id=problem.id, messages=[*prompt, reply]))
        for number, (better, worse) in enumerate(choice.pairs):
            # Label noise, decided by a hash.
            place = hash_fraction('turned', config.seed, problem.id, number)
            if place < section.noise:
                better, worse, num_swapped = worse, better, num_swapped + 1
            pairs.append(dict(prompt=prompt, chosen=better, rejected=worse))
    every_reply = [reply for problem_replies in replies for reply in problem_replies]
    manifest = dict(
        problems=len(problems),
        replies=len(every_reply),
        truncated=sum(not reply.ended for reply in every_reply),
        kept=len(chats),
        pairs=len(pairs),
        turned=num_swapped,
        skipped=dict(Counter(choice.skipped for choice in choices if choice.skipped)),
        mean_score=sum(reply.score for reply in every_reply) / len(every_reply),
    )
    if section.by == 'verifier':
        manifest['right'] = sum(reply.score >= 1 for reply in every_reply)
    if not chats and not pairs:
        raise UserError(
            f'select: no reply can be kept of {len(every_reply):,} replies to '
            f'{len(problems):,} problems ({_describe_skipped(manifest)}): start from a '
            'better model, or draw more (select.replies, select.problems)'
        )
    storage.write_jsonl(folder / 'chats.jsonl', chats)
    storage.write_jsonl(folder / 'pairs.jsonl', pairs)
    manifest['sha256'] = {
        name.removesuffix('.jsonl'): storage.sha256_of_file(folder / name)
        for name in FILES
    }
    return manifest


def describe_selected(manifest: dict) -> str:
    """The line for the screen."""
    right = f', {manifest["right"]:,} right' if 'right' in manifest else ''
    skipped = _describe_skipped(manifest)
    return (
        f'selected: {manifest["kept"]:,} kept and {manifest["pairs"]:,} pairs of '
        f'{manifest["replies"]:,} replies to {manifest["problems"]:,} problems{right}, '
        f'{manifest["truncated"]:,} truncated or with special tokens, left out'
        + (f'; problems without a pair: {skipped}' if skipped else '')
    )


SELECTED = artifact.Artifact('selected', select, describe_selected)


def _describe_skipped(manifest: dict) -> str:
    skipped = sorted(manifest['skipped'].items())
    return ', '.join(f'{count:,} {why}' for why, count in skipped)
