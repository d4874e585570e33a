"""Decontamination: finds documents that share words with evaluation sets.

As for GPT-3 (Brown et al. 2020, appendix C), a document is contaminated if it has an
n-gram of 13 words (data.decontaminate_ngram) of an example, without case and
punctuation. GPT-3 cuts 200 characters on both sides of the n-gram, and drops documents
that fall into more than ten parts; here the whole document is dropped.

An example of fewer words is compared as a whole: with 8 words or more, the least that
GPT-3 compares, it may stand anywhere in a document; with fewer, which many texts share
by chance, only a document of exactly these words is dropped.

`read_evaluation_sets` makes a table of n-grams, and `find_ngram` is a pure function of
a text and this table.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import (
    JSON_LINES,
    File,
    list_files,
    read_json_lines,
    read_lines,
)
from gptjax.data.quality.words import join_ngrams, split_words
from gptjax.data.sources.open_source import SUFFIXES
from gptjax.data.sources.records import field_names

FIELD = 'data.evaluation_sets'
ENDINGS = (*JSON_LINES, *SUFFIXES['text'])
SHORTEST = 8  # words that are looked for anywhere in a document
CONTEXTS = ('messages', 'text', 'question', 'prompt')  # fields of an example
ANSWERS = ('references', 'choices', 'answer')  # each may follow the contexts


class EvaluationNgrams(NamedTuple):
    """The n-grams of evaluation sets.

    examples: number of words -> n-gram -> the file and line of an example.
    shortest: the least number of words that are looked for anywhere in a document.
    """

    examples: dict[int, dict[str, str]]
    shortest: int


def read_evaluation_sets(data: ConfigDict) -> EvaluationNgrams:
    """Reads data.evaluation_sets: JSON Lines, text files, folders of these, globs.

    A line of JSON is an example of `eval --tasks`, a conversation with `messages`, or
    any record with some of the fields CONTEXTS and ANSWERS.

    Raises UserError for a set that is missing, or that has no words.
    """
    size = data.decontaminate_ngram
    examples = {}
    if not data.evaluation_sets:
        raise UserError(
            f"data.clean: 'decontaminate' needs {FIELD}: name the files that you "
            "evaluate with, such as ('tasks.jsonl',)"
        )
    for path in data.evaluation_sets:
        is_empty = True
        for file in list_files(path, ENDINGS, FIELD):
            for place, text in _read_examples(file):
                words = split_words(text)
                length = min(size, len(words))
                known = examples.setdefault(length, {}) if words else {}
                for ngram in join_ngrams(words, length):
                    known.setdefault(ngram, place)
                is_empty = is_empty and not words
        if is_empty:
            raise UserError(f'{FIELD}={path}: it has no words: give another file')
    return EvaluationNgrams(examples, min(size, SHORTEST))


def find_ngram(text: str, ngrams: EvaluationNgrams) -> tuple[str, str] | None:
    """(n-gram, place of its example) of an n-gram that the text has, or None."""
    words = split_words(text)
    for length in sorted(ngrams.examples, reverse=True):
        if length >= ngrams.shortest or length == len(words):
            known = ngrams.examples[length]
            for ngram in join_ngrams(words, length):
                if ngram in known:
                    return ngram, known[ngram]
    return None


def _read_examples(file: File) -> Iterator[tuple[str, str]]:
    """Yields (file and line, text) of all examples of a file.

    A text file is an example, and each of its lines is one, as it may be a list.
    """
    if not file.name.endswith(JSON_LINES):
        lines = [line for _, line in read_lines(file, FIELD)]
        yield from ((f'{file.name}:{n}', line) for n, line in enumerate(lines, 1))
        yield file.name, ''.join(lines)
        return
    for number, location, record in read_json_lines(file, FIELD):
        if not {*CONTEXTS, *ANSWERS} & {*record}:
            raise UserError(
                f'{location} has none of the fields {", ".join((*CONTEXTS, *ANSWERS))}'
                f', it has {field_names(record)}: rename the field of the text'
            )
        context = ' '.join(_find_texts([record.get(name) for name in CONTEXTS]))
        answers = [*_find_texts([record.get(name) for name in ANSWERS])]
        for answer in answers or ['']:
            yield f'{file.name}:{number}', f'{context} {answer}'


def _find_texts(value) -> Iterator[str]:
    """The texts in a value of a record: of lists, messages and parts of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _find_texts(value.get('content', value.get('text')))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _find_texts(inner)
