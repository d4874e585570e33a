"""The stage `eval`: figures of a trained model on held-out data, with baselines."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import held_out_documents, results
from gptjax.eval.harness import core_suites
from gptjax.eval.report.tables import print_tasks
from gptjax.eval.tasks import dialogue_task, examples, verifiable_replies
from gptjax.eval.tasks.choice_task import evaluate_choices
from gptjax.eval.tasks.generation_task import evaluate_generation
from gptjax.eval.tasks.predictor import Predictor, open_predictor
from gptjax.parallel.mesh import batch_shards, make_mesh
from gptjax.train.load_model import load_model, load_start_run, model_fingerprint

DOCUMENT_TASKS = ('perplexity', 'reply', 'choice')  # need validation documents


def evaluate(
    config: ConfigDict,
    workdir: Path,
    tasks: str | None = None,
    json_path: Path | None = None,
    step: int | None = None,
) -> dict:
    """Evaluates a checkpoint of RUN, prints a table and writes JSON.

    The results of the best checkpoint are merged into RUN/eval.json, which keeps the
    tasks of other calls for the same checkpoint. If RUN has documents, the file always
    contains their perplexity. The task `dialogue` also evaluates the run that RUN
    started from, as a baseline.

    Args:
        tasks: names separated by commas: 'perplexity', 'reply', 'choice', 'dialogue'
            ('dialogue:RUN', with that run's conversations; 'dialogue:RUN:a+b', with
            those of its sources a and b), 'task' (or 'task:RUN', with that run's
            problems), files of examples, 'lm_eval:NAME', 'core', 'chatcore'.
            None: what the run was trained on.
        json_path: a second file, with the results of this call alone.
        step: the checkpoint's; None: the best checkpoint.

    Returns:
        `results` (perplexity and bits per byte, by source) and `baselines` (compression
        and token frequencies), both only if RUN has documents; `checkpoint_step`; and
        `tasks`, in the form of results.py.
    """
    settings = config.eval
    mesh = make_mesh(config.mesh)
    shards = batch_shards(mesh)
    if settings.batch_size % shards:
        raise UserError(
            f'eval.batch_size={settings.batch_size} is not divisible by '
            f'mesh.data * mesh.fsdp = {shards}: use a multiple'
        )
    if step is not None and json_path is None:
        raise UserError(
            f'--step={step}: eval.json holds the results of the best checkpoint: name '
            f'another file, as in --json=eval-{step}.json'
        )

    # Errors in the names of tasks and their files show before the model is read.
    names = split_task_names(_default_task(config, workdir) if tasks is None else tasks)
    dialogue_names = [name for name in names if result_name(name) == 'dialogue']
    other_tasks = [find_task(n, config) for n in names if n not in dialogue_names]
    conversations = []
    if dialogue_names:
        conversations = dialogue_task.read_dialogue_examples(
            dialogue_names[0], workdir, settings
        )

    with console.progress_bar('reading the model', 0):
        trained = load_model(config, workdir, mesh, step)
        fingerprint = model_fingerprint(trained)
    documents = documents_run = None
    if held_out_documents.has_documents(workdir) or {*names} & {*DOCUMENT_TASKS}:
        documents, documents_run = held_out_documents.read_held_out_documents(
            config, workdir, settings.documents
        )

    eval_path = workdir / 'eval.json'
    earlier = _read_earlier_results(eval_path, fingerprint)
    perplexity, task_results = {}, {}
    with open_predictor(config, settings, workdir, trained, mesh) as predictor:
        if documents is not None and (
            'perplexity' in names or 'results' not in earlier
        ):
            summary, baselines, task_results['perplexity'] = (
                held_out_documents.evaluate_perplexity(
                    predictor, documents, documents_run, workdir
                )
            )
            perplexity = dict(results=summary, baselines=baselines)
        for run_task in other_tasks:
            task_results.update(run_task(predictor, documents))
        if dialogue_names:
            conversations = dialogue_task.skip_refused(predictor, conversations)
            task_results['dialogue'] = dialogue_task.evaluate_dialogue(
                predictor, conversations
            )
    if dialogue_names:
        _add_start_as_baseline(
            config, settings, workdir, mesh, conversations, task_results['dialogue']
        )

    # Read the file again: another process may have written to it in the meantime.
    earlier = {**earlier, **_read_earlier_results(eval_path, fingerprint), **perplexity}
    summaries = {n: earlier[n] for n in ('results', 'baselines') if n in earlier}
    evaluation = dict(
        summaries,
        checkpoint_step=trained.step,
        run=workdir.name,
        fingerprint=fingerprint,
        tokenizer=trained.tokenizer.fingerprint,
        tasks={**(earlier.get('tasks') or {}), **task_results},
    )
    if step is None:
        results.write_results(eval_path, evaluation)
    if json_path is not None:
        results.write_results(json_path, dict(evaluation, tasks=task_results))
    heading = (
        f'{workdir.name}, step {trained.step:,}. Intervals: {settings.level:.0%}, from '
        f'{settings.resamples:,} bootstrap resamples'
    )
    print_tasks(heading, task_results)
    return evaluation


def _read_earlier_results(path: Path, fingerprint: str) -> dict:
    """The contents of eval.json, if they are of the same weights and tokenizer."""
    evaluation = storage.read_undamaged(path) or {}
    return evaluation if evaluation.get('fingerprint') == fingerprint else {}


def _add_start_as_baseline(config, settings, workdir, mesh, conversations, result):
    """Evaluates the run that this one started from; writes transcripts of both."""
    by_model = {'this model': result}
    if 'start' in config:
        start = Path(config.start.run)
        try:
            with console.progress_bar('reading the model of the start run', 0):
                trained = load_start_run(config.start, mesh)
            start_config = run_dir.read_config(start)
            with open_predictor(
                start_config, settings, start, trained, mesh
            ) as predictor:
                baseline = dialogue_task.evaluate_dialogue(predictor, conversations)
        except UserError as error:  # such as what its chat template refuses
            print(f'dialogue has no start run as a baseline: {error}')
        else:
            label = f'{start.name}, before'
            results.add_baseline(result['figures'], label, baseline['figures'])
            by_model[label] = baseline
    dialogue_task.write_transcripts(workdir, conversations, by_model)


# ---- tasks by name


def split_task_names(tasks: str) -> list[str]:
    """The different names between the commas; two results may not share a name."""
    names = list(dict.fromkeys(n.strip() for n in tasks.split(',') if n.strip()))
    if not names:
        raise UserError('--tasks is empty: name some, as in perplexity,reply,choice')
    (label, count), *_ = Counter(map(result_name, names)).most_common()
    if count > 1:
        raise UserError(f'--tasks: {count} results are called {label!r}: rename a file')
    return names


def result_name(task: str) -> str:
    """The name of a task's result in eval.json."""
    kind = task.partition(':')[0]
    if kind in ('dialogue', verifiable_replies.NAME):
        return kind
    return Path(task).stem if task.endswith('.jsonl') else task


