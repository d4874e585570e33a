"""The parts that stages make before they train, each told in a line.

A part is there already, or is made; either way its function gives (the line, whether
it was there).
"""

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

Made = tuple[str, bool]


def documents(config: ConfigDict, workdir: Path) -> Made:
    """RUN/documents."""
    from gptjax.data.documents import build_documents

    there = (workdir / 'documents' / 'manifest.json').exists()
    made = build_documents(config, workdir)
    splits = made['splits']
    counts = [f'{split["documents"]:,} {name}' for name, split in splits.items()]
    return f'documents: {", ".join(counts)}{_passed_over(made)}', there


def dialogue(config: ConfigDict, workdir: Path) -> Made:
    """RUN/dialogue."""
    from gptjax.data import packed_conversations

    there = (workdir / 'dialogue' / 'manifest.json').exists()
    made = packed_conversations.prepare_dialogue(config, workdir)
    counts = [
        f'{sum(source["turns"] for source in sources.values()):,} {name}'
        for name, sources in made['splits'].items()
    ]
    told = f'replies: {", ".join(counts)}{_cut(made)}{_passed_over(made)}'
    return told, there


def _cut(made: dict) -> str:
    """What of the conversations found no room."""
    from gptjax.data import packed_conversations

    total, told = Counter(), ''
    for sources in made['splits'].values():
        for source in sources.values():
            names = ('turns', 'predicted_tokens', 'cut_turns', 'cut_tokens')
            total.update({name: source.get(name, 0) for name in names})
    room = f'data.context={made["context"]}'
    if total['cut_turns']:
        share = total['cut_tokens'] / (total['cut_tokens'] + total['predicted_tokens'])
        told = (
            f'; {total["cut_turns"]:,} of {total["turns"]:,} replies cut, {share:.0%} '
            f'of all their tokens, to fit {room}'
        )
    skipped = [source['skipped'] for source in made['sources'].values()]
    if long := sum(its.get(packed_conversations.LONG_SYSTEM, 0) for its in skipped):
        told += (
            f'; {long:,} conversations left out, as the system message takes more than '
            f'half of {room}'
        )
    return told


def _passed_over(made: dict) -> str:
    """Which files lay beside those that were read."""
    told = ''
    for name, source in made['sources'].items():
        if others := source.get('passed_over'):
            told += (
                f'; {name}: {source["files"]:,} files read, {sum(others.values()):,} '
                f'passed over ({", ".join(sorted(others)[:8])})'
            )
    return told


def ratings(config: ConfigDict, workdir: Path) -> Made:
    """RUN/ratings; the audit, where it is new."""
    from gptjax.data import rating_audit
    from gptjax.data.ratings import build_ratings

    there = (workdir / 'ratings' / 'manifest.json').exists()
    made = build_ratings(config, workdir)
    if 'audit' in made and not there:
        print(rating_audit.audit_text(made['audit']))
    counts = [f'{its["items"]:,} {name}' for name, its in made['splits'].items()]
    train = made['splits']['train']
    told = f'ratings: {", ".join(counts)}; {train["pairs"]:,} training pairs'
    if 'preferences' in made:
        return f'{told}; {made["preferences"]["equal"]:,} equal ones skipped', there
    return f'{told}, of which {train["equal_pairs"]:,} are equal and skipped', there


def pairs(config: ConfigDict, workdir: Path) -> Made:
    """RUN/pairs."""
    from gptjax.data.preference_pairs import build_pairs

    there = (workdir / 'pairs' / 'manifest.json').exists()
    made = build_pairs(config, workdir)
    counts = [f'{split["pairs"]:,} {name}' for name, split in made['splits'].items()]
    counts += [f'{count:,} {why} skipped' for why, count in made['skipped'].items()]
    return f'pairs: {", ".join(counts)}', there


def selected(config: ConfigDict, workdir: Path) -> Made:
    """RUN/selected."""
    from gptjax.post import select_replies

    there = (workdir / 'selected' / 'manifest.json').exists()
    return select_replies.describe(select_replies.select(config, workdir)), there


def problems(config: ConfigDict, workdir: Path) -> Made:
    """RUN/task."""
    from gptjax.post.tasks import verifiable_tasks

    there = (workdir / 'task' / 'manifest.json').exists()
    counts = verifiable_tasks.write_task(config, workdir)['problems']
    told = ', '.join(f'{count:,} {part}' for part, count in counts.items())
    return f'problems: {told}', there


def vocabulary(config: ConfigDict, workdir: Path) -> Made:
    """RUN/tokenizer."""
    from gptjax.tokenizer import train_tokenizer

    there = (workdir / 'tokenizer' / 'manifest.json').exists()
    made = train_tokenizer.train_tokenizer(config, workdir)
    bytes_per_token = made['bytes_per_token']
    return (
        f'tokenizer: {made["vocab_size"]:,} pieces, {bytes_per_token:.2f} bytes each',
        there,
    )


def shards(config: ConfigDict, workdir: Path) -> Made:
    """RUN/prepared."""
    from gptjax.data import packed_documents

    there = (workdir / 'prepared' / 'manifest.json').exists()
    splits = packed_documents.prepare(config, workdir)['splits']
    tokens = [
        f'{sum(source["predicted_tokens"] for source in sources.values()):,} {name}'
        for name, sources in splits.items()
    ]
    return f'tokens: {", ".join(tokens)}', there
