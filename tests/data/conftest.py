"""A run directory with two small sources, tokenised and packed."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.data.packed_documents import build_packed_documents
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_tokenizer

WORDS = 'the cat sat on a mat and then it ran off to see what the dog had done'.split()


@dataclasses.dataclass
class Run:
    config: ConfigDict
    workdir: Path
    documents: dict  # split -> source -> [(id, text)]

    @property
    def prepared(self):
        return self.workdir / 'prepared'

    @property
    def tokenizer(self):
        return Tokenizer.load(self.workdir / 'tokenizer' / 'tokenizer.model')

    def copy_tokenizer(self, workdir):
        path = Path('tokenizer', 'tokenizer.model')
        storage.write_bytes(workdir / path, (self.workdir / path).read_bytes())


def write_documents(path, documents):
    """Writes (id, source, text) as the stage `data` does."""
    lines = (dict(zip(('id', 'source', 'text'), one, strict=True)) for one in documents)
    storage.write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))


def make_run(
    workdir: Path,
    context=16,
    sizes=(60, 25),
    weights=(0.0, 0.0),
    words=WORDS,
    kind='bpe',
    augment=(),
) -> Run:
    """A prepared run with `sizes` training documents of the sources 'a' and 'b'."""
    draw = random.Random(0)
    documents = {}
    for split, share in {'train': 1.0, 'validation': 0.4}.items():
        every = [
            (f'{name}/{split}-{i}', name, ' '.join(draw.choices(words, k=1 + i % 23)))
            for name, size in zip('ab', sizes, strict=True)
            for i in range(int(size * share))
        ]
        draw.shuffle(every)
        write_documents(workdir / 'documents' / f'{split}.jsonl', every)
        documents[split] = {
            name: [(key, text) for key, source, text in every if source == name]
            for name in 'ab'
        }
    manifest = {'fingerprint': 'of the documents', 'licences': {'a': 'MIT', 'b': 'CC0'}}
    storage.write_json(workdir / 'documents' / 'manifest.json', manifest)
    config = ConfigDict(
        {
            'seed': 3,
            'data': {
                'sources': {'a': {'weight': weights[0]}, 'b': {'weight': weights[1]}},
                'context': context,
                'augment': augment,
                'workers': 2,
            },
            'tokenizer': {
                'kind': kind,
                'vocab_size': 290 + 20 * bool(augment),
                'train_characters': 10**6,
            },
            'train': {'batch_size': 8},
        }
    )
    train_tokenizer(config, workdir)
    build_packed_documents(config, workdir)
    return Run(config, workdir, documents)


@pytest.fixture(scope='session')
def run(tmp_path_factory) -> Run:
    """A run that tests only read."""
    return make_run(tmp_path_factory.mktemp('run'))


@pytest.fixture
def new_run(tmp_path):
    """A function that makes a new run directory."""
    return lambda **fields: make_run(tmp_path, **fields)
