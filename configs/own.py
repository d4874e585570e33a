"""Your own text: a file, a folder or a glob behind the colon.

    python -m gptjax pretrain --config configs/own.py:notes.txt --workdir runs/own
    python -m gptjax pretrain --config configs/own.py:jsonl=logs/ --workdir runs/own

The kind (text, jsonl, parquet, chat) is told by the ending, and a folder is one of
texts; `KIND=` before the path says it, as for chat files of `messages`, which end in
.jsonl too. The model is the default's, so is the time: for more text make both larger.
"""

import os

from configs import chitchat, common
from gptjax.core.files import count_endings
from gptjax.data.sources.open_source import SUFFIXES

OF_RECORDS = ('.csv', '.tsv', '.json')  # as text a model would learn their commas
CONVERT = (
    'convert it to JSON Lines, {"text": "…"} on each line, and use KIND=PATH, as '
    'configs/own.py:jsonl=mine.jsonl'
)


def get_config(variant: str = ''):
    if not variant:
        raise ValueError('configs/own.py: name your data, as configs/own.py:notes.txt')
    kind, equals, path = variant.partition('=')
    if not equals or kind not in SUFFIXES:
        kind, path = kind_of(variant), variant
    config = chitchat.get_config()
    config.data.sources = dict(own=common.source(kind, path))
    return config


def kind_of(path: str) -> str:
    """The first kind of source whose files end as this path does."""
    if os.path.isdir(os.path.expanduser(path)):
        return kind_of_folder(path)
    if path.endswith('/'):
        return 'text'
    kinds = [kind for kind, ends in SUFFIXES.items() if path.endswith(ends)]
    if path.endswith(OF_RECORDS):
        raise ValueError(f'configs/own.py:{path}: {CONVERT}')
    if not kinds:
        raise ValueError(
            f'configs/own.py:{path}: the ending tells no kind: use KIND=PATH, as '
            f'configs/own.py:text={path}; kinds are {", ".join(SUFFIXES)}'
        )
    return kinds[0]


def kind_of_folder(path: str) -> str:
    """'text', if there is any text in it or nothing yet."""
    found = count_endings(path, 'data.sources.own.path')
    if not found or found.keys() & {*SUFFIXES['text']}:
        return 'text'
    kinds = [kind for kind, ends in SUFFIXES.items() if found.keys() & {*ends}]
    fix = CONVERT
    if kinds:
        fix = f'use KIND=PATH, as configs/own.py:{kinds[0]}={path}; kinds are '
        fix += ', '.join(SUFFIXES)
    there = ', '.join(sorted(found)[:8])
    raise ValueError(
        f'configs/own.py:{path}: no text in this folder, but {there}: {fix}'
    )
