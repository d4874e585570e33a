"""The validation documents of a run: what its model was not trained on."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError


def read_documents(path: Path) -> list[dict]:
    """The documents of a split, as the stage `data` wrote them."""
    with open(path, encoding='utf-8') as lines:
        return [json.loads(line) for line in lines]


def some_documents(documents: list[dict], number: int) -> list[dict]:
    """So many of the documents, in their order; 0: all.

    Which ones is decided by a hash of their ids: a file is in the order of its
    sources, and its first lines stand for the first source alone.
    """
    if not number:
        return documents
    key = lambda place: storage.fingerprint(['eval', documents[place]['id']])
    chosen = sorted(range(len(documents)), key=key)[:number]
    return [documents[place] for place in sorted(chosen)]


def held_out_texts(config: ConfigDict, workdir: Path, number: int) -> list[str]:
    """So many validation documents of RUN, or of the run it began with, and so on.

    Raises:
        UserError: none of them has any.
    """
    documents = read_documents(validation_file(run_of_documents(config, workdir)))
    if not documents:
        raise UserError(f'{workdir}: no validation documents to measure on')
    return [document['text'] for document in some_documents(documents, number)]


def validation_file(workdir: Path) -> Path:
    """Where RUN's validation documents are, if it has any."""
    return workdir / 'documents' / 'validation.jsonl'


def run_of_documents(config: ConfigDict, workdir: Path) -> Path:
    """RUN, or the run it began with, and so on: the first that has documents.

    A conversation's name decides whether it is held out, in all of them alike.

    Raises:
        UserError: none of them has any.
    """
    folder = workdir
    while not validation_file(folder).exists():
        start = config.get('start', {}).get('run', '')
        if not start or not (Path(start) / 'config.json').exists():
            raise UserError(
                f'{workdir}: no validation documents, in it or in the runs that it '
                'started from: run the stage data first'
            )
        folder = Path(start)
        config = run_dir.read_config(folder)
    return folder
