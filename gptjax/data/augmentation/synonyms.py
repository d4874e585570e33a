"""Reads the user's table of synonyms.

TSV:         big<TAB>large<TAB>huge
JSON Lines:  {"word": "big", "synonyms": ["large", "huge"]}
"""

from collections.abc import Iterator

from gptjax.core.console import UserError
from gptjax.core.files import JSON_LINES, File, list_files, read_json_lines, read_lines

FIELD = 'data.synonyms'
EXAMPLE = '{"word": "big", "synonyms": ["large", "huge"]}'


def read_synonyms(path: str) -> dict[str, tuple[str, ...]]:
    """The synonyms of each word in lower case; UserError names the file and line."""
    if not path:
        raise UserError(
            f"{FIELD}='' and data.augment has replace_synonyms: give a file with lines "
            f'of a word and its synonyms, separated by tabs, or such as {EXAMPLE}'
        )
    table = {}
    for file in list_files(path, ('.tsv', *JSON_LINES), FIELD):
        read = _read_jsonl if file.path.endswith(JSON_LINES) else _read_tsv
        for location, word, synonyms in read(file):
            usable = word and synonyms and all(synonyms)
            if not usable or any('\n' in text for text in (word, *synonyms)):
                raise UserError(
                    f'{location} has no word, no synonym, or an empty one: write a '
                    f'word, a tab and a synonym, or {EXAMPLE}'
                )
            key = word.lower()
            table[key] = (*table.get(key, ()), *synonyms)
    if not table:
        raise UserError(f'{FIELD}={path}: no line has a word: add some')
    return table


def _read_tsv(file: File) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in read_lines(file, FIELD):
        if line.strip():
            word, *synonyms = (text.strip() for text in line.rstrip('\r\n').split('\t'))
            yield f'{FIELD}={file.path}: line {number}', word, synonyms


def _read_jsonl(file: File) -> Iterator[tuple[str, str, list[str]]]:
    for _, location, value in read_json_lines(file, FIELD, EXAMPLE):
        word, synonyms = value.get('word'), value.get('synonyms')
        texts = [word, *synonyms] if isinstance(synonyms, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'{location} has no "word" with a list of "synonyms": write {EXAMPLE}'
            )
        yield location, word, synonyms
