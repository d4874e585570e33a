"""The stage `select`: the best of a model's own replies, to train on.

    RUN/replies/00000.jsonl …       every reply drawn, with its score
    RUN/selected/chats.jsonl        conversations for `sft`: rejection sampling
    RUN/selected/pairs.jsonl        preferences for `dpo` and `reward`
    RUN/selected/manifest.json      counts

By a verifier (`select.by='verifier'`) right replies are kept, and a right one with a
wrong one to the same problem is a pair (Zelikman et al. 2022; Yuan et al. 2023). By
the rewards of `task.rewards` the best are kept, and the best with the worst is a pair.
Replies are a function of the weights, the seed and the problem's place; a run that is
killed goes on after the last whole file of replies.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptjax.core import artifact, console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_fraction
from gptjax.parallel.mesh import make_mesh
from gptjax.post.policy_model import apply_compute_settings
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task, make_task, problems_fingerprint
from gptjax.post.reward_functions import (
    Reward,
    make_reward,
    rewards_fingerprint,
    verifier_reward,
)
from gptjax.post.rollout import (
    PromptFormat,
    Rollout,
    draw_rollout,
    make_prompt_format,
    make_sampler,
)
from gptjax.train import config_checks
from gptjax.train.init_from import load_start
from gptjax.train.load_model import Trained, model_fingerprint

PROBLEMS_PER_FILE = 64  # of RUN/replies
FILES = ('chats.jsonl', 'pairs.jsonl')
# Fields that need no new replies where they change, and fields that change nothing.
CHOICE_FIELDS = ('select.keep', 'select.pairs', 'select.noise')
IRRELEVANT_FIELDS = (
    *('select.slots', 'select.generation_tensor'),
    *('task.demonstrations', 'task.validation', 'task.held_out', 'task.samples'),
)


def select(config: ConfigDict, workdir: Path) -> dict:
    """Draws, scores and chooses; makes RUN/selected and returns its manifest.

    Args:
        config: inherited from the run that draws; see `init_from.inherit_config`.

    Raises:
        UserError: the config makes no sense, a reward fails, or nothing was kept.
    """
    section = config.select
    mesh = make_mesh(config.mesh)
    config_checks.check_context(config, mesh)
    with jax.set_mesh(mesh):
        trained = apply_compute_settings(config, load_start(config, mesh))
    inputs = selection_inputs(config, trained)

    def make(folder: Path) -> dict:
        prompt_format = make_prompt_format(config, 'select', trained.tokenizer)
        task = make_task(config.task, config.seed, prompt_format.fits)
        problems = first_problems(task, section.problems)
        reward = make_selection_reward(config, task)
        replies = draw_replies(
            config, workdir, trained, prompt_format, problems, reward, inputs
        )
        choose = choose_best if section.by == 'reward' else choose_right
        choices = [choose(each, section.keep, section.pairs) for each in replies]
        return write_selected(config, folder, problems, replies, choices)

    return artifact.build(workdir / 'selected', inputs, make, needs=FILES)


def selection_inputs(config: ConfigDict, trained: Trained) -> dict:
    """What decides RUN/selected, as JSON values by their names."""
    inputs = {'seed': config.seed, 'start': model_fingerprint(trained)}
    inputs['data.context'] = config.data.context
    inputs['problems'] = problems_fingerprint(config.task)
    inputs['rewards'] = rewards_fingerprint(config.task)
    for name, section in (('select', config.select), ('task', config.task)):
        for field, value in run_dir.to_json(section).items():
            if f'{name}.{field}' not in IRRELEVANT_FIELDS:
                inputs[f'{name}.{field}'] = value
    return inputs


def first_problems(task: Task, wanted: int) -> list[Problem]:
    """The first `wanted` training problems, each once; fewer where there are fewer."""
    problems = {}
    for index in range(wanted):
        problem = task.train(index)
        if problem.id in problems:  # once through all of them
            break
        problems[problem.id] = problem
    return list(problems.values())


def make_selection_reward(config: ConfigDict, task: Task) -> Reward:
    """What replies are chosen by: the verifier, or the rewards of `task.rewards`."""
    if config.select.by == 'reward':
        return make_reward(config.task, task)
    if task.score is None:
        raise UserError(
            'select.by=verifier needs answers, and task.path has problems without: add '
            '"answer" to each, or use select.by=reward with a reward model'
        )
    return verifier_reward(task.score)


# ---- replies


class ScoredReply(NamedTuple):
    """A reply: its text, its score, and whether it ended before it was cut off."""

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
    """The replies to each problem: those in RUN/replies, and the rest drawn now."""
    section = config.select
    fingerprint = storage.fingerprint(
        {name: value for name, value in inputs.items() if name not in CHOICE_FIELDS}
    )
    all_replies = []
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
                    sampler = make_sampler(trained, section)
                    stack.enter_context(contextlib.closing(sampler))
                rollout = draw_rollout(
                    sampler.complete,
                    prompt_format,
                    some,
                    section.replies,
                    config.seed,
                    number,
                )
                replies = score_replies(rollout, reward, section.replies)
                write_replies(path, fingerprint, some, replies)
            all_replies += replies
            advance(len(some))
    return all_replies


def score_replies(
    rollout: Rollout, reward: Reward, replies_per_problem: int
) -> list[list[ScoredReply]]:
    scores = reward(rollout.problems, rollout.replies)
    replies = [
        ScoredReply(text, float(score), not truncated)
        for text, score, truncated in zip(
            rollout.replies, scores, rollout.truncated_B, strict=True
        )
    ]
    return [
        replies[first : first + replies_per_problem]
        for first in range(0, len(replies), replies_per_problem)
    ]


def write_replies(path: Path, fingerprint: str, problems, replies) -> None:
    lines = [dict(about=fingerprint)]
    for problem, its_replies in zip(problems, replies, strict=True):
        lines.append(dict(id=problem.id, replies=[list(r) for r in its_replies]))
    _write_lines(path, lines)


def read_replies(path: Path, fingerprint: str) -> list[list[ScoredReply]] | None:
    """The replies of a file that was drawn in the same way; else None."""
    if not path.exists():
        return None
    lines = path.read_text(encoding='utf-8').split('\n')[:-1]
    if json.loads(lines[0])['about'] != fingerprint:
        return None
    return [
        [ScoredReply(*reply) for reply in json.loads(line)['replies']]
        for line in lines[1:]
    ]


# ---- the choice among the replies to one problem


class Choice(NamedTuple):
    """What is kept of a problem's replies.

    kept: texts, all different.
    pairs: (better, worse).
    skipped: why there is no pair; '' where there is one.
    """

    kept: list[str]
    pairs: list[tuple[str, str]]
    skipped: str


def choose_right(replies: Sequence[ScoredReply], keep: int, pairs: int) -> Choice:
    """Keeps right replies, all different, in the order they were drawn.

    Only replies that ended count: one that was cut off would teach not to stop.

    Args:
        replies: to one problem; right ones have a score of 1.
        keep: how many at most.
        pairs: how many at most.
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
    """Keeps the best replies; pairs the best with the worst, the next with the next.

    Arguments are those of `choose_right`; of equal scores the reply that was drawn
    first comes first.
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


def is_swapped(share: float, *words) -> bool:
    """Whether noise swaps a pair, decided by a hash of the words."""
    return hash_fraction(*words) < share


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
            # All have the problem's id: `sft` splits by it, so no problem is in both.
            chats.append(dict(id=problem.id, messages=[*prompt, reply]))
        for number, (better, worse) in enumerate(choice.pairs):
            if is_swapped(section.noise, 'turned', config.seed, problem.id, number):
                better, worse, num_swapped = worse, better, num_swapped + 1
            pairs.append(dict(prompt=prompt, chosen=better, rejected=worse))
    every_reply = [reply for its_replies in replies for reply in its_replies]
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
            f'select: nothing is left of {len(every_reply):,} replies to '
            f'{len(problems):,} problems ({_describe_skipped(manifest)}): start from a '
            'better model, or draw more (select.replies, select.problems)'
        )
    _write_lines(folder / 'chats.jsonl', chats)
    _write_lines(folder / 'pairs.jsonl', pairs)
    manifest['sha256'] = {
        name.removesuffix('.jsonl'): storage.sha256_of_file(folder / name)
        for name in FILES
    }
    return manifest


def describe_selected(manifest: dict) -> str:
    """A line about RUN/selected."""
    right = f', {manifest["right"]:,} right' if 'right' in manifest else ''
    return (
        f'selected: of {manifest["replies"]:,} replies to {manifest["problems"]:,} '
        f'problems{right}: {manifest["kept"]:,} kept, {manifest["pairs"]:,} pairs; no '
        f'pair of {_describe_skipped(manifest) or "no problem"}'
    )


SELECTED = artifact.Artifact('selected', select, describe_selected)


def _describe_skipped(manifest: dict) -> str:
    skipped = sorted(manifest['skipped'].items())
    return ', '.join(f'{count:,} {why}' for why, count in skipped)


def _write_lines(path: Path, values: Sequence[dict]) -> None:
    lines = (json.dumps(value, ensure_ascii=False) + '\n' for value in values)
    storage.write_text(path, ''.join(lines))