def find_task(
    name: str, config: ConfigDict
) -> Callable[[Predictor, Sequence[dict]], dict]:
    """A function from (predictor, documents) to {name: result}."""
    if name == 'perplexity':
        return lambda predictor, documents: {}  # `evaluate` has already computed it
    if name in ('reply', 'choice'):
        return partial(_evaluate_conversations, name)
    if name in core_suites.SUITES or name.startswith(core_suites.PREFIX):
        return core_suites.find_harness_task(name)
    if result_name(name) == verifiable_replies.NAME:
        return verifiable_replies.find_problem_task(name, config)
    if name.endswith('.jsonl') or Path(name).is_file():
        file_examples = examples.read_example_file(Path(name).expanduser())
        return partial(_evaluate_file, Path(name).stem, file_examples)
    raise UserError(
        f'--tasks={name}: no such task: use perplexity, reply, choice, dialogue, task, '
        f'{", ".join(core_suites.SUITES)}, {core_suites.PREFIX}NAME or a file that '
        'ends in .jsonl'
    )


def _evaluate_conversations(name, predictor, documents):
    """The next turn of held-out conversations: generated, or chosen."""
    settings = predictor.settings
    replies = examples.reply_examples(documents, settings.conversations, settings.seed)
    if name == 'reply':
        about = 'the next turn of held-out conversations, generated by the model'
        return {name: evaluate_generation(predictor, replies, about)}
    about = 'the next turn of held-out conversations, chosen among turns of others'
    choices = examples.choice_examples(replies, settings.choices, settings.seed)
    return {name: evaluate_choices(predictor, choices, about)}


def _evaluate_file(name, file_examples, predictor, documents):
    """A user's examples: all of them, whatever eval.conversations is."""
    run_task = evaluate_choices if file_examples[0].choices else evaluate_generation
    about = f"{len(file_examples)} examples of a user's file"
    return {name: run_task(predictor, file_examples, about)}


def _default_task(config, workdir):
    """The task that a run was trained on."""
    if (workdir / 'dialogue').is_dir():
        return 'dialogue'
    if 'task' in config and not (workdir / 'documents').is_dir():
        return 'task'
    return 'perplexity'
