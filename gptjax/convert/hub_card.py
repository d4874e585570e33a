"""README.md of an exported folder: a model card as the Hugging Face Hub reads it.

The header is YAML, which the Hub checks when the folder is uploaded; the text is for
readers. All of it comes from the files of the run and of the runs before it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gptjax.core import artifact, storage
from gptjax.core.config import complete
from gptjax.core.run_dir import from_json
from gptjax.eval import model_facts
from gptjax.eval.model_facts import CardStage, ModelFacts, VerifiableResult
from gptjax.eval.report import provenance
from gptjax.eval.report.run_cost import format_seconds, measure_cost
from gptjax.eval.report.tables import format_number, format_short, label_of
from gptjax.models.parameter_count import size
from gptjax.train.load_model import IMPORTED, Trained, model_fingerprint

# Identifiers of the Hub; any other licence is 'other' there, with a name.
LICENCES = (
    *('mit', 'apache-2.0', 'bsd', 'bsd-2-clause', 'bsd-3-clause', 'isc', 'zlib'),
    *('cc', 'cc0-1.0', 'cc-by-2.0', 'cc-by-2.5', 'cc-by-3.0', 'cc-by-4.0'),
    *('cc-by-sa-3.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc-by-nd-4.0'),
    *('cc-by-nc-nd-4.0', 'cc-by-nc-sa-3.0', 'cc-by-nc-sa-4.0', 'gfdl'),
    *('gpl-2.0', 'gpl-3.0', 'lgpl-3.0', 'agpl-3.0', 'mpl-2.0', 'pddl', 'unlicense'),
    *('odc-by', 'odbl', 'cdla-permissive-2.0', 'openrail', 'llama3', 'gemma'),
)
ALIASES = {
    'apache': 'apache-2.0',
    'apache-2': 'apache-2.0',
    'cc0': 'cc0-1.0',
    'gplv3': 'gpl-3.0',
}
NOT_STATED = 'not stated'
HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
LANGUAGE_TEXTS, LANGUAGE_CHARACTERS, LANGUAGE_SHARE = 200, 100, 0.1
# For each data set of a run: what its manifest counts as read.
COUNTED = dict(documents='documents', dialogue='conversations', pairs='pairs')


def write_card(
    folder: Path,
    name: str,
    workdir: Path,
    trained: Trained,
    architecture: str,
    rounded: bool = False,
) -> None:
    """Writes README.md into an exported folder; `name` will be that of the model.

    rounded: the weights in the folder are those of the run in bfloat16.
    """
    num_params = size(trained.params)
    fingerprint = model_fingerprint(trained)
    facts = model_facts.read_facts(workdir, trained.step, fingerprint, num_params)
    if rounded and facts.is_evaluated:
        facts.remarks.append(
            'The figures were measured before the weights were rounded to bfloat16.'
        )
    runs = [run for run, _, _ in model_facts.trace_runs(workdir, trained.step)]
    header = make_header(name, facts, runs, (folder / 'chat_template.jinja').exists())
    settings = trained.settings
    lines = [
        f'# {escape(name)}',
        '',
        f'A language model ({architecture}) of {format_short(num_params)} parameters, '
        f'with a context of {settings.context:,} tokens and a vocabulary of '
        f'{trained.tokenizer.vocab_size:,}. It was made with gptjax by '
        + ', then '.join(f'`{stage.stage or "?"}`' for stage in facts.stages)
        + '.',
        *_how_to_run(name, facts.stages),
        *_data(facts.stages, runs),
        *_training(runs, facts.stages),
        *_evaluation(facts),
        *_limits(facts, header.get('language')),
    ]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000)
    storage.write_text(
        folder / 'README.md', f'---\n{front}---\n' + '\n'.join(lines) + '\n'
    )


# ---- the header


def make_header(
    name: str, facts: ModelFacts, runs: Sequence[Path], chats: bool
) -> dict[str, Any]:
    """The YAML; a field that the files do not tell is left out."""
    stages = [stage.stage for stage in facts.stages if stage.stage]
    header = choose_licence(
        [
            licence
            for stage in facts.stages
            for source in stage.sources or [None]
            for licence in (source.licences if source else [NOT_STATED])
        ]
    )
    fields = dict(
        language=find_languages(runs),
        library_name='transformers',
        pipeline_tag='text-generation',
        base_model=_base_model(runs[0]),
        tags=[
            *dict.fromkeys(['gptjax', *stages, *(['conversational'] if chats else [])])
        ],
    )
    header |= {field: value for field, value in fields.items() if value}
    if evaluated := _model_index(facts):
        header['model-index'] = [dict(name=name, results=evaluated)]
    return header


def choose_licence(stated: Sequence[str]) -> dict[str, str]:
    """The one licence of all data; else 'other', with a name made of all of them.

    stated: of every source; NOT_STATED for a stage whose data is not known.
    """
    names = sorted(
        {hub_licence(licence) or licence or NOT_STATED for licence in stated}
    )
    if len(names) == 1 and names[0] in LICENCES:
        return dict(license=names[0])
    joined = '-and-'.join(names or [NOT_STATED])
    slug = re.sub('[^a-z0-9.]+', '-', joined.lower()).strip('-')
    return dict(license='other', license_name=slug[:96] or 'not-stated')


def hub_licence(stated: str) -> str | None:
    """'Apache 2.0' → 'apache-2.0'; None for a licence that is not in LICENCES."""
    words = re.sub(r'licen[cs]e|version|[()]', ' ', stated.lower())
    name = '-'.join(re.split(r'[\s_-]+', words.strip()))
    name = ALIASES.get(name, name)
    return name if name in LICENCES else None


def find_languages(runs: Sequence[Path]) -> list[str]:
    """The languages of the held-out texts, by py3langid; [] where these are short."""
    import py3langid

    counts = Counter()
    for run in runs:
        for name in COUNTED:
            path = run / name / 'validation.jsonl'
            for text in _first_texts(path) if path.exists() else ():
                if len(text) >= LANGUAGE_CHARACTERS:
                    language, _ = py3langid.classify(text[:2000])
                    counts[language] += len(text)
    return [
        language
        for language, count in counts.most_common()
        if count >= LANGUAGE_SHARE * counts.total()
    ]


def _first_texts(path: Path) -> Iterator[str]:
    with open(path, 'rb') as file:
        for line, _ in zip(file, range(LANGUAGE_TEXTS), strict=False):
            record = storage.parse_undamaged(line) or {}
            messages = record.get('messages') or record.get('prompt') or []
            contents = [m.get('content', '') for m in messages if isinstance(m, dict)]
            yield record.get('text') or '\n'.join(contents)


def _base_model(first: Path) -> str | None:
    """The Hub's name of an imported model, if its files tell it."""
    manifest = artifact.find_manifest(first / IMPORTED)
    if manifest is None:
        return None
    config = storage.read_undamaged(first / IMPORTED / 'config.json') or {}
    cached = re.search('models--([^/]+)--([^/]+)/snapshots', manifest.get('folder', ''))
    name = '/'.join(cached.groups()) if cached else config.get('_name_or_path') or ''
    return name if HUB_ID.fullmatch(name) else None


