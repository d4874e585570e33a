"""What the files of a run say about its model, for the page and for model cards.

Every fact comes from a file of the run or of the runs before it. A file that is missing
or damaged leaves its part out; it does not keep the server from starting.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptjax.eval.report.provenance import stage_of
from gptjax.eval.report.tables import FIGURES_OF_KIND, label_of
from gptjax.train.load_model import IMPORTED

SMALL = 1e9  # parameters
# For each data set of a run: its count of examples in the manifest, their name on the
# card, and the name of the source where the manifest has only one.
DATA_SETS = dict(
    documents=('documents', 'documents', ''),
    dialogue=('conversations', 'conversations', ''),
    ratings=('items', 'rated conversations', 'ratings'),
    pairs=('pairs', 'preference pairs', 'pairs'),
)

# ---- what is known


class CardSource(BaseModel):
    name: str
    version: str
    licence: str = Field(description='All of `licences`, for readers.')
    licences: list[str] = Field(description="Those of its records. '': not stated.")
    amount: int | None
    unit: str = Field(description='Of `amount`: documents, conversations, …')


class CardStage(BaseModel):
    run: str
    stage: str | None = Field(description='None: the files do not say.')
    step: int | None
    sources: list[CardSource] = Field(description='What it was trained on.')


class CardFigure(BaseModel):
    label: str
    value: float
    interval: tuple[float, float] | None
    baselines: dict[str, float]


class CardTask(BaseModel):
    name: str
    about: str
    level: float = Field(description='Confidence level of the intervals.')
    figures: list[CardFigure]


class CardSkill(BaseModel):
    name: str
    problems: int = Field(description='Held-out problems that it was measured on.')
    accuracy: float = Field(description='Share of right replies at temperature 0.')
    interval: tuple[float, float] | None = Field(description='Of `accuracy`.')
    accuracy_drawn: float = Field(description='The same at temperature 1.')


# ---- the files, as far as they are read


class File(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Start(File):
    run: str = ''
    step: int = 0


class RewardPart(File):
    function: str = ''
    run: str = ''


class Task(File):
    name: str
    path: str = ''
    chats: str = ''
    rewards: dict[str, RewardPart] = {}


class Ppo(File):
    ptx: float = 0
    ptx_run: str = ''


class Config(File):
    start: Start = Start()
    task: Task | None = None
    ppo: Ppo = Ppo()
    policy: dict | None = None  # the section of reinforcement learning


class Environment(File):
    command: str


class Source(File):
    version: str = ''
    licence: str = ''
    licences: dict[str, int] = {}  # of records that state one: their number
    splits: dict[str, dict[str, Any]]


class ManifestSettings(File):
    licences: list[str] = Field([], alias='data.licences')


class Manifest(File):
    settings: ManifestSettings = ManifestSettings()
    sources: dict[str, Source] = {}
    splits: dict[str, dict[str, Any]]


class Figure(File):
    value: float | None
    interval: tuple[float | None, float | None] | None = None
    baselines: dict[str, 'Figure'] = {}


class Bootstrap(File):
    level: float


class Result(File):
    kind: str
    about: str
    bootstrap: Bootstrap
    figures: dict[str, Figure]


class Message(File):
    role: str
    content: str


class Item(File):
    source: str = ''
    messages: list[Message] = []  # older files have none


class VerifiableResult(Result):
    items: list[Item]


class Evaluation(File):
    checkpoint_step: int
    fingerprint: str
    tasks: dict[str, dict]


Kind = TypeVar('Kind', bound=File)


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    """A file of a run; None if it is missing, damaged or has another form."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = error.strerror
    except ValidationError as error:
        problem = _describe(error)
    print(f'{path}: {problem}: it is ignored', file=sys.stderr)
    return None


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return ': '.join(['.'.join(map(repr, first['loc'])), first['msg']]).lstrip(': ')


