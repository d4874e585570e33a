"""The second half of the report: where a run came from, and how to make it again."""

import shlex
from html import escape

from gptjax.eval.report import dialogue_table

BEFORE = ('data', 'tokenizer', 'prepare')  # parts of `pretrain`
AFTERWARDS = ('eval', 'sample', 'report')
FIRST_STAGES = ('data', 'pretrain')  # they may meet a run directory with no config


def sections(run: dict) -> list[str]:
    """Data, tokenizer, config, environment and commands, as HTML."""
    return [_data(run), _config(run), _environment(run)]


def missing(what: str, stage: str) -> str:
    """The paragraph in the place of something that is not there."""
    flags = '--config … --workdir …' if stage in FIRST_STAGES else '--workdir …'
    return (
        f'<p class="missing">{escape(what)}: run '
        f'<code>python -m gptjax {stage} {flags}</code></p>'
    )


def _data(run):
    documents, tokenizer, prepared = run['documents'], run['tokenizer'], run['prepared']
    if not documents and run['dialogue']:
        return dialogue_table.data(run['dialogue'])
    if not documents and run['ratings']:
        return ''  # rating_report.py tells of it
    if not documents:
        return '<h2>Data</h2>' + missing('There are no documents', 'data')
    parts = ['<h2>Data</h2>', _splits(documents, prepared)]
    for name, source in documents.get('sources', {}).items():
        parts.append(_source(name, source))
    if tokenizer:
        per_token = tokenizer.get('bytes_per_token')
        parts.append(
            f'<h3>Tokenizer</h3><p>{tokenizer["vocab_size"]:,} tokens'
            + (f', {per_token:.2f} bytes of text each' if per_token else '')
            + f'. <span class="soft">SHA-256 <code>{tokenizer["sha256"][:16]}…</code>'
            '</span></p>'
        )
    return ''.join(parts)


def _splits(documents, prepared):
    """Documents, bytes and tokens of each split."""
    rows = []
    for split, counts in documents.get('splits', {}).items():
        tokens = '–'
        if prepared:
            its = prepared['splits'].get(split, {}).values()
            tokens = f'{sum(source["predicted_tokens"] for source in its):,}'
        rows.append(
            f'<tr><td>{escape(split)}</td><td>{counts["documents"]:,}</td>'
            f'<td>{counts["bytes"]:,}</td><td>{tokens}</td></tr>'
        )
    return (
        '<div class="wide"><table><tr><th>split</th><th>documents</th><th>bytes</th>'
        f'<th>tokens to predict</th></tr>{"".join(rows)}</table></div>'
    )


def _source(name, source):
    """What each cleaning step did to one source."""
    read, kept = source['read'], source['kept']
    rows = [
        f'<tr><td>as read</td><td></td><td></td><td></td>'
        f'<td>{read["documents"]:,}</td></tr>'
    ]
    left = read['documents']
    for step, count in source['steps'].items():
        left -= count['documents_dropped']
        cells = (
            count['documents_changed'],
            count['documents_dropped'],
            count['characters_removed'],
            left,
        )
        said = ''.join(f'<td>{cell:,}</td>' if cell else '<td>–</td>' for cell in cells)
        rows.append(f'<tr><td>{escape(step.replace("_", " "))}</td>{said}</tr>')
    origin = ', '.join(
        escape(str(source[field]))
        for field in ('version', 'path', 'licence')
        if source.get(field)
    )
    return (
        f'<h3>Cleaning of {escape(name)}</h3><p class="soft">{origin}. '
        f'{kept["documents"]:,} of {read["documents"]:,} documents and '
        f'{kept["characters"]:,} of {read["characters"]:,} characters were kept.</p>'
        '<div class="wide"><table><tr><th>step</th><th>documents<br>changed</th>'
        '<th>documents<br>dropped</th><th>characters<br>removed</th>'
        f'<th>documents<br>left</th></tr>{"".join(rows)}</table></div>'
    )


def _config(run):
    if not run['config']:
        return '<h2>Config</h2>' + missing('There is no config.json', 'pretrain')
    parts = ['<h2>Config</h2>']
    alone = {}
    for section, fields in run['config'].items():
        if isinstance(fields, dict):
            parts.append(_fields(section, dict(flatten(fields))))
        else:
            alone[section] = fields
    if alone:
        parts.insert(1, _table(alone))
    return ''.join(parts)


def _environment(run):
    environment = run['environment']
    if not environment:
        return '<h2>Environment</h2>' + missing(
            'There is no environment.json', 'pretrain'
        )
    fields = dict(flatten(environment))
    return (
        '<h2>Make it again</h2>'
        f'<pre>{escape(chr(10).join(commands(environment)))}</pre>'
        '<h2>Environment</h2>' + _table(fields)
    )


def commands(environment: dict) -> list[str]:
    """The shell commands that make the run from its code's revision, from nothing.

    The stages before `pretrain` are part of it; another is its own command.
    """
    words = shlex.split(environment.get('command') or '')
    config = environment.get('config') or _flags(words, '--config')
    flags = config + _flags(words, '--workdir')
    where = _flags(words, '--workdir') or ['--workdir', 'RUN']
    lines = []
    if environment.get('revision'):
        revision = environment['revision']
        lines.append(f'git checkout {revision.rstrip("+")}')
        if revision.endswith('+'):
            lines[-1] += '   # and changes that were not committed'
    stage = stage_of(environment)
    others = ('report',) if stage == 'reward' else AFTERWARDS
    calls = [(stage, flags), *((name, where) for name in others)]
    lines += [shlex.join(['python', '-m', 'gptjax', name, *its]) for name, its in calls]
    return lines


def stage_of(environment: dict) -> str:
    """The stage that makes the run, which `pretrain` is where that is not told."""
    words = shlex.split(environment.get('command') or '')[3:]
    others = (*BEFORE, *AFTERWARDS)
    return words[0] if words and words[0] not in others else 'pretrain'


def flatten(fields: dict, prefix: str = '') -> list[tuple[str, object]]:
    """('model.width', 192) of nested dicts, in their order."""
    pairs = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs += flatten(value, f'{prefix}{name}.')
        else:
            pairs.append((prefix + name, value))
    return pairs


def _flags(words, name):
    """The words of flags `name`, `name=…` and `name.field=…`."""
    kept = []
    for place, word in enumerate(words):
        if word == name:
            kept += words[place : place + 2]
        elif word.startswith((f'{name}=', f'{name}.')):
            kept.append(word)
    return kept


def _fields(title, fields):
    return f'<details><summary>{escape(title)}</summary>{_table(fields)}</details>'


def _table(fields):
    rows = ''.join(
        f'<tr><td>{escape(name)}</td><td><code>{escape(_value(value))}</code></td></tr>'
        for name, value in fields.items()
    )
    return f'<table class="fields">{rows}</table>'


def _value(value):
    if isinstance(value, list):
        return ', '.join(map(str, value)) or '()'
    return '–' if value is None else repr(value) if value == '' else str(value)