def _model_index(facts: ModelFacts) -> list[dict]:
    """An entry for each task, in the form that the Hub has for results."""
    entries = []
    for task, result in facts.results.items():
        metrics = []
        for figure_name, figure in model_facts.shown_figures(result):
            metric = dict(
                type=figure_name, name=label_of(figure_name), value=figure.value
            )
            if interval := model_facts.interval_of(figure):
                level = result.bootstrap.level
                metric['args'] = dict(interval=list(interval), level=level)
            metrics.append(metric)
        if metrics:
            kind = dict(type='text-generation', name='Text Generation')
            data = dict(type='held-out', name=f'{task}: {result.about}')
            entries.append(dict(task=kind, dataset=data, metrics=metrics))
    return entries


# ---- the text


def escape(text: str) -> str:
    """A text of a run in Markdown: no markup, one line."""
    return re.sub(r'([\\`*_{}\[\]<>#|!])', r'\\\1', ' '.join(str(text).split()))


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, with escaped cells."""
    lines = [heading, ['---'] * len(heading), *(map(escape, row) for row in rows)]
    return ['', *(f'| {" | ".join(cells)} |' for cells in lines)]


def _how_to_run(name: str, stages: Sequence[CardStage]) -> list[str]:
    prompt = [
        "inputs = tokenizer('Hello', return_tensors='pt')",
    ]
    if any(stage.stage not in ('pretrain', 'import') for stage in stages):
        prompt = [
            "messages = [{'role': 'user', 'content': 'Hello!'}]",
            'inputs = tokenizer.apply_chat_template(',
            "    messages, add_generation_prompt=True, return_tensors='pt', "
            'return_dict=True',
            ')',
        ]
    return [
        *('', '## How to run it', '', '```python'),
        'from transformers import AutoModelForCausalLM, AutoTokenizer',
        '',
        f'folder = {json.dumps(name)}  # this folder, or its name on the Hub',
        'tokenizer = AutoTokenizer.from_pretrained(folder)',
        'model = AutoModelForCausalLM.from_pretrained(folder)',
        *prompt,
        'output = model.generate(**inputs, max_new_tokens=64)',
        'print(tokenizer.decode(output[0]))',
        *('```', '', 'With gptjax:', '', '```'),
        'python -m gptjax import --from FOLDER --workdir runs/it',
        'python -m gptjax chat --workdir runs/it',
        '```',
    ]


def _data(stages: Sequence[CardStage], runs: Sequence[Path]) -> list[str]:
    rows = [
        (
            f'{stage.stage or "?"} ({stage.run})',
            *(source.name, source.version or '–', source.licence or NOT_STATED),
            '–' if source.amount is None else f'{source.amount:,} {source.unit}',
        )
        for stage in stages
        for source in stage.sources
    ]
    rows += [
        (f'{stage.stage or "?"} ({stage.run})', 'not named', '–', NOT_STATED, '–')
        for stage in stages
        if not stage.sources
    ]
    heading = ('stage (run)', 'source', 'version', 'licence', 'trained on')
    lines = ['', '## Data', *_table(heading, rows)]
    lines += [
        '',
        'The field `license` above is that of the data if all of it is known and has '
        'the same one, and `other` if not. Check what the licences of the data allow, '
        'and change it.',
    ]
    cleaned = {}  # a later run may have cleaned the same data in the same way
    for run in runs:
        for source, text in _cleaning(run):
            cleaned.setdefault(
                (source, text), f'- **{source}** ({escape(run.name)}): {text}'
            )
    if cleaned:
        lines += ['', '### Cleaning, and what was removed', '', *cleaned.values()]
    return lines


def _cleaning(run: Path) -> Iterator[tuple[str, str]]:
    """(source, what was read and removed) for each source of a run."""
    for name, unit in COUNTED.items():
        manifest = artifact.find_manifest(run / name) or {}
        for source, counts in manifest.get('sources', {}).items():
            parts = [f'{counts.get("read", {}).get(unit, 0):,} {unit} read']
            if kept := counts.get('kept'):
                parts[0] += f', {kept[unit]:,} kept'
            steps = counts.get('steps', {})
            parts += [_step(step, changes) for step, changes in steps.items()]
            parts += [
                f'{count:,} left out: {escape(reason.replace("_", " "))}'
                for reason, count in counts.get('skipped', {}).items()
                if count and reason not in steps
            ]
            yield escape(source), '; '.join(filter(None, parts)) + '.'


def _step(step: str, counts: Mapping[str, int]) -> str:
    units = dict(
        documents_changed='changed',
        documents_dropped='dropped',
        characters_removed='characters removed',
    )
    amounts = [f'{counts[n]:,} {label}' for n, label in units.items() if counts.get(n)]
    return f'{escape(step)}: {", ".join(amounts)}' if amounts else ''


def _training(runs: Sequence[Path], stages: Sequence[CardStage]) -> list[str]:
    rows, commands = [], []
    trained = [stage for stage in stages if stage.step is not None]  # a stage a run
    for run, stage in zip(runs, trained, strict=True):
        value = storage.read_undamaged(run / 'config.json')
        environment = storage.read_undamaged(run / 'environment.json') or {}
        if value is None:
            continue
        config = from_json(complete(value))
        cost = measure_cost(config, run)
        tokens = '–' if cost.tokens is None else format_short(cost.tokens)
        optim = f'{config.optim.name}, {config.optim.learning_rate:g}'
        optim += f', {config.optim.schedule}'
        rows.append(
            (
                f'{stage.stage or "?"} ({run.name})',
                *(f'{cost.updates:,}', str(config.train.batch_size), tokens),
                *(optim, format_seconds(cost.seconds)),
                environment.get('processor') or '–',
                str(environment.get('revision') or '–')[:12],
            )
        )
        commands += provenance.commands(environment) if environment else []
    heading = (
        *('stage (run)', 'updates', 'batch', 'tokens', 'optimizer, rate, schedule'),
        *('time', 'processor', 'revision of gptjax'),
    )
    lines = ['', '## Training', *_table(heading, rows)]
    if commands:
        lines += [
            '',
            'Made by:',
            '',
            *('    ' + ' '.join(line.splitlines()) for line in commands),
        ]
    return lines


def _evaluation(facts: ModelFacts) -> list[str]:
    lines = ['', '## Evaluation']
    if not facts.is_evaluated:
        return [*lines, '', 'This checkpoint has not been evaluated.']
    rows, levels, about = [], set(), []
    for task, result in facts.results.items():
        levels.add(f'{result.bootstrap.level:.0%}')
        card = model_facts.describe_task(task, result)
        about.append(f'- {escape(task)}: {escape(card.about)}')
        for figure in card.figures:
            low, high = figure.interval or (None, None)
            others = figure.baselines.items()
            rows.append(
                (
                    task,
                    figure.label,
                    format_number(figure.value),
                    f'{format_number(low)} … {format_number(high)}',
                    '; '.join(f'{format_number(v)} {n}' for n, v in others) or '–',
                )
            )
    heading = ('task', 'figure', 'value', f'{", ".join(levels)} interval', 'baselines')
    lines += ['', 'On examples that were held out from training:', '', *about]
    lines += _table(heading, rows)
    skills = [
        skill
        for result in facts.results.values()
        if isinstance(result, VerifiableResult)
        for skill, _ in model_facts.measured_skills(result)
    ]
    if skills:
        heading = ('skill', 'problems', 'right at temperature 0', 'at temperature 1')
        skills = sorted(skills, key=lambda skill: -skill.accuracy)
        numbers = [
            (
                s.name,
                f'{s.problems}',
                f'{s.accuracy:.2f}',
                f'{s.accuracy_drawn:.2f}',
            )
            for s in skills
        ]
        lines += _table(heading, numbers)
    return lines


def _limits(facts: ModelFacts, languages: Sequence[str] | None) -> list[str]:
    known = ', '.join(languages or []) or 'not known'
    remarks = [
        *facts.remarks,
        f'The language of its training texts: {known}. Others were not tried.',
        'Only the tasks above were measured: not whether its replies are safe, fair or '
        'true.',
        'The training texts were cleaned as said above, and by nothing else: they may '
        'hold errors, prejudice and personal data, and so may what it writes.',
    ]
    return ['', '## Limits', '', *(f'- {remark}' for remark in remarks)]
