"""The task `task`: held-out problems with a verifier. How often is a reply right?

The figures are the accuracy of greedy replies, the accuracy at temperature 1, and
pass@8: the probability that at least one of 8 replies is right, estimated without bias
from `task.samples` replies (Chen et al. 2021, section 2.1). Problems
with a `skill` also give them by skill.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import results
from gptjax.eval.bootstrap import (
    compute_figures,
    compute_figures_by_group,
    mean_figure,
)
from gptjax.eval.tasks.predictor import Predictor
from gptjax.post import rollout
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.post.reward_functions import verifier_reward
from gptjax.post.rollout import PromptFormat

NAME = 'task'  # 'task:RUN' takes the problems of another run
PASS_AT = 8
PROBLEMS_AT_ONCE = 64  # whose replies are drawn together; progress shows in between
FIGURES = {
    'accuracy': mean_figure('greedy'),
    'accuracy_drawn': mean_figure('drawn'),
    f'pass_at_{PASS_AT}': mean_figure('passed'),
    'stops': mean_figure('stopped'),
}
FIGURES_BY_SKILL = ('accuracy', 'accuracy_drawn')


def find_problem_task(
    name: str, config: ConfigDict
) -> Callable[[Predictor, object], dict]:
    """A function from (predictor, documents) to {'task': result}.

    `name` is 'task' or 'task:RUN'; `config` is that of the run under evaluation.
    """
    _, _, run = name.partition(':')
    if run:
        config = run_dir.read_config(Path(run).expanduser().absolute())
    if 'task' not in config:
        raise UserError(
            f"--tasks={name}: the run's config has no section task: name a run that "
            'has one, as in --tasks=task:runs/sums'
        )
    if config.task.samples < PASS_AT:
        raise UserError(
            f'task.samples={config.task.samples} is too few for pass@{PASS_AT}: use at '
            f'least {PASS_AT}'
        )
    return partial(_evaluate_section, config.task)


def _evaluate_section(section, predictor, documents):
    settings, context = predictor.settings, predictor.context
    prompt_format = PromptFormat(
        predictor.tokenizer, predictor.template, context, settings.max_tokens, 1.0
    )
    # A reply may be cut off by the context, but the prompt has to fit.
    readable = lambda messages: len(prompt_format.prompt(messages)) < context
    task = make_task(section, settings.seed, readable)
    if task.score is None:
        raise UserError(
            f'--tasks=task: the problems of task.path={section.path} have no answers '
            'to check replies against: add "answer" to each line, or evaluate '
            'conversations (--tasks=dialogue:RUN)'
        )
    problems = task.held_out(section.held_out)
    demonstrations = task.demonstrations(section.demonstrations)
    answers = Counter(problem.answer for problem in demonstrations)
    [(commonest, _)] = answers.most_common(1)
    result = evaluate_problems(
        predictor, prompt_format, problems, task.score, section, commonest
    )
    return {NAME: result}


def evaluate_problems(
    predictor: Predictor,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    score: Callable[[Problem, str], float],
    section: ConfigDict,
    commonest: str,
) -> dict:
    """The task's result, of kind 'verifiable'.

    Args:
        score: the verifier.
        section: the config's section `task`.
        commonest: the baseline replies with this answer to every problem.
    """
    compute_rewards = verifier_reward(score)
    are_right = lambda asked, texts: (compute_rewards(asked, texts) >= 1).astype(float)
    draw = partial(
        rollout.generate_replies,
        predictor.complete,
        prompt_format,
        seed=predictor.settings.seed,
    )
    samples = section.samples
    greedy, num_right = [], []
    with console.progress_bar('replying to', len(problems), 'problems') as advance:
        for first in range(0, len(problems), PROBLEMS_AT_ONCE):
            chunk = problems[first : first + PROBLEMS_AT_ONCE]
            greedy += draw(chunk, temperature=0.0)
            drawn = draw(chunk, temperature=1.0, replies=samples, first=first)
            repeated = [problem for problem in chunk for _ in range(samples)]
            right = are_right(repeated, [reply.text for reply in drawn])
            num_right += right.reshape(-1, samples).sum(axis=1).astype(int).tolist()
            advance(len(chunk))

    columns = dict(
        greedy=are_right(problems, [reply.text for reply in greedy]),
        drawn=np.array(num_right) / samples,
        passed=np.array([pass_at(PASS_AT, samples, n) for n in num_right]),
        stopped=np.array([float(reply.finish == 'stop') for reply in greedy]),
        items=np.ones(len(problems)),
    )
    skills = [skill_of(problem) for problem in problems]
    examples = [
        dict(
            id=problem.id,
            source=skill,
            prompt_sha256=storage.fingerprint(list(problem.messages)),
            item_sha256=storage.fingerprint([problem.messages, problem.answer]),
            messages=list(problem.messages),
            reply=reply.text,
            answer=problem.answer,
        )
        for problem, skill, reply in zip(problems, skills, greedy, strict=True)
    ]
    bootstrap_settings = predictor.bootstrap_settings
    figures = compute_figures(columns, FIGURES, bootstrap_settings)
    by_skill = {name: FIGURES[name] for name in FIGURES_BY_SKILL}
    figures |= compute_figures_by_group(skills, columns, by_skill, bootstrap_settings)
    always_right = are_right(problems, [commonest] * len(problems))
    baseline = compute_figures(
        dict(greedy=always_right, items=columns['items']),
        dict(accuracy=FIGURES['accuracy']),
        bootstrap_settings,
    )
    results.add_baseline(figures, f'always {commonest!r}', baseline)
    return results.make_result(
        'verifiable',
        f'{len(problems):,} held-out problems of {section.path or section.name}; '
        f'{samples} replies are drawn to each; a reply is right if it '
        + ('equals "answer" as written' if section.path else 'gets 1 by the verifier'),
        figures,
        columns,
        examples,
        bootstrap_settings,
        dict(
            seed=predictor.settings.seed,
            samples=samples,
            max_tokens=prompt_format.max_tokens,
            template=prompt_format.template,
        ),
    )


def skill_of(problem: Problem) -> str:
    """The skill that a problem names, or ''. A user's line may have any value there."""
    skill = dict(problem.meta or {}).get('skill')
    return skill if isinstance(skill, str) else ''


def pass_at(k: int, drawn: int, right: int) -> float:
    """The probability that a random k of the `drawn` replies contain a right one.

        1 - C(drawn - right, k) / C(drawn, k)

    It is an unbiased estimate of the same probability for k new replies (Chen et al.
    2021, equation 1).
    """
    return 1.0 - math.comb(drawn - right, k) / math.comb(drawn, k)
