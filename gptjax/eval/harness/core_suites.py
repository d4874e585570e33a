"""Tasks of lm-evaluation-harness, and two lists of them: CORE and ChatCORE.

Their data comes from the Hugging Face hub: who has it, or may fetch it, can run them.

CORE is the mean over 22 tasks of (accuracy - chance) / (1 - chance), from DataComp-LM
(Li et al. 2024, arXiv 2406.11794); shots and chance are those of its low-variance list.
It is defined on files of its own, in LLM-foundry's formats. The harness has the same
sources under these names, with other prompts, so a figure is comparable with others
from here, not with the paper's:

- Jeopardy is not in the harness: 21 tasks.
- Where the original compares P(answer) by token, `acc_norm` compares by byte.
- BIG-bench and CoQA write an answer that has to match, where the original asks whether
  greedy decoding would write it. SQuAD is `squad_completion`, Winograd `wsc273`.

ChatCORE is the same mean over five tasks in the chat template, as nanochat has it;
ARC and MMLU by likelihood of the answers, where nanochat compares letters.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import console, storage
from gptjax.core.console import UserError
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks.run_task import Subject, bootstrap_of


class Task(NamedTuple):
    """A task of the harness: its name, shots (None: its own) and chance, if known."""

    name: str
    shots: int | None = None
    chance: float | None = None


CORE = (
    Task('hellaswag', 0, 0.25),
    Task('bigbench_qa_wikidata_generate_until', 10, 0.0),
    Task('arc_easy', 10, 0.25),
    Task('arc_challenge', 10, 0.25),
    Task('copa', 0, 0.5),
    Task('commonsense_qa', 10, 0.2),
    Task('piqa', 10, 0.5),
    Task('openbookqa', 0, 0.25),
    Task('lambada_openai', 0, 0.0),
    Task('hellaswag', 10, 0.25),
    Task('wsc273', 0, 0.5),
    Task('winogrande', 0, 0.5),
    Task('bigbench_dyck_languages_generate_until', 10, 0.0),
    Task('agieval_lsat_ar', 3, 0.2),
    Task('bigbench_cs_algorithms_generate_until', 10, 0.0),
    Task('bigbench_operators_generate_until', 10, 0.0),
    Task('bigbench_repeat_copy_logic_generate_until', 10, 0.0),
    Task('squad_completion', 10, 0.0),
    Task('coqa', 0, 0.0),
    Task('boolq', 10, 0.62),  # the share of the more frequent answer
    Task('bigbench_language_identification_multiple_choice', 10, 0.091),
)
CHATCORE = (
    Task('arc_easy', 0, 0.25),
    Task('arc_challenge', 0, 0.25),
    Task('mmlu', 0, 0.25),
    Task('gsm8k', 0, 0.0),
    Task('humaneval', 0, 0.0),  # runs what the model writes
)
LISTS = {'core': CORE, 'chatcore': CHATCORE}
# What a task is judged by, the first that it has.
JUDGED_BY = (
    *('acc_norm', 'acc', 'exact_match', 'exact_match,strict-match', 'em', 'contains'),
    *('pass@1,create_test', 'f1'),
)
PREFIX = 'lm_eval:'


def find(name: str) -> Callable[[Subject, Sequence[dict]], dict]:
    """A function from (subject, documents) to {name: result} of a list or a task.

    Args:
        name: 'core', 'chatcore', or 'lm_eval:' and a task's name or YAML file, with
            '@5' behind it for five shots.

    Raises:
        UserError: lm-eval is not installed, or has no such task.
    """
    if importlib.util.find_spec('lm_eval') is None:
        raise UserError(
            f'--tasks={name} needs lm-evaluation-harness: pip install lm-eval'
        )
    if name == 'chatcore' and not _may_run_code():
        raise UserError(
            '--tasks=chatcore runs the programs that the model writes (HumanEval): set '
            'HF_ALLOW_CODE_EVAL=1 in the environment to agree to that'
        )
    if name in LISTS:
        manager = _manager(name)
        _load_data(manager, [task.name for task in LISTS[name]])
        return partial(_run_list, name, manager)
    task, _, shots = name.removeprefix(PREFIX).partition('@')
    if shots and not shots.isdigit():
        raise UserError(f'--tasks={name}: {shots!r} shots: use a number behind the @')
    manager = _manager(name, task)
    if task.endswith('.yaml'):
        task = _name_in(Path(task), name)
    if task not in manager.all_tasks:
        raise UserError(
            f'--tasks={name}: lm-eval has no such task: `lm-eval ls tasks` lists them'
        )
    _load_data(manager, [task])
    return partial(_run_one, Task(task, int(shots) if shots else None), manager)


def _may_run_code() -> bool:
    return os.environ.get('HF_ALLOW_CODE_EVAL') == '1'


def _manager(name, task=''):
    """The harness's index of tasks: its own, or those beside a YAML file."""
    from lm_eval.tasks import TaskManager

    if not task.endswith('.yaml'):
        with console.progress_bar("reading lm-eval's list of tasks", 0):
            return TaskManager()
    if not Path(task).is_file():
        raise UserError(f'--tasks={name}: {task}: no such file: give a YAML file')
    return TaskManager(include_path=str(Path(task).parent), include_defaults=False)


