"""Pretraining on your own text: a file, a folder or a glob after the colon.

    python -m gptjax pretrain --config configs/own.py:notes.txt --workdir runs/own
    python -m gptjax pretrain --config configs/own.py:jsonl=logs/ --workdir runs/own

The ending decides the kind of the source (text, jsonl, parquet or chat); a folder is
read as text. Write `KIND=` before the path for another kind, such as `chat` for
conversations, whose files also end in .jsonl. Model and training time are those of
configs/chitchat.py: increase both for more text.
"""

import os

from configs import chitchat, common
from gptjax.core.files import count_endings
from gptjax.data.sources.open_source import SUFFIXES

TABLES = ('.csv', '.tsv', '.json')  # not text: a model would learn the commas
CONVERT = (
    'convert it to JSON Lines, {"text": "…"} on each line, and use KIND=PATH, such as '
    'configs/own.py:jsonl=mine.jsonl'
)


def get_config(variant: str = ''):
    if not variant:
        raise ValueError('configs/own.py: add your data, e.g. configs/own.py:notes.txt')
    kind, equals, path = variant.partition('=')
    if not equals or kind not in SUFFIXES:
        kind, path = kind_of(variant), variant
    config = chitchat.get_config()
    config.data.sources = dict(own=common.source(kind, path))
    return config


def kind_of(path: str) -> str:
    """The first kind of source that has the ending of this path."""
    if os.path.isdir(os.path.expanduser(path)):
        return kind_of_folder(path)
    if path.endswith('/'):
        return 'text'
    kinds = [kind for kind, ends in SUFFIXES.items() if path.endswith(ends)]
    if path.endswith(TABLES):
        raise ValueError(f'configs/own.py:{path}: {CONVERT}')
    if not kinds:
        raise ValueError(
            f'configs/own.py:{path}: unknown ending: use KIND=PATH, such as '
            f'configs/own.py:text={path}; kinds are {", ".join(SUFFIXES)}'
        )
    return kinds[0]


def kind_of_folder(path: str) -> str:
    """'text' if the folder has a text file, or no file yet."""
    found = count_endings(path, 'data.sources.own.path')
    if not found or found.keys() & {*SUFFIXES['text']}:
        return 'text'
    kinds = [kind for kind, ends in SUFFIXES.items() if found.keys() & {*ends}]
    fix = CONVERT
    if kinds:
        fix = f'use KIND=PATH, such as configs/own.py:{kinds[0]}={path}; kinds are '
        fix += ', '.join(SUFFIXES)
    there = ', '.join(sorted(found)[:8])
    raise ValueError(
        f'configs/own.py:{path}: no text in this folder, but {there}: {fix}'
    )
