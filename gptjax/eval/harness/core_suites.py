"""Tasks of lm-evaluation-harness, and two suites of them: CORE and ChatCORE.

Their data comes from the Hugging Face hub or from its cache on this machine.

CORE is the mean over 22 tasks of (accuracy - chance) / (1 - chance), from DataComp-LM
(Li et al. 2024, arXiv 2406.11794); shots and chance are those of its low-variance list.
The original has its own files, in LLM-foundry's formats. The harness has the same
sources under the names below, with other prompts. So figures are comparable with each
other, but not with the paper's:

- Jeopardy is not in the harness, so there are 21 tasks.
- The original compares P(answer) per token, `acc_norm` compares it per byte.
- In BIG-bench and CoQA the model generates an answer, which has to match. The original
  checks whether greedy decoding would generate the right answer.
- SQuAD is `squad_completion`, and Winograd is `wsc273`.

ChatCORE is the same mean over nanochat's five tasks in the chat template. ARC and MMLU
compare the likelihoods of the answers here, and the letters of the answers in nanochat.
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
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.tasks.predictor import Predictor


class Task(NamedTuple):
    """A task of the harness."""

    name: str
    shots: int | None = None  # None: the task's default
    chance: float | None = None  # accuracy of random choices, if known


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
    Task('humaneval', 0, 0.0),  # executes code that the model writes
)
SUITES = {'core': CORE, 'chatcore': CHATCORE}
# The main metric of a task is the first of these that it has.
MAIN_METRICS = (
    *('acc_norm', 'acc', 'exact_match', 'exact_match,strict-match', 'em', 'contains'),
    *('pass@1,create_test', 'f1'),
)
PREFIX = 'lm_eval:'


def find_harness_task(name: str) -> Callable[[Predictor, Sequence[dict]], dict]:
    """A function from (predictor, documents) to {name: result} of a suite or a task.

    `name` is 'core', 'chatcore', 'lm_eval:TASK' or 'lm_eval:FILE.yaml'. The last two
    may end in '@5' for five shots.
    """
    if importlib.util.find_spec('lm_eval') is None:
        raise UserError(
            f'--tasks={name} needs lm-evaluation-harness: pip install lm-eval'
        )
    if name == 'chatcore' and not _may_run_code():
        raise UserError(
            '--tasks=chatcore executes programs that the model writes (HumanEval): set '
            'HF_ALLOW_CODE_EVAL=1 in the environment to allow this'
        )
    if name in SUITES:
        manager = _make_task_manager(name)
        _fetch_data(manager, [task.name for task in SUITES[name]])
        return partial(_run_suite, name, manager)
    task, _, shots = name.removeprefix(PREFIX).partition('@')
    if shots and not shots.isdigit():
        raise UserError(f'--tasks={name}: {shots!r} shots: use a number after the @')
    manager = _make_task_manager(name, task)
    if task.endswith('.yaml'):
        path = Path(task)
        line = re.search(r'^task: *(\S+) *$', path.read_text(encoding='utf-8'), re.M)
        if not line:
            raise UserError(f'--tasks={name}: {path} has no line `task: NAME`: add one')
        task = line[1]
    if task not in manager.all_tasks:
        raise UserError(
            f'--tasks={name}: lm-eval has no such task: `lm-eval ls tasks` lists them'
        )
    _fetch_data(manager, [task])
    task = Task(task, int(shots) if shots else None)
    return lambda predictor, _: {_label(task): _evaluate(predictor, task, manager)}


def _may_run_code() -> bool:
    return os.environ.get('HF_ALLOW_CODE_EVAL') == '1'


def _make_task_manager(name, task=''):
    """The index of the harness's own tasks, or of those in a YAML file's folder."""
    from lm_eval.tasks import TaskManager

    if not task.endswith('.yaml'):
        with console.progress_bar("reading lm-eval's list of tasks", 0):
            return TaskManager()
    if not Path(task).is_file():
        raise UserError(f'--tasks={name}: {task}: no such file: give a YAML file')
    return TaskManager(include_path=str(Path(task).parent), include_defaults=False)


def _fetch_data(manager, names):
    """Downloads missing data before anything is computed."""
    for name in names:
        try:
            manager.load([name])
        except (ConnectionError, FileNotFoundError) as error:
            first = str(error).strip().split('\n')[0]
            raise UserError(
                f'--tasks: {name}: the data is not on this machine and cannot be '
                f'downloaded ({first}): go online, or copy it to the Hugging Face cache'
            ) from error


# ---- running


def _run_suite(name, manager, predictor, documents):
    """The results of every task of a suite, and their mean above chance."""
    settings = predictor.bootstrap_settings
    task_results, values, samples = {}, [], []
    for number, task in enumerate(SUITES[name]):
        result = _evaluate(predictor, task, manager, chat=name == 'chatcore')
        task_results[_label(task)] = result
        metric = next(m for m in MAIN_METRICS if m in result['figures'])
        columns = results.read_columns(result)
        used = {column: columns[column] for column in (metric, 'items')}
        # Tasks are resampled independently, so each has its own seed.
        sums = bootstrap.resample_sums(used, settings.resamples, settings.seed + number)
        accuracies = sums[metric] / sums['items']
        samples.append((accuracies - task.chance) / (1 - task.chance))
        values.append((columns[metric].mean() - task.chance) / (1 - task.chance))
    figure = bootstrap.make_figure(
        float(np.mean(values)), np.mean(samples, axis=0), settings.level
    )
    figure['baselines'] = {'chance': dict(value=0.0)}
    summary = dict(
        kind='list',
        about='mean of (accuracy - chance) / (1 - chance) over '
        f'{len(task_results)} tasks',
        figures={name: figure},
        bootstrap=settings._asdict(),
        settings=dict(tasks=[list(task) for task in SUITES[name]]),
    )
    return {name: summary, **task_results}


def _evaluate(predictor, task, manager, chat=False):
    """The result of one task: scored by the harness, resampled by gptjax."""
    import lm_eval

    from gptjax.eval.harness.lm_harness import HarnessModel

    logging.getLogger('lm_eval').setLevel(logging.ERROR)
    model, seed = HarnessModel(predictor), predictor.settings.seed
    evaluation = lm_eval.simple_evaluate(
        model=model,
        tasks=[task.name],
        num_fewshot=task.shots,
        task_manager=manager,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        fewshot_random_seed=seed,
        confirm_run_unsafe_code=_may_run_code(),
    )
    template = predictor.template if chat else None
    result = make_harness_result(evaluation, task, predictor.settings, template)
    result['settings']['requests_cut_from_the_left'] = model.cut
    return result


def make_harness_result(
    evaluation: dict, task: Task, settings, template: str | None
) -> dict:
    """A task's result from what `simple_evaluate` returned; one for a whole group."""
    columns, examples = {}, []
    for name, samples in evaluation['samples'].items():
        by_document = {}
        for sample in samples:
            by_document.setdefault(sample['doc_id'], []).append(sample)
        for document_samples in by_document.values():
            first = document_samples[0]
            content = [first[k] for k in ('doc_hash', 'prompt_hash', 'target_hash')]
            hashes = dict(
                prompt_sha256=first['prompt_hash'],
                item_sha256=storage.fingerprint(content),
            )
            examples.append(dict(id=f'{name}/{first["doc_id"]}', **hashes))
            numbers = _read_statistics(document_samples, evaluation['configs'][name])
            for column, number in numbers.items():
                columns.setdefault(column, []).append(number)
    columns = {
        name: np.array(numbers, np.float64)
        for name, numbers in columns.items()
        if len(numbers) == len(examples)  # not all tasks of a group have all metrics
    }
    bootstrap_settings = BootstrapSettings.of(settings)
    figures = bootstrap.compute_figures(
        columns, figures_for(columns), bootstrap_settings
    )
    chance = task.chance
    if chance is None and 'chance' in columns:
        chance = float(columns['chance'].mean())
    if chance is not None:
        main_figures = [n for n in figures if n.split(',')[0] in MAIN_METRICS]
        results.add_baseline(
            figures, 'chance', dict.fromkeys(main_figures, dict(value=chance))
        )
    return results.make_result(
        'means',
        f'{task.name} of lm-evaluation-harness {evaluation["lm_eval_version"]}',
        figures,
        columns,
        examples,
        bootstrap_settings,
        dict(
            seed=settings.seed,
            shots=dict(evaluation['n-shot']),
            versions=dict(evaluation['versions']),
            template=template,
        ),
    )


# Metrics whose value for an example is (sum of ln P, number of words or bytes).
PER_UNIT = {
    'word_perplexity': np.exp,
    'byte_perplexity': np.exp,
    'bits_per_byte': lambda nats: nats / np.log(2),
}


def figures_for(columns) -> dict[str, bootstrap.Figure]:
    """The figures of kind 'means': the mean over examples of each column."""
    figures = {}
    for name in columns:
        metric, _, suffix = name.partition(':')
        if suffix == 'sum':
            figures[metric] = partial(_compute_per_unit, metric)
        elif name not in ('items', 'chance') and not suffix:
            figures[name] = bootstrap.mean_figure(name)
    return figures


def _compute_per_unit(metric, sums):
    nats = -sums[f'{metric}:sum'] / sums[f'{metric}:units']
    return PER_UNIT[metric.split(',')[0]](nats)


def _read_statistics(samples, config) -> dict[str, float]:
    """The statistics of one example: every metric of every filter, and chance."""
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