class ModelFacts(NamedTuple):
    """What is known of the weights of a checkpoint.

    stages: the first one first.
    results: of the tasks in eval.json; empty if these are of other weights.
    remarks: sentences for readers.
    """

    stages: list[CardStage]
    results: dict[str, Result]
    remarks: list[str]
    is_evaluated: bool


def read_facts(
    workdir: Path, step: int, fingerprint: str, num_params: int
) -> ModelFacts:
    """The facts of RUN's checkpoint `step`, whose weights have this fingerprint."""
    stages = trace_stages(workdir, step)
    remarks, results = [], {}
    if num_params < SMALL:
        remarks.append('It is a small model: expect mistakes.')
    if all(stage.sources for stage in stages):
        remarks.append('It knows nothing beyond the data it was trained on.')
    else:
        remarks.append('Its files do not name all data that it was trained on.')
    evaluation = _read(workdir / 'eval.json', Evaluation)
    if evaluation is None:
        remarks.append('It has not been evaluated, so there are no figures.')
    elif evaluation.fingerprint != fingerprint:
        remarks.append(
            'This checkpoint has not been evaluated: the figures in eval.json are '
            f'those of other weights, of step {evaluation.checkpoint_step:,}.'
        )
        evaluation = None
    else:
        results = dict(_results(evaluation))
    return ModelFacts(stages, results, remarks, evaluation is not None)


# ---- what it was trained on


def trace_runs(workdir: Path, step: int) -> list[tuple[Path, int, Config | None]]:
    """(run, step of its checkpoint, config) from the first run to RUN.

    A run whose config cannot be read is the first one.
    """
    traced = {}
    while workdir not in traced:
        config = _read(workdir / 'config.json', Config)
        traced[workdir] = workdir, step, config
        if config and config.start.run:
            workdir, step = Path(config.start.run), config.start.step
    return [*traced.values()][::-1]


def trace_stages(workdir: Path, step: int) -> list[CardStage]:
    """The stages from the first run to the checkpoint `step` of RUN.

    A run whose config cannot be read has no sources, nor has an imported one: what the
    stage `data` makes in it is for evaluation. Reward models have no step.
    """
    stages = []
    for run, its_step, config in trace_runs(workdir, step)[::-1]:
        is_trained = config and not (run / IMPORTED).exists()
        sources = _built_sources(run) if is_trained else []
        reward_runs = []
        if config and config.policy is not None and config.task:
            sources += _problem_sources(config.task)
            if config.ppo.ptx:
                text = Path(config.ppo.ptx_run).expanduser() / 'documents'
                sources += manifest_sources(text) or [
                    _unknown_source(text.parent.name, 'documents')
                ]
            parts = config.task.rewards.values()
            reward_runs = [
                Path(p.run).expanduser() for p in parts if p.function == 'model'
            ]
        stages.append(_describe_stage(run, its_step, sources))
        for reward in reward_runs:
            stages.append(_describe_stage(reward, None, _built_sources(reward)))
    return stages[::-1]


def _describe_stage(run: Path, step: int | None, sources: list) -> CardStage:
    """The stage is None unless it is a plain word: it comes from a file."""
    stage = None
    if environment := _read(run / 'environment.json', Environment):
        with contextlib.suppress(ValueError):  # a quotation mark without its partner
            stage = stage_of(environment.model_dump())
            stage = stage if re.fullmatch('[a-z_]{1,32}', stage) else None
    return CardStage(run=run.name, stage=stage, step=step, sources=sources)


def _built_sources(run: Path) -> list[CardSource]:
    """The sources of all data sets in RUN."""
    return [source for name in DATA_SETS for source in manifest_sources(run / name)]


