"""The stage `eval`: a trained model on what it was not trained on, beside baselines."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import held_out_perplexity, results
from gptjax.eval.held_out_documents import (
    read_documents,
    run_of_documents,
    some_documents,
    validation_file,
)
from gptjax.eval.tasks import (
    dialogue_examples,
    dialogue_task,
    examples,
    run_task,
    verifiable_replies,
)
from gptjax.eval.tasks.likelihood import token_scores
from gptjax.eval.tasks.run_task import Subject
from gptjax.parallel.mesh import batch_shards, make_mesh
from gptjax.train.load_model import (
    Trained,
    load,
    load_engine,
    load_start_run,
    model_fingerprint,
)
from gptjax.train.ranges import check_numbers

# The section `eval`, for runs whose config is older than a field of it.
DEFAULTS = dict(
    stride=0,
    batch_size=32,
    documents=0,
    conversations=200,
    choices=4,
    max_tokens=48,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    resamples=1000,
    level=0.95,
    seed=0,
)
HARNESS = 'lm_eval:'  # before the name of a task of lm-evaluation-harness
SUITES = ('core', 'chatcore')  # lists of such tasks
OF_DOCUMENTS = ('perplexity', 'reply', 'choice')  # of RUN, or where it began


def evaluate(
    config: ConfigDict,
    workdir: Path,
    wanted: str | None = None,
    copy: Path | None = None,
    step: int | None = None,
) -> dict:
    """Evaluates a checkpoint of RUN: a table on the screen, and JSON.

    The best one's is RUN/eval.json, where tasks that an earlier call did for the same
    checkpoint stay, and where held-out perplexity always is, if RUN has documents.
    What a call beside this one writes meanwhile stays as well. `copy` gets what this
    call found alone. Beside `dialogue` stands what the run that RUN started from makes
    of the same conversations.

    Args:
        config: of the run.
        workdir: RUN.
        wanted: tasks, with commas between: 'perplexity', 'reply', 'choice',
            'dialogue' (or 'dialogue:RUN', of that run's conversations), 'task' (or
            'task:RUN', of that run's problems), files of items, 'lm_eval:NAME',
            'core', 'chatcore'. None: 'dialogue' after fine-tuning, else 'perplexity'.
        copy: another place for the JSON.
        step: of the checkpoint; None: the best.

    Returns:
        `results` (perplexity and bits per byte, by source) and `baselines`
        (compression and frequencies) where RUN has documents, `checkpoint_step`, and
        `tasks`, each as results.py has it.

    Raises:
        UserError: RUN has no checkpoint, no documents are held out, a task does not
            exist, or the config's eval section makes no sense.
    """
    settings = settings_of(config)
    mesh = make_mesh(config.mesh)
    shards = batch_shards(mesh)
    if settings.batch_size % shards:
        raise UserError(
            f'eval.batch_size={settings.batch_size} is not divisible by '
            f'mesh.data * mesh.fsdp = {shards}: use a multiple'
        )
    if step is not None and copy is None:
        raise UserError(
            f'--step={step}: eval.json is that of the best checkpoint: name another '
            'file, as --json=eval-1000.json'
        )
    if wanted is None:
        wanted = _default(config, workdir)
    names = names_in(wanted)
    talks = [name for name in names if _label(name) == 'dialogue']
    planned = {name: find_task(name, config) for name in names if name not in talks}
    asked = (
        dialogue_examples.read_items(_talked(talks, workdir), settings) if talks else []
    )
    with console.progress_bar('reading the model', 0):
        trained = load(config, workdir, mesh, step)
        fingerprint = model_fingerprint(trained)
    documents = None
    if validation_file(workdir).exists() or {*names} & {*OF_DOCUMENTS}:
        source = run_of_documents(config, workdir)
        documents = read_documents(validation_file(source))
        documents = some_documents(documents, settings.documents)

    written = workdir / 'eval.json'
    kept = _kept(written, fingerprint)
    measured, found = {}, {}
    subject, close = make_subject(config, settings, workdir, trained, mesh)
    try:
        if documents is not None and ('perplexity' in names or 'results' not in kept):
            summary, baselines, found['perplexity'] = held_out_perplexity.measure(
                lambda batch: subject.scores(batch)[0],
                documents,
                trained.tokenizer,
                source,
                config.data.context,
                settings.stride,
                settings.batch_size,
                run_task.bootstrap_of(settings),
                workdir,
            )
            measured = dict(results=summary, baselines=baselines)
        for run in planned.values():
            found.update(run(subject, documents))
        if talks:
            found['dialogue'] = dialogue_task.measure(subject, asked)
    finally:
        close()
    if talks:
        _ask_start(config, settings, workdir, mesh, asked, found['dialogue'])

    kept = {**kept, **_kept(written, fingerprint), **measured}  # as it is by now
    evaluation = dict(
        {n: _finite(kept[n]) for n in ('results', 'baselines') if n in kept},
        checkpoint_step=trained.step,
        run=workdir.name,
        fingerprint=fingerprint,
        tokenizer=trained.tokenizer.fingerprint,
        tasks={**kept.get('tasks', {}), **found},
    )
    if step is None:
        results.write(written, evaluation)
    if copy is not None:
        results.write(copy, dict(evaluation, tasks=found))
    heading = (
        f'{workdir.name}, step {trained.step:,}. Intervals: {settings.level:.0%} of '
        f'{settings.resamples:,} bootstrap resamples'
    )
    print(results.table(heading, found))
    return evaluation


def settings_of(config: ConfigDict) -> ConfigDict:
    """The section `eval`, whole.

    Raises:
        UserError: a field is out of its range.
    """
    settings = ConfigDict(DEFAULTS)
    settings.update(config.eval)
    check_numbers(ConfigDict(dict(eval=settings)))
    return settings


# ---- tasks by name


def names_in(wanted: str) -> list[str]:
    """The names between the commas, each once.

    Raises:
        UserError: there is none, or the results of two would have one name.
    """
    names = list(dict.fromkeys(n.strip() for n in wanted.split(',') if n.strip()))
    if not names:
        raise UserError('--tasks is empty: name some, as perplexity,reply,choice')
    labels = [_label(name) for name in names]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f'--tasks: two are called {label!r}: rename a file')
    return names


def _label(name: str) -> str:
    """What the result of a task is called."""
    if name.partition(':')[0] in ('dialogue', verifiable_replies.NAME):
        return name.partition(':')[0]
    return Path(name).stem if name.endswith('.jsonl') else name


def find_task(
    name: str, config: ConfigDict | None = None
) -> Callable[[Subject, Sequence[dict]], dict]:
    """A function from (subject, documents) to {name: result}.

    Raises:
        UserError: there is none, its file makes no sense, or it needs a package.
    """
    if name == 'perplexity':
        return lambda subject, documents: {}  # measured before all others
    if name in ('reply', 'choice'):
        return partial(_conversations, name)
    if name in SUITES or name.startswith(HARNESS):
        from gptjax.eval.harness import core_suites

        return core_suites.find(name)
    if _label(name) == verifiable_replies.NAME and config is not None:
        return verifiable_replies.find(name, config)
    if name.endswith('.jsonl') or Path(name).is_file():
        asked = examples.read_items(Path(name).expanduser())
        return partial(_file, Path(name).stem, asked)
    raise UserError(
        f'--tasks={name}: no such task: use perplexity, reply, choice, dialogue, task, '
        f'{", ".join(SUITES)}, {HARNESS}NAME or a file that ends in .jsonl'
    )


def _conversations(name, subject, documents):
    """The next turn of held-out conversations: written, or chosen."""
    settings = subject.settings
    replies = examples.reply_items(documents, settings.conversations, settings.seed)
    if name == 'reply':
        about = 'the next turn of held-out conversations, written by the model'
        return {name: run_task.generate(subject, replies, about)}
    about = 'the next turn of held-out conversations, among turns of others'
    choices = examples.choice_items(replies, settings.choices, settings.seed)
    return {name: run_task.choose(subject, choices, about)}


def _default(config, workdir):
    """What a run is asked where nobody says: of what it was trained on."""
    if (workdir / 'dialogue').is_dir():
        return 'dialogue'
    if 'task' in config and not (workdir / 'documents').is_dir():
        return 'task'
    return 'perplexity'


def _talked(names: Sequence[str], workdir: Path) -> Path:
    """The run whose conversations 'dialogue' or 'dialogue:RUN' asks."""
    _, _, run = names[0].partition(':')
    return Path(run).expanduser().absolute() if run else workdir


def _ask_start(config, settings, workdir, mesh, asked, found):
    """Puts what the run started from beside `found`; writes transcripts of both."""
    systems = {'this model': found}
    if 'start' in config:
        start = Path(config.start.run)
        try:
            with console.progress_bar('reading the model before', 0):
                earlier = load_start_run(config.start, mesh)
        except UserError as error:
            print(f'nothing to set beside dialogue: {error}')
        else:
            subject, close = make_subject(
                run_dir.read_config(start), settings, start, earlier, mesh
            )
            try:
                control = dialogue_task.measure(subject, asked)
            finally:
                close()
            dialogue_task.beside(found, f'{start.name}, before', control)
            systems[f'{start.name}, before'] = control
    dialogue_examples.write_transcripts(workdir, asked, systems)


def _file(name, asked, subject, documents):
    """A user's items; all of them, whatever eval.conversations says."""
    run = run_task.choose if asked[0].choices else run_task.generate
    return {name: run(subject, asked, f"{len(asked)} items of the user's")}


# ---- the model


def make_subject(
    config: ConfigDict, settings: ConfigDict, workdir: Path, trained: Trained, mesh
) -> tuple[Subject, Callable[[], None]]:
    """The model as tasks see it, and a function that ends what was begun for it.

    The engine that writes replies begins with the first of them.
    """
    engines = []

    def complete(prompts, parameters):
        if not engines:
            slots = settings.batch_size
            engines.append(load_engine(config, workdir, trained.step, slots=slots))
        return engines[0].complete(prompts, parameters)

    def close():
        for engine in engines:
            engine.close()

    subject = Subject(
        tokenizer=trained.tokenizer,
        template=config.chat.template if 'chat' in config else 'text',
        context=config.data.context,
        scores=token_scores(trained, mesh),
        complete=complete,
        settings=settings,
    )
    return subject, close


def _finite(figures):
    """Figures by source and so on; None where one is infinite or there is none."""
    if isinstance(figures, dict):
        return {name: _finite(its) for name, its in figures.items()}
    return results.finite(figures) if isinstance(figures, float) else figures


def _kept(path: Path, fingerprint: str) -> dict:
    """What eval.json has of the same weights and tokenizer."""
    evaluation = storage.read_json(path) if path.exists() else {}
    return evaluation if evaluation.get('fingerprint') == fingerprint else {}
