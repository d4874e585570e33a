"""The stage `select`: what is best among a model's own replies, to train on.

    RUN/replies/00000.jsonl …       every reply drawn, with its score
    RUN/selected/chats.jsonl        conversations for `sft`: rejection sampling
    RUN/selected/pairs.jsonl        preferences for `dpo` and `reward`
    RUN/selected/manifest.json      counts

By a verifier (`select.by='verifier'`) right replies are kept, and a right one with a
wrong one to the same problem is a pair (Zelikman et al. 2022; Yuan et al. 2023). By
rewards, those of `task.rewards`, the best are kept, and the best with the worst is a
pair. Replies are a function of the weights, the seed and the problem's place; a run
that is killed goes on after the last file of replies that is whole.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.core import artifact, console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.parallel.mesh import make_mesh
from gptjax.post import rollout
from gptjax.post.policy_model import apply_compute_settings
from gptjax.post.problems.verifiable_tasks import (
    Problem,
    Task,
    make_task,
    problems_fingerprint,
)
from gptjax.post.reply_choice import Drawn, best_and_worst, right_and_wrong, turned
from gptjax.post.reward_functions import (
    Reward,
    make_reward,
    rewards_fingerprint,
    verifier_reward,
)
from gptjax.post.rollout import PromptFormat, make_prompt_format, make_sampler
from gptjax.train import config_checks
from gptjax.train.init_from import load_start
from gptjax.train.load_model import Trained, model_fingerprint

PROBLEMS_AT_ONCE = 64  # in a file of replies
MADE = ('chats.jsonl', 'pairs.jsonl')


def select(config: ConfigDict, workdir: Path) -> dict:
    """Draws, scores and chooses; makes RUN/selected and returns its manifest.

    Args:
        config: inherited from the run that draws; see `init_from.inherit_config`.
        workdir: RUN.

    Raises:
        UserError: the config makes no sense, a reward fails, or nothing was kept.
    """
    section = config.select
    mesh = make_mesh(config.mesh)
    config_checks.check_context(config, mesh)
    with jax.set_mesh(mesh):
        trained = apply_compute_settings(config, load_start(config, mesh))
    settings = _settings(config, trained)

    def make(folder: Path) -> dict:
        prompt_format = make_prompt_format(config, 'select', trained.tokenizer)
        task = make_task(config.task, config.seed, prompt_format.fits)
        problems = distinct(task, section.problems)
        score = score_of(config, task)
        drawn = draw(config, workdir, trained, prompt_format, problems, score, settings)
        choose = best_and_worst if section.by == 'reward' else right_and_wrong
        choices = [choose(replies, section.keep, section.pairs) for replies in drawn]
        return _write(config, folder, problems, drawn, choices)

    return artifact.build(workdir / 'selected', settings, make, needs=MADE)


def distinct(task: Task, wanted: int) -> list[Problem]:
    """The first `wanted` training problems, each once; fewer where there are fewer."""
    problems = {}
    for index in range(wanted):
        problem = task.train(index)
        if problem.id in problems:  # once through all of them
            break
        problems[problem.id] = problem
    return list(problems.values())


def score_of(config: ConfigDict, task: Task) -> Reward:
    """What replies are chosen by: the verifier, or the rewards of `task.rewards`."""
    if config.select.by == 'reward':
        return make_reward(config.task, task)
    if task.score is None:
        raise UserError(
            'select.by=verifier needs answers, and task.path has problems without: add '
            '"answer" to each, or use select.by=reward with a reward model'
        )
    return verifier_reward(task.score)


# ---- drawing


def draw(
    config: ConfigDict,
    workdir: Path,
    trained: Trained,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    score: Reward,
    settings: dict,
) -> list[list[Drawn]]:
    """The replies to each problem: those in RUN/replies, and the rest drawn now."""
    section = config.select
    drawing = {k: v for k, v in settings.items() if k not in CHOOSING}
    about = storage.fingerprint(drawing)
    found = []
    with contextlib.ExitStack() as stack:
        sampler = None
        advance = stack.enter_context(
            console.progress_bar('drawing replies', len(problems), 'problems')
        )
        for number, first in enumerate(range(0, len(problems), PROBLEMS_AT_ONCE)):
            path = workdir / 'replies' / f'{number:05d}.jsonl'
            some = problems[first : first + PROBLEMS_AT_ONCE]
            replies = _read(path, about)
            if replies is None:
                if sampler is None:
                    sampler = make_sampler(trained, section)
                    stack.enter_context(contextlib.closing(sampler))
                drawn = rollout.draw_rollout(
                    sampler.complete,
                    prompt_format,
                    some,
                    section.replies,
                    config.seed,
                    number,
                )
                replies = _scored(drawn, score, section.replies)
                _write_replies(path, about, some, replies)
            found += replies
            advance(len(some))
    return found


def _scored(drawn, score, replies):
    scores = score(drawn.problems, drawn.replies)
    flat = [
        Drawn(text, float(its), not truncated)
        for text, its, truncated in zip(
            drawn.replies, scores, drawn.truncated_B, strict=True
        )
    ]
    return [flat[first : first + replies] for first in range(0, len(flat), replies)]


def _write_replies(path, about, problems, replies):
    lines = [dict(about=about)]
    for problem, its in zip(problems, replies, strict=True):
        lines.append(dict(id=problem.id, replies=[list(reply) for reply in its]))
    storage.write_text(path, _lines(lines))


def _read(path, about):
    """The replies of a file that was drawn in the same way; else None."""
    if not path.exists():
        return None
    lines = path.read_text(encoding='utf-8').split('\n')[:-1]
    if json.loads(lines[0])['about'] != about:
        return None
    return [
        [Drawn(*reply) for reply in json.loads(line)['replies']] for line in lines[1:]
    ]


# ---- writing


def _write(config, folder, problems, drawn, choices):
    section = config.select
    chats, pairs, turned_pairs = [], [], 0
    for problem, choice in zip(problems, choices, strict=True):
        prompt = list(problem.messages)
        for text in choice.kept:
            reply = dict(role='assistant', content=text)
            # Of one id: `sft` splits by it, so no problem is on both sides.
            chats.append(dict(id=problem.id, messages=[*prompt, reply]))
        for number, (better, worse) in enumerate(choice.pairs):
            if turned(section.noise, 'turned', config.seed, problem.id, number):
                better, worse, turned_pairs = worse, better, turned_pairs + 1
            pairs.append(dict(prompt=prompt, chosen=better, rejected=worse))
    replies = [reply for its in drawn for reply in its]
    counts = dict(
        problems=len(problems),
        replies=len(replies),
        truncated=sum(not reply.ended for reply in replies),
        kept=len(chats),
        pairs=len(pairs),
        turned=turned_pairs,
        skipped=dict(Counter(choice.why for choice in choices if choice.why)),
        mean_score=sum(reply.score for reply in replies) / len(replies),
    )
    if section.by == 'verifier':
        counts['right'] = sum(reply.score >= 1 for reply in replies)
    if not chats and not pairs:
        raise UserError(
            f'select: nothing is left of {len(replies):,} replies to {len(problems):,} '
            f'problems ({_told(counts["skipped"])}): start from a better model, or '
            'draw more (select.replies, select.problems)'
        )
    storage.write_text(folder / 'chats.jsonl', _lines(chats))
    storage.write_text(folder / 'pairs.jsonl', _lines(pairs))
    return dict(
        **counts,
        sha256={
            name.removesuffix('.jsonl'): storage.sha256_of_file(folder / name)
            for name in MADE
        },
    )


def describe(manifest: dict) -> str:
    """A line about RUN/selected."""
    right = f', {manifest["right"]:,} right' if 'right' in manifest else ''
    skipped = _told(manifest['skipped'])
    return (
        f'selected: of {manifest["replies"]:,} replies to {manifest["problems"]:,} '
        f'problems{right}: {manifest["kept"]:,} kept, {manifest["pairs"]:,} pairs; no '
        f'pair of {skipped or "no problem"}'
    )


SELECTED = artifact.Artifact('selected', select, describe)


def _told(skipped):
    return ', '.join(f'{count:,} {why}' for why, count in sorted(skipped.items()))


def _lines(values):
    return ''.join(json.dumps(value, ensure_ascii=False) + '\n' for value in values)


def _settings(config: ConfigDict, trained: Trained) -> dict:
    """What decides RUN/selected, as JSON values by their names."""
    values = {'seed': config.seed, 'start': model_fingerprint(trained)}
    values['data.context'] = config.data.context
    values['problems'] = problems_fingerprint(config.task)
    values['rewards'] = rewards_fingerprint(config.task)
    for name, section in (('select', config.select), ('task', config.task)):
        for field, value in run_dir.to_json(section).items():
            if f'{name}.{field}' not in IRRELEVANT:
                values[f'{name}.{field}'] = value
    return values


CHOOSING = ('select.keep', 'select.pairs', 'select.noise')  # needs no new replies
IRRELEVANT = (
    *('select.slots', 'select.generation_tensor'),
    *('task.demonstrations', 'task.validation', 'task.held_out', 'task.samples'),
)
