"""The second half of the report: where a run came from, and how to make it again."""

import shlex
from html import escape

from gptjax.eval.report.post_training_tables import dialogue_data_section
from gptjax.eval.report.tables import html_table

STAGES_BEFORE = ('data', 'tokenizer', 'prepare')  # `pretrain` runs them itself
STAGES_AFTER = ('eval', 'sample', 'report')
FIRST_STAGES = ('data', 'pretrain')  # the run directory may have no config yet


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
        return dialogue_data_section(run['dialogue'])
    if not documents and run['ratings']:
        return ''  # its ratings stand further up
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
            sources = prepared['splits'].get(split, {}).values()
            tokens = f'{sum(source["predicted_tokens"] for source in sources):,}'
        rows.append((split, f'{counts["documents"]:,}', f'{counts["bytes"]:,}', tokens))
    return html_table(rows, ('split', 'documents', 'bytes', 'tokens to predict'))


def _source(name, source):
    """What each cleaning step did to one source."""
    read, kept = source['read'], source['kept']
    left = read['documents']
    rows = [('as read', '', '', '', f'{left:,}')]
    for step, count in source['steps'].items():
        left -= count['documents_dropped']
        names = ('documents_changed', 'documents_dropped', 'characters_removed')
        numbers = [*(count[name] for name in names), left]
        cells = [f'{number:,}' if number else '–' for number in numbers]
        rows.append((step.replace('_', ' '), *cells))
    heading = (
        *('step', 'documents\nchanged', 'documents\ndropped'),
        *('characters\nremoved', 'documents\nleft'),
    )
    origin = ', '.join(
        escape(str(source[field]))
        for field in ('version', 'path', 'licence')
        if source.get(field)
    )
    return (
        f'<h3>Cleaning of {escape(name)}</h3><p class="soft">{origin}. '
        f'{kept["documents"]:,} of {read["documents"]:,} documents and '
        f'{kept["characters"]:,} of {read["characters"]:,} characters were kept.</p>'
        f'{html_table(rows, heading)}'
    )


def _config(run):
    if not run['config']:
        return '<h2>Config</h2>' + missing('There is no config.json', 'pretrain')
    top_level, sections = {}, ''
    for name, value in run['config'].items():
        if isinstance(value, dict):
            summary = f'<summary>{escape(name)}</summary>'
            sections += f'<details>{summary}{_fields_table(value)}</details>'
        else:
            top_level[name] = value
    table = _fields_table(top_level) if top_level else ''
    return f'<h2>Config</h2>{table}{sections}'


def _environment(run):
    environment = run['environment']
    if not environment:
        return '<h2>Environment</h2>' + missing(
            'There is no environment.json', 'pretrain'
        )
    return (
        '<h2>Make it again</h2>'
        f'<pre>{escape(chr(10).join(commands(environment)))}</pre>'
        '<h2>Environment</h2>' + _fields_table(environment)
    )


def commands(environment: dict) -> list[str]:
    """The shell commands that make the run from its code's revision, from nothing.

    The stages before `pretrain` are part of it; another is its own command.
    """
    words = shlex.split(environment.get('command') or '')
    config = environment.get('config') or _flags(words, '--config')
    flags = config + _flags(words, '--workdir')
    workdir_flag = _flags(words, '--workdir') or ['--workdir', 'RUN']
    lines = []
    if environment.get('revision'):
        revision = environment['revision']
        lines.append(f'git checkout {revision.rstrip("+")}')
        if revision.endswith('+'):
            lines[-1] += '   # and changes that were not committed'
    stage = stage_of(environment)
    later_stages = ('report',) if stage == 'reward' else STAGES_AFTER
    calls = [(stage, flags), *((name, workdir_flag) for name in later_stages)]
    lines += [shlex.join(['python', '-m', 'gptjax', name, *f]) for name, f in calls]
    return lines


def stage_of(environment: dict) -> str:
    """The stage that makes the run; `pretrain` where the environment has none."""
    words = shlex.split(environment.get('command') or '')[3:]
    others = (*STAGES_BEFORE, *STAGES_AFTER)
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
    for number, word in enumerate(words):
        if word == name:
            kept += words[number : number + 2]
        elif word.startswith((f'{name}=', f'{name}.')):
            kept.append(word)
    return kept


def _fields_table(fields):
    rows = ''.join(
        f'<tr><td>{escape(name)}</td><td><code>{escape(_value(value))}</code></td></tr>'
        for name, value in flatten(fields)
    )
    return f'<table class="fields">{rows}</table>'


def _value(value):
    if isinstance(value, list):
        return ', '.join(map(str, value)) or '()'
    return '–' if value is None else repr(value) if value == '' else str(value)