def _name_in(path, name):
    found = re.search(r'^task: *(\S+) *$', path.read_text(encoding='utf-8'), re.M)
    if not found:
        raise UserError(f'--tasks={name}: {path} has no line `task: NAME`: add one')
    return found[1]


def _load_data(manager, names):
    """Fetches what is missing, before anything is computed."""
    for name in names:
        try:
            manager.load([name])
        except (ConnectionError, FileNotFoundError) as error:
            first = str(error).strip().split('\n')[0]
            raise UserError(
                f'--tasks: {name}: its data is not here and could not be fetched '
                f'({first}): go online, or put it into the Hugging Face cache'
            ) from error


# ---- running


def _run_one(task, manager, subject, documents):
    from gptjax.eval.harness.lm_harness import HarnessModel

    model = HarnessModel(subject)
    return {_label(task): _evaluate(model, task, manager, subject)}


def _run_list(name, manager, subject, documents):
    """Every task of a list, and the mean of what is above chance."""
    from gptjax.eval.harness.lm_harness import HarnessModel

    model = HarnessModel(subject)
    how = bootstrap_of(subject.settings)
    found, centred = {}, []
    for number, task in enumerate(LISTS[name]):
        result = _evaluate(model, task, manager, subject, chat=name == 'chatcore')
        found[_label(task)] = result
        judged = next(n for n in JUDGED_BY if n in result['figures'])
        centred.append(
            centre(results.columns_of(result), judged, task.chance, how, number)
        )
    value = float(np.mean([value for value, _ in centred]))
    samples = np.mean([samples for _, samples in centred], axis=0)
    figure = results.figure_of(value, samples, how.level)
    figure['baselines'] = {'chance': dict(value=0.0)}
    summary = dict(
        kind='list',
        about=f'mean of (accuracy - chance) / (1 - chance) over {len(found)} tasks',
        figures={name: figure},
        bootstrap=how._asdict(),
        settings=dict(tasks=[list(task) for task in LISTS[name]]),
    )
    return {name: summary, **found}


def centre(columns, judged: str, chance: float, how: results.Bootstrap, number: int):
    """(value, samples) of (accuracy - chance) / (1 - chance) of one task.

    Tasks are resampled apart from each other, by their `number` in the list.
    """
    values = columns[judged]
    sums = bootstrap.resampled_sums(
        {judged: values, 'items': columns['items']}, how.resamples, how.seed + number
    )
    centred = lambda accuracy: (accuracy - chance) / (1 - chance)
    return centred(values.mean()), centred(sums[judged] / sums['items'])


