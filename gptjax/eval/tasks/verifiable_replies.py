"""Held-out problems with a verifier: how often is a reply right, and one of eight?

Greedy, drawn at temperature 1, and pass@8: whether one of 8 drawn replies is right, by
the unbiased estimator from `task.samples` of them (Chen et al. 2021, section 2.1).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import results
from gptjax.eval.bootstrap import mean_of
from gptjax.eval.tasks import run_task
from gptjax.eval.tasks.run_task import Subject
from gptjax.post import rollout
from gptjax.post.problems.verifiable_tasks import Problem, make_task
from gptjax.post.reward_functions import verifier_reward
from gptjax.post.rollout import PromptFormat

NAME = 'task'  # of the task; 'task:RUN' has the problems of that run
PASS_AT = 8
AT_ONCE = 64  # problems whose replies are drawn at once: how often progress shows
FIGURES = {
    'accuracy': mean_of('greedy'),
    'accuracy_drawn': mean_of('drawn'),
    f'pass_at_{PASS_AT}': mean_of('passed'),
    'stops': mean_of('stopped'),
}


def find(name: str, config: ConfigDict) -> Callable[[Subject, object], dict]:
    """A function from (subject, documents) to {'task': result}.

    Args:
        name: 'task' or 'task:RUN'.
        config: of the run that is asked.

    Raises:
        UserError: neither has a section `task`, or it makes no sense.
    """
    _, _, run = name.partition(':')
    if run:
        config = run_dir.read_config(Path(run).expanduser().absolute())
    if 'task' not in config:
        raise UserError(
            f"--tasks={name}: the run's config has no section task: name a run that "
            'has, as --tasks=task:runs/sums'
        )
    section = config.task
    if section.samples < PASS_AT:
        raise UserError(
            f'task.samples={section.samples}: use at least {PASS_AT}, for '
            f'pass@{PASS_AT}'
        )
    return partial(_run, section)


def _run(section, subject, documents):
    del documents
    settings = subject.settings
    context = subject.context
    prompt_format = PromptFormat(
        subject.tokenizer, subject.template, context, settings.max_tokens, 1.0
    )
    # The engine ends a reply where the context does.
    readable = lambda messages: len(prompt_format.prompt(messages)) < context
    task = make_task(section, settings.seed, readable)
    if task.score is None:
        raise UserError(
            f'--tasks=task: the problems of task.path={section.path} have no answers '
            'to judge replies by: add "answer" to each line, or ask for a dialogue '
            '(--tasks=dialogue:RUN)'
        )
    problems = task.held_out(section.held_out)
    answers = [item.answer for item in task.demonstrations(section.demonstrations)]
    commonest = Counter(answers).most_common(1)[0][0]
    return {
        NAME: measure(subject, prompt_format, problems, task.score, section, commonest)
    }


def measure(
    subject: Subject,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    score: Callable[[Problem, str], float],
    section: ConfigDict,
    commonest: str,
) -> dict:
    """The result of the task; its baseline is always the same answer.

    Args:
        subject: the model.
        prompt_format: of prompts and replies.
        problems: held out.
        score: the verifier.
        section: the task section.
        commonest: the answer that most demonstrations have.
    """
    settings, how = subject.settings, run_task.bootstrap_of(subject.settings)
    judged = verifier_reward(score)
    right = lambda items, texts: (judged(items, texts) >= 1.0).astype(float)
    columns = {n: [] for n in ('greedy', 'drawn', 'passed', 'stopped', 'items')}
    told = []
    ask = partial(
        rollout.generate_replies, subject.complete, prompt_format, seed=settings.seed
    )
    with console.progress_bar('solving', len(problems), 'problems') as advance:
        for first in range(0, len(problems), AT_ONCE):
            its = problems[first : first + AT_ONCE]
            greedy = ask(its, temperature=0.0)
            drawn = ask(its, temperature=1.0, replies=section.samples, first=first)
            each = [item for item in its for _ in range(section.samples)]
            right_greedy = right(its, [reply.text for reply in greedy])
            right_drawn = right(each, [reply.text for reply in drawn])
            counts = right_drawn.reshape(-1, section.samples).sum(axis=1).astype(int)
            columns['greedy'].extend(right_greedy.tolist())
            for item, reply, count in zip(its, greedy, counts.tolist(), strict=True):
                columns['drawn'].append(count / section.samples)
                columns['passed'].append(pass_at(PASS_AT, section.samples, count))
                columns['stopped'].append(float(reply.finish == 'stop'))
                columns['items'].append(1.0)
                told.append(
                    dict(
                        id=item.id,
                        prompt_sha256=storage.fingerprint(list(item.messages)),
                        item_sha256=storage.fingerprint([item.messages, item.answer]),
                        reply=reply.text,
                        answer=item.answer,
                    )
                )
            advance(len(its))
    columns = {name: np.array(column) for name, column in columns.items()}
    figures = results.figures_of(columns, FIGURES, how)
    always = right(problems, [commonest] * len(problems))
    baseline = results.figures_of(
        dict(greedy=always, items=np.ones(len(always))),
        dict(accuracy=FIGURES['accuracy']),
        how,
    )
    results.add_baseline(figures, f'always {commonest!r}', baseline)
    about = (
        f'{len(problems):,} held-out problems of {section.path or section.name}, each '
        f'once; {section.samples} replies drawn to each'
    )
    options = dict(
        seed=settings.seed,
        samples=section.samples,
        max_tokens=prompt_format.max_tokens,
        template=prompt_format.template,
    )
    return results.result('verifiable', about, figures, columns, told, how, options)


def pass_at(k: int, drawn: int, right: int) -> float:
    """The chance that k of the drawn replies, taken at random, have a right one.

        1 - C(drawn - right, k) / C(drawn, k)

    An unbiased estimate of the chance that k new replies have one (Chen et al. 2021).
    """
    wrong = drawn - right
    if wrong < k:
        return 1.0
    factors = 1.0 - k / np.arange(wrong + 1, drawn + 1)
    return float(1.0 - np.prod(factors))
