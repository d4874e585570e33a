"""The report's parts about a run that was trained on conversations, as HTML."""

from html import escape

from gptjax.eval.results import short


def lead(evaluation: dict | None) -> tuple[str, list[tuple[str, str]]]:
    """(the page's first sentence, facts beside it); ('', []) without the figure."""
    task = ((evaluation or {}).get('tasks') or {}).get('dialogue')
    if not task:
        return '', []
    figure = task['figures']['reply_bits']
    others = [
        f'{short(other["value"])} of {escape(label)}'
        for label, other in figure.get('baselines', {}).items()
        if label.endswith(', before')
    ]
    beside = f', beside {" and ".join(others)}' if others else ''
    text = (
        f'<b>{short(figure["value"])} bits per byte</b> of replies in conversations '
        f'that it was not trained on{beside}.'
    )
    return text, [('bits per byte of replies', short(figure['value']))]


def transcripts(run: dict) -> str:
    """Held-out conversations and what models reply; nothing where none was asked."""
    if not run['transcripts']:
        return ''
    parts = []
    for transcript in run['transcripts']:
        said = [_said(m['role'], m['content']) for m in transcript['messages']]
        said.append(_said('what the person answered', transcript['reference']))
        for name, reply in transcript['replies'].items():
            for key, label in (('reply', 'likeliest'), ('drawn', 'temperature 1')):
                said.append(_said(f'{name}, {label}', reply[key], marked=True))
        parts.append(f'<div class="sample">{"".join(said)}</div>')
    return (
        '<h2>Transcripts</h2><p class="soft">Held-out conversations, chosen by chance, '
        f'and what follows them; replies of models in colour.</p>{"".join(parts)}'
    )


def _said(speaker, text, marked=False):
    text = f'<mark>{escape(text)}</mark>' if marked else escape(text)
    return f'<p><small>{escape(speaker)}</small><br>{text}</p>'


def data(manifest: dict) -> str:
    """What RUN/dialogue holds, and what was left out of it."""
    rows = []
    for split, sources in manifest['splits'].items():
        for name, counts in sources.items():
            said = ''.join(f'<td>{counts.get(cell, 0):,}</td>' for cell in COUNTS)
            rows.append(
                f'<tr><td>{escape(split)}</td><td>{escape(name)}</td>{said}</tr>'
            )
    left_out = []
    for name, source in manifest['sources'].items():
        skipped = ', '.join(f'{n:,} {why}' for why, n in source['skipped'].items())
        origin = escape(source.get('version') or source['path'])
        licence = escape(source['licence'] or '–')
        left_out.append(
            f'<p>{escape(name)} ({origin}, {licence}): '
            f'{source["read"]["conversations"]:,} conversations read; left out '
            f'{escape(skipped.replace("_", " ") or "none")}.</p>'
        )
    return (
        '<h2>Data</h2><div class="wide"><table><tr><th>split</th><th>source</th>'
        f'{"".join(f"<th>{name}</th>" for name in COUNTS.values())}</tr>'
        f'{"".join(rows)}</table></div>{"".join(left_out)}'
    )


# What the manifest counts, and the column's name.
COUNTS = dict(
    views='views',
    pieces='pieces',
    turns='replies',
    predicted_tokens='tokens trained on',
    cut_turns='replies cut',
    cut_tokens='tokens cut off them',
    cut_prompts='turns before them cut',
)