def manifest_sources(folder: Path) -> list[CardSource]:
    """The sources of one data set, with the sizes of their training splits.

    Licences of records are those that `data.licences` allows.
    """
    manifest = _read(folder / 'manifest.json', Manifest)
    if manifest is None:
        return []
    count, unit, name = DATA_SETS[folder.name]
    sources = manifest.sources or {name: Source(splits=manifest.splits)}
    allowed = {licence.strip().casefold() for licence in manifest.settings.licences}
    found = []
    for name, source in sources.items():
        licences = [
            licence
            for licence in source.licences
            if not allowed or licence.casefold() in allowed
        ] or [source.licence]
        several = ', '.join(licence or 'not stated' for licence in licences)
        amount = source.splits.get('train', {}).get(count)
        amount = amount if isinstance(amount, int) else None
        about = dict(version=source.version, licences=licences)
        about['licence'] = several if len(licences) > 1 else licences[0]
        found.append(CardSource(name=name, amount=amount, unit=unit, **about))
    return found


def _problem_sources(task: Task) -> list[CardSource]:
    """The sources of the problems and prompts of reinforcement learning."""
    sources = []
    if not task.path:
        sources.append(_unknown_source(task.name, 'problems'))
    for path in filter(None, (task.path, task.chats)):
        folder = Path(path).expanduser()
        known = manifest_sources(folder) if folder.name in DATA_SETS else []
        sources += known or [_unknown_source(folder.name, 'problems')]
    return sources


def _unknown_source(name: str, unit: str) -> CardSource:
    """A source without a manifest."""
    plain = dict(version='', licence='', licences=[''], amount=None)
    return CardSource(name=name, unit=unit, **plain)


# ---- what was measured


def _results(evaluation: Evaluation) -> Iterator[tuple[str, Result]]:
    for task, value in evaluation.tasks.items():
        kind = VerifiableResult if value.get('kind') == 'verifiable' else Result
        try:
            yield task, kind.model_validate(value)
        except ValidationError as error:
            problem = _describe(error)
            print(f'eval.json: {task!r}: {problem}: it is ignored', file=sys.stderr)


def shown_figures(result: Result) -> list[tuple[str, Figure]]:
    """(name, figure) of a result, without those by skill or source."""
    names = FIGURES_OF_KIND.get(result.kind) or [
        figure for figure in result.figures if '/' not in figure
    ]
    found = [(name, result.figures.get(name)) for name in names]
    return [
        (name, figure) for name, figure in found if figure and figure.value is not None
    ]


def describe_task(name: str, result: Result) -> CardTask:
    """The task's figures; those by skill or source stay in eval.json."""
    figures = []
    for figure_name, figure in shown_figures(result):
        others = figure.baselines.items()
        baselines = {label: f.value for label, f in others if f.value is not None}
        about = dict(label=label_of(figure_name), interval=interval_of(figure))
        figures.append(CardFigure(value=figure.value, baselines=baselines, **about))
    level = result.bootstrap.level
    return CardTask(name=name, about=result.about, level=level, figures=figures)


def interval_of(figure: Figure) -> tuple[float, float] | None:
    return figure.interval if figure.interval and None not in figure.interval else None


def measured_skills(result: VerifiableResult) -> list[tuple[CardSkill, str]]:
    """(skill, question) of each skill; the question is '' if none is a single message.

    The question is the first one in the file, whether or not the reply was right.
    """
    skills = []
    counts = Counter(item.source for item in result.items)
    for name in filter(None, counts):
        # A single skill has no figures of its own: they are those of the task.
        suffix = f'/{name}' if len(counts) > 1 else ''
        accuracy, drawn = (
            result.figures.get(figure + suffix, Figure(value=None))
            for figure in ('accuracy', 'accuracy_drawn')
        )
        if None in (accuracy.value, drawn.value):
            continue
        questions = (
            item.messages[0].content.strip()
            for item in result.items
            if item.source == name and [m.role for m in item.messages] == ['user']
        )
        skill = CardSkill(
            name=name,
            problems=counts[name],
            accuracy=accuracy.value,
            interval=interval_of(accuracy),
            accuracy_drawn=drawn.value,
        )
        skills.append((skill, next(questions, '')))
    return skills
