"""The quality rules of Gopher, C4 and FineWeb, as cleaning steps.

A rule is a pure function `(text, options) -> text`, or None to drop the text, with the
published threshold beside it. GROUPS names the rules of a paper in its order, those of
C4 in the order of its code. They are meant for web pages; none is on by default.

Words are the parts between white space. Lines are those with text: empty lines are
borders of paragraphs, which stay.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from gptjax.core.console import UserError
from gptjax.core.files import list_files, read_lines
from gptjax.data.quality.words import NO_SPACES

GROUPS = dict(
    gopher=(
        *('gopher_word_count', 'gopher_mean_word_length', 'gopher_symbols'),
        *('gopher_bullets', 'gopher_ellipses', 'gopher_alphabetic_words'),
        *('gopher_stop_words', 'gopher_repetition'),
    ),
    c4=(
        *('c4_long_words', 'c4_citations', 'c4_terminal_punctuation'),
        *('c4_short_lines', 'c4_lorem_ipsum', 'c4_javascript', 'c4_curly_brackets'),
        *('c4_policy_lines', 'c4_sentences', 'c4_repeated_spans'),
        # c4_bad_words needs a file
    ),
    fineweb=(
        *('fineweb_line_punctuation', 'fineweb_duplicated_characters'),
        'fineweb_short_lines',
    ),
)
ELLIPSES = ('...', '…')


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split('\n')) if line]


def _share(values: Sequence, holds: Callable) -> float:
    """The share of values for which `holds`; 0 of no values."""
    return sum(map(bool, map(holds, values))) / max(1, len(values))


def _count_repeats(parts: Sequence[str]) -> tuple[int, int]:
    """The number and the characters of parts that occurred before."""
    repeats = Counter(parts) - Counter({*parts})
    return repeats.total(), sum(len(part) * n for part, n in repeats.items())


# ---- Gopher (Rae et al. 2021, appendix A.1.1; its table A1 for repetition)

WORDS = 50, 100_000
MEAN_WORD_LENGTH = 3, 10
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
MIN_STOP_WORDS = 2
STOP_WORDS = frozenset('the be to of and that have with'.split())
MAX_REPEATED_PARTS = 0.3  # of the lines, and of the paragraphs
MAX_REPEATED_PART_CHARACTERS = 0.2
MAX_TOP_NGRAM = {2: 0.2, 3: 0.18, 4: 0.16}  # share of characters by n
MAX_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
_BULLET = re.compile(r'[•‣◦▪●○∙·]|[-*–]\s')


def gopher_word_count(text: str, options) -> str | None:
    """Drops text of fewer than 50 or more than 100,000 words."""
    return text if WORDS[0] <= len(text.split()) <= WORDS[1] else None


def gopher_mean_word_length(text: str, options) -> str | None:
    """Drops text whose words have fewer than 3 or more than 10 characters on average.

    Punctuation marks count, as they are parts of words here.
    """
    words = text.split()
    mean = sum(map(len, words)) / max(1, len(words))
    return text if MEAN_WORD_LENGTH[0] <= mean <= MEAN_WORD_LENGTH[1] else None


def gopher_symbols(text: str, options) -> str | None:
    """Drops text with more than one '#', or one ellipsis, for ten words."""
    limit = MAX_SYMBOLS_PER_WORD * len(text.split())
    ellipses = sum(map(text.count, ELLIPSES))
    return text if max(text.count('#'), ellipses) <= limit else None


def gopher_bullets(text: str, options) -> str | None:
    """Drops text of which more than 90% of the lines begin with a bullet point."""
    return text if _share(_lines(text), _BULLET.match) <= MAX_BULLET_LINES else None


def gopher_ellipses(text: str, options) -> str | None:
    """Drops text of which more than 30% of the lines end with an ellipsis."""
    share = _share(_lines(text), lambda line: line.endswith(ELLIPSES))
    return text if share <= MAX_ELLIPSIS_LINES else None


def gopher_alphabetic_words(text: str, options) -> str | None:
    """Drops text of which fewer than 80% of the words have a letter."""
    share = _share(text.split(), lambda word: any(map(str.isalpha, word)))
    return text if share >= MIN_ALPHABETIC_WORDS else None


def gopher_stop_words(text: str, options) -> str | None:
    """Drops text with fewer than two of eight English words: the, be, to, of, …"""
    found = {*re.findall(r'[a-z]+', text.lower())} & STOP_WORDS
    return text if len(found) >= MIN_STOP_WORDS else None


def gopher_repetition(text: str, options) -> str | None:
    """Drops text that repeats lines, paragraphs or n-grams of words (table A1).

    An occurrence after the first is a repetition. The share of n-grams is one of the
    characters in words, of which each counts once. For n from 2 to 4 it is that of all
    occurrences of the most frequent n-gram, if it occurs twice.
    """
    paragraphs = filter(None, map(str.strip, re.split(r'\n\s*\n', text)))
    for parts in (_lines(text), [*paragraphs]):
        repeats, characters = _count_repeats(parts)
        if repeats > MAX_REPEATED_PARTS * len(parts):
            return None
        if characters > MAX_REPEATED_PART_CHARACTERS * sum(map(len, parts)):
            return None
    words = text.split()
    total = sum(map(len, words))
    for n, limit in (MAX_TOP_NGRAM | MAX_REPEATED_NGRAMS).items():
        places = {}
        for start in range(len(words) - n + 1):
            places.setdefault((*words[start : start + n],), []).append(start)
        if n in MAX_TOP_NGRAM:
            top = max(places.values(), key=len, default=[])
            starts = top if len(top) > 1 else []
        else:
            starts = [start for found in places.values() for start in found[1:]]
        covered = {place for start in starts for place in range(start, start + n)}
        if sum(len(words[place]) for place in covered) > limit * total:
            return None
    return text


# ---- C4 (Raffel et al. 2020, section 2.2). The order, and the numbers of words and
# sentences, are those of the code that made it, tensorflow_datasets/text/c4_utils.py.

MAX_WORD_CHARACTERS = 1000
END_MARKS = ('.', '!', '?', '"', '”')
MIN_LINE_WORDS = 5
MIN_SENTENCES = 3
SPAN_SENTENCES = 3
POLICY = (
    *('terms of use', 'privacy policy', 'cookie policy'),
    *('uses cookies', 'use of cookies', 'use cookies'),
)
_CITATION = re.compile(r'\[(?:\d*|edit|citation needed)\]')


def _keep_lines(text: str, keeps: Callable[[str], bool]) -> str:
    """The lines that `keeps` is true for, and one empty line between paragraphs."""
    lines = text.split('\n')
    kept = [line for line in lines if not line.strip() or keeps(line.strip())]
    return text if len(kept) == len(lines) else _join_lines(kept)


def _join_lines(lines: list[str]) -> str:
    return re.sub(r'\n\s*\n\s*\n', '\n\n', '\n'.join(lines)).strip('\n')


def c4_long_words(text: str, options) -> str:
    """Removes lines with a word of more than 1,000 characters.

    Others stay: 'A word\\nor two' → 'A word\\nor two'
    """
    return _keep_lines(
        text, lambda line: max(map(len, line.split())) <= MAX_WORD_CHARACTERS
    )


def c4_terminal_punctuation(text: str, options) -> str:
    """Removes lines that do not end with '.', '!', '?' or '"', or end with '...'.

    'It is.\\nHome\\nSo...\\n\\nNo!' → 'It is.\\n\\nNo!'
    """
    return _keep_lines(
        text, lambda line: line.endswith(END_MARKS) and not line.endswith('...')
    )


def c4_short_lines(text: str, options) -> str:
    """Removes lines of fewer than 5 words.

    'one two three four\\n1 2 3 4 5' → '1 2 3 4 5'
    """
    return _keep_lines(text, lambda line: len(line.split()) >= MIN_LINE_WORDS)


def c4_sentences(text: str, options) -> str | None:
    """Drops text of fewer than 3 sentences, in the language data.languages[0]."""
    count = sum(map(len, _split_sentences(text, options)))
    return text if count >= MIN_SENTENCES else None


def c4_bad_words(text: str, options) -> str | None:
    """Drops text that contains a word or phrase of the file data.bad_words."""
    path = options.bad_words  # '' is refused before anything is read
    return None if path and read_bad_words(path).search(text) else text


@lru_cache
def read_bad_words(path: str) -> re.Pattern:
    """A pattern for any of the words in a text file, one in a line, in any case."""
    if not path:
        raise UserError(
            "data.clean: 'c4_bad_words' needs data.bad_words: give a text file with "
            'one word in a line'
        )
    words = []
    for file in list_files(path, ('.txt',), 'data.bad_words'):
        words += [line.strip() for _, line in read_lines(file, 'data.bad_words')]
    if not any(words):
        raise UserError(f'data.bad_words={path}: no word in it: write one in a line')
    escaped = '|'.join(re.escape(word) for word in words if word)
    # No letter before and after a word, except in scripts without spaces.
    letter, alone = rf'[^\W{NO_SPACES}]', f'[{NO_SPACES}]'
    return re.compile(
        rf'(?:(?<!{letter})|(?={alone}))(?:{escaped})(?:(?!{letter})|(?<={alone}))',
        re.IGNORECASE,
    )


def c4_javascript(text: str, options) -> str:
    """Removes lines with the word Javascript: 'Use JavaScript.\\nHi' → 'Hi'"""
    return _keep_lines(text, lambda line: 'javascript' not in line.lower())


def c4_lorem_ipsum(text: str, options) -> str | None:
    """Drops text with 'lorem ipsum'."""
    return None if 'lorem ipsum' in text.lower() else text


def c4_curly_brackets(text: str, options) -> str | None:
    """Drops text with '{', which is code."""
    return None if '{' in text else text


def c4_citations(text: str, options) -> str:
    """Removes marks of Wikipedia: 'Old[1].[citation needed] [x]' → 'Old. [x]'"""
    return _CITATION.sub('', text)


def c4_policy_lines(text: str, options) -> str:
    """Removes lines about terms of use, privacy and cookies.

    'Our Privacy Policy\\nHello' → 'Hello'
    """
    return _keep_lines(text, lambda line: not any(p in line.lower() for p in POLICY))


class Spans(NamedTuple):
    """What `c4_repeated_spans` needs of a text.

    sentences: those of each line, also of empty ones.
    keys: a 16-byte hash of each three sentences in a row; white space and case do not
        count.
    """

    sentences: list[list[str]]
    keys: list[bytes]


def find_spans(text: str, options) -> Spans:
    """A pure function of a text, so that any process can run it."""
    sentences = _split_sentences(text, options)
    flat = [' '.join(one.split()).casefold() for line in sentences for one in line]
    starts = range(len(flat) - SPAN_SENTENCES + 1)
    spans = ['\n'.join(flat[start : start + SPAN_SENTENCES]) for start in starts]
    hash_span = lambda span: hashlib.blake2b(span.encode(), digest_size=16).digest()
    return Spans(sentences, [*map(hash_span, spans)])


def _split_sentences(text: str, options) -> list[list[str]]:
    """The sentences of each line, also of empty ones."""
    import sentencex

    language = options.languages[0]
    return [
        [part.strip() for part in sentencex.segment(language, line) if part.strip()]
        for line in text.split('\n')
    ]


def remove_repeated_spans(text: str, spans: Spans, earlier: Collection[bytes]) -> str:
    """The step `c4_repeated_spans`: of equal spans of three sentences one is left.

    It is the first one, in the order of documents. A repeated line of fewer sentences
    stays, unless those around it repeat as well. Conversations are not cut. A
    distributed runner maps `find_spans`, groups by key, and gives each document those
    of its keys that a document before it has, too.

    Args:
        earlier: the keys of the documents before this one, as these were.
    """
    first, removed = {}, set()
    for start, key in enumerate(spans.keys):
        distance = start - first.setdefault(key, start)
        if key in earlier or distance >= SPAN_SENTENCES:  # does not overlap the first
            removed.update(range(start, start + SPAN_SENTENCES))
    if not removed:
        return text
    lines, place = [], 0
    for line, parts in zip(text.split('\n'), spans.sentences, strict=True):
        kept = [part for n, part in enumerate(parts, place) if n not in removed]
        place += len(parts)
        if len(kept) == len(parts):
            lines.append(line)
        elif kept:
            lines.append(' '.join(kept))
    return _join_lines(lines)


# ---- FineWeb (Penedo et al. 2024, section 3.6)

MAX_LINES_WITHOUT_PUNCTUATION = 0.12  # at most so many lines end with it: dropped
DUPLICATED_CHARACTERS = 0.1
SHORT_LINE_CHARACTERS = 30
SHORT_LINES = 0.67
SENTENCE_ENDS = (*END_MARKS, "'", '’', '…', '。', '！', '？', '।', '؟')


def fineweb_line_punctuation(text: str, options) -> str | None:
    """Drops text of which at most 12% of the lines end with a punctuation mark."""
    share = _share(_lines(text), lambda line: line.endswith(SENTENCE_ENDS))
    return text if share > MAX_LINES_WITHOUT_PUNCTUATION else None


def fineweb_duplicated_characters(text: str, options) -> str | None:
    """Drops text with 10% of its characters or more in lines that came before."""
    lines = _lines(text)
    _, characters = _count_repeats(lines)
    share = characters / max(1, sum(map(len, lines)))
    return text if share < DUPLICATED_CHARACTERS else None


def fineweb_short_lines(text: str, options) -> str | None:
    """Drops text of which 67% of the lines or more have fewer than 30 characters."""
    share = _share(_lines(text), lambda line: len(line) < SHORT_LINE_CHARACTERS)
    return text if share < SHORT_LINES else None


# Rules that change a text, and rules that keep it unchanged or drop it.
LINE_RULES = (
    c4_long_words,
    c4_terminal_punctuation,
    c4_short_lines,
    c4_javascript,
    c4_citations,
    c4_policy_lines,
)
TEXT_RULES = (
    gopher_word_count,
    gopher_mean_word_length,
    gopher_symbols,
    gopher_bullets,
    gopher_ellipses,
    gopher_alphabetic_words,
    gopher_stop_words,
    gopher_repetition,
    c4_sentences,
    c4_bad_words,
    c4_lorem_ipsum,
    c4_curly_brackets,
    fineweb_line_punctuation,
    fineweb_duplicated_characters,
    fineweb_short_lines,
)
