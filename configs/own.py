"""Your own text: a file, a folder or a glob behind the colon.

    python -m gptjax pretrain --config configs/own.py:notes.txt --workdir runs/own
    python -m gptjax pretrain --config configs/own.py:jsonl=logs/ --workdir runs/own

The kind (text, jsonl, parquet, chat) is told by the ending; `KIND=` before the path
says it, as for chat files of `messages`, which end in .jsonl too. The model is the
default's, so is the time: for more text make both larger.
"""

from configs import chitchat, common

KINDS = ('text', 'jsonl', 'parquet', 'chat')
ENDINGS = {'.jsonl': 'jsonl', '.parquet': 'parquet'}


def get_config(variant: str = ''):
    if not variant:
        raise ValueError('configs/own.py: name your data, as configs/own.py:notes.txt')
    kind, equals, path = variant.partition('=')
    if not equals or kind not in KINDS:
        path = variant
        plain = path.removesuffix('.gz')
        kind = next((k for end, k in ENDINGS.items() if plain.endswith(end)), 'text')
    config = chitchat.get_config()
    config.data.sources = dict(own=common.source(kind, path))
    return config