def _evaluate(model, task, manager, subject, chat=False):
    """One task by the harness; its items scored and resampled here."""
    import lm_eval

    logging.getLogger('lm_eval').setLevel(logging.ERROR)
    settings, cut = subject.settings, model.cut
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task.name],
        num_fewshot=task.shots,
        task_manager=manager,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
        confirm_run_unsafe_code=_may_run_code(),
    )
    result = result_of(found, task, settings, subject.template if chat else None)
    result['settings']['requests_cut_from_the_left'] = model.cut - cut
    return result


def result_of(found: dict, task: Task, settings, template: str | None) -> dict:
    """What `simple_evaluate` returned, as a task's result; a group's tasks as one."""
    how = bootstrap_of(settings)
    columns, items = {}, []
    for name, samples in found['samples'].items():
        by_document = {}
        for sample in samples:
            by_document.setdefault(sample['doc_id'], []).append(sample)
        for its in by_document.values():
            items.append(
                dict(
                    id=f'{name}/{its[0]["doc_id"]}',
                    prompt_sha256=its[0]['prompt_hash'],
                    item_sha256=storage.fingerprint(
                        [its[0][key] for key in ('doc_hash', 'prompt_hash')]
                        + [its[0]['target_hash']]
                    ),
                )
            )
            for column, number in _numbers(its, found['configs'][name]).items():
                columns.setdefault(column, []).append(number)
    columns = {
        name: np.array(numbers, np.float64)
        for name, numbers in columns.items()
        if len(numbers) == len(items)  # what every item has
    }
    figures = results.figures_of(columns, figures_for(columns), how)
    if task.chance is not None:
        chance = dict(value=task.chance)
    elif 'chance' in columns:
        chance = dict(value=float(columns['chance'].mean()))
    else:
        chance = None
    if chance:
        judged = [name for name in figures if name.split(',')[0] in JUDGED_BY]
        results.add_baseline(figures, 'chance', dict.fromkeys(judged, chance))
    return results.result(
        'means',
        f'{task.name} of lm-evaluation-harness {found["lm_eval_version"]}',
        figures,
        columns,
        items,
        how,
        dict(
            seed=settings.seed,
            shots={name: shots for name, shots in found['n-shot'].items()},
            versions=dict(found['versions']),
            template=template,
        ),
    )


# What the harness gives as (sum of ln P, words or bytes) of an item.
PER_UNIT = {
    'word_perplexity': np.exp,
    'byte_perplexity': np.exp,
    'bits_per_byte': lambda nats: nats / np.log(2),
}


def figures_for(columns) -> dict[str, bootstrap.Figure]:
    """The figures of kind 'means': of each column its mean over items."""
    figures = {}
    for name in columns:
        metric, _, part = name.partition(':')
        if part == 'sum':
            figures[metric] = partial(_per_unit, metric)
        elif name not in ('items', 'chance') and not part:
            figures[name] = bootstrap.mean_of(name)
    return figures


def _per_unit(metric, sums):
    nats = -sums[f'{metric}:sum'] / sums[f'{metric}:units']
    return PER_UNIT[metric.split(',')[0]](nats)


def _numbers(samples, config) -> dict[str, float]:
    """The numbers of one item: each metric of each filter, and chance."""
    numbers = dict(items=1.0)
    for sample in samples:
        filtered = '' if sample['filter'] == 'none' else f',{sample["filter"]}'
        for metric in sample['metrics']:
            value, name = sample[metric], metric + filtered
            if isinstance(value, bool | int | float | np.number):
                numbers[name] = float(value)
            elif metric in PER_UNIT:
                numbers[f'{name}:sum'], numbers[f'{name}:units'] = map(float, value)
    if config.get('output_type') == 'multiple_choice':
        numbers['chance'] = 1 / len(samples[0]['resps'])
    return numbers


def _label(task: Task) -> str:
    return task.name if task.shots is None else f'{task.name}@{task.shots}'
