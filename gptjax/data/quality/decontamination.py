"""Decontamination: finds documents that share words with evaluation sets.

As for GPT-3 (Brown et al. 2020, appendix C), a document is contaminated if it has an
n-gram of 13 words (data.decontaminate_ngram) of an example, without case and
punctuation. GPT-3 cuts 200 characters on both sides of the n-gram, and drops documents
that fall into more than ten parts; here the whole document is dropped.

An example of fewer words is compared as a whole: with 8 words or more, the least that
GPT-3 compares, it may stand anywhere in a document; with fewer, which many texts share
by chance, only a document of exactly these words is dropped.

Documents are compared after the cleaning steps before `decontaminate`, so an example is
looked for as it is written and as those steps change it.

`read_evaluation_sets` makes a table of n-grams, and `find_ngram` is a pure function of
a text and this table.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
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
from gptjax.data.cleaning.cleaning_steps import STEPS, Options, read_options
from gptjax.data.quality.words import join_ngrams, split_words
from gptjax.data.sources.open_source import SUFFIXES
from gptjax.data.sources.records import field_names

FIELD = 'data.evaluation_sets'
ENDINGS = (*JSON_LINES, *SUFFIXES['text'])
SHORTEST = 8  # words that are looked for anywhere in a document
CONTEXTS = ('messages', 'text', 'question', 'prompt')  # fields of an example
ANSWERS = ('references', 'choices', 'answer')  # each may follow the contexts
# Fields that are no text of an example: ids, sources, links and licences.
_NO_TEXT = re.compile(
    r'(?i:(?:.*[_\- ])?(?:ids?|uuid|urls?|uri|links?|sources?|licen[cs]es?))'
    r'|.*[a-z](?:Ids?|ID|Urls?|URL)'
)
_LINK = re.compile(r'\s*\w+://\S+\s*')


class EvaluationNgrams(NamedTuple):
    """The n-grams of evaluation sets.

    examples: number of words -> n-gram -> the file and line of an example.
    shortest: the least number of words that are looked for anywhere in a document.
    """

    examples: dict[int, dict[str, str]]
    shortest: int


def read_evaluation_sets(
    data: ConfigDict, transforms: Iterable[Sequence[str]] = ()
) -> EvaluationNgrams:
    """Reads data.evaluation_sets: JSON Lines, text files, folders of these, globs.

    A line of JSON is an example of `eval --tasks`, a conversation with `messages`, or
    any record: all of its texts are read except ids, sources, links and licences.

    Args:
        transforms: for each source, the steps that change a text before it is compared.

    Raises UserError for a set that is missing, or that has no words.
    """
    size = data.decontaminate_ngram
    examples, options = {}, read_options(data)
    if not data.evaluation_sets:
        raise UserError(
            f"data.clean: 'decontaminate' needs {FIELD}: name the files that you "
            "evaluate with, such as ('tasks.jsonl',)"
        )
    for path in data.evaluation_sets:
        is_empty = True
        for file in list_files(path, ENDINGS, FIELD):
            for place, text in _read_examples(file):
                changed = (_transform(text, steps, options) for steps in transforms)
                for form in dict.fromkeys([text, *changed]):
                    words = split_words(form)
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


def _transform(text: str, steps: Sequence[str], options: Options) -> str:
    for name in steps:
        text = STEPS[name](text, options)
    return text


def _read_examples(file: File) -> Iterator[tuple[str, str]]:
    """Yields (file and line, text) of all examples of a file.

    A text file is an example, and each of its lines is one, as it may be a list. Of a
    record, a field that is not known is an example, also each part of it, and also
    after the contexts.
    """
    if not file.name.endswith(JSON_LINES):
        lines = [line for _, line in read_lines(file, FIELD)]
        yield from ((f'{file.name}:{n}', line) for n, line in enumerate(lines, 1))
        yield file.name, ''.join(lines)
        return
    for number, location, record in read_json_lines(file, FIELD):
        place, fields = f'{file.name}:{number}', _text_fields(record)
        context = ' '.join(_find_texts([fields.pop(n, None) for n in CONTEXTS]))
        answers = [*_find_texts([fields.pop(n, None) for n in ANSWERS])]
        others = [[*_find_texts(value)] for value in fields.values()]
        if not any(others) and not {*CONTEXTS, *ANSWERS} & {*record}:
            raise UserError(
                f'{location} has no field with a text, except ids, sources and links, '
                f'it has {field_names(record)}: rename the field of the text'
            )
        for answer in answers or ['']:
            yield place, f'{context} {answer}'
        for parts in filter(None, others):
            whole = ' '.join(parts)
            for text in dict.fromkeys([*parts, whole, f'{context} {whole}']):
                yield place, text


def _text_fields(record: dict) -> dict:
    return {name: record[name] for name in record if not _NO_TEXT.fullmatch(name)}


def _find_texts(value) -> Iterator[str]:
    """The texts in a value: of lists, objects, messages and parts of messages."""
    if isinstance(value, str):
        if not _LINK.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        known = [value[name] for name in ('content', 'text') if name in value]
        yield from _find_texts(known[:1] or [*_text_fields(value).values()])
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _find_texts(inner)
