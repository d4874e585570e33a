"""Cleaning steps: pure functions `(text, options) -> text`, or None to drop the text.

`data.clean` lists the names of the steps in the order in which they run, and a source
may have its own list. The manifest counts what each step changed and dropped. To add a
step, write its function and add it to TRANSFORMS or FILTERS. The steps in COMPARING
compare documents: see data/quality/comparing_steps.py.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.data.cleaning import classical, markup, masking
from gptjax.data.quality.quality_classifier import keep_quality
from gptjax.data.quality.quality_rules import GROUPS, LINE_RULES, TEXT_RULES

DROP_DUPLICATES = 'drop_duplicates'
DROP_NEAR_DUPLICATES = 'drop_near_duplicates'
DECONTAMINATE = 'decontaminate'
REPEATED_SPANS = 'c4_repeated_spans'
COMPARING = (DROP_DUPLICATES, DROP_NEAR_DUPLICATES, DECONTAMINATE, REPEATED_SPANS)
BAD_WORDS, KEEP_QUALITY = 'c4_bad_words', keep_quality.__name__


class Options(NamedTuple):
    """The fields of config.data that steps may read."""

    languages: tuple[str, ...]
    min_characters: int
    max_characters: int
    max_repetition: float
    bad_words: str
    quality_classifier: str
    min_quality: float


def read_options(data: ConfigDict) -> Options:
    return Options(**{name: data[name] for name in Options._fields})


# ---- Characters


def repair_unicode(text: str, options: Options) -> str:
    """Repairs text that was decoded wrongly, and composes characters (Unicode's NFC).

        'cafÃ©' → 'café'

    Curly quotes, ligatures and full-width letters are no damage, and stay.
    """
    if text.isascii() and '\x1b' not in text:  # nothing to repair
        return text
    import ftfy

    return ftfy.fix_text(
        text,
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization='NFC',
    )


def remove_control_characters(text: str, options: Options) -> str:
    """Removes invisible characters, and writes every line break as '\\n'.

        'a\\0b\\r\\nc\\fd\\u200b' → 'ab\\nc\\nd'

    Removed are control characters except tab and line feed, byte-order marks, soft
    hyphens, zero-width spaces, marks of the writing direction, private-use characters
    and code points without a character. The joiners U+200C and U+200D stay, as
    Persian, Indian scripts and emoji need them.
    """
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub('', _LINE_BREAK.sub('\n', text))


_INVISIBLE = re.compile(
    '[\0-\x08\x0b-\x1f\x7f-\x84\x86-\x9f'  # C0, C1; U+0085 is a line break
    '\xad\u200b\u2060\ufeff\ufffc'
    '\u202a-\u202e\u2066-\u2069\ufff9-\ufffb'
    '\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]'
)


def normalize_whitespace(text: str, options: Options) -> str:
    """Writes white space in one form.

        '\\n  a   b \\r\\n\\n\\n\\nc' → '  a b\\n\\nc'

    Every line break becomes '\\n', and every blank except tab becomes a space. Blanks
    at the end of a line are removed, and two or more within a line become one space.
    Indentation stays, for code and verse. Of consecutive empty lines one stays, and
    none at the beginning and end of the document.
    """
    text = _LINE_BREAK.sub('\n', text)
    if not text.isascii():
        text = _OTHER_BLANK.sub(' ', text)
    text = _LAST_BLANKS.sub('\n', text)
    if '  ' in text or '\t' in text:
        text = _INNER_BLANKS.sub(' ', text)
    text = _EMPTY_LINES.sub('\n\n', text)
    return text.strip('\n').rstrip()


_LINE_BREAK = re.compile('\r\n?|[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]')
_OTHER_BLANK = re.compile('[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]')
_LAST_BLANKS = re.compile(r'(?<![ \t])[ \t]+\n')  # one match per run: linear time
_INNER_BLANKS = re.compile(r'(?<=\S)[ \t]{2,}')
_EMPTY_LINES = re.compile(r'\n{3,}')


# ---- Filters


def keep_languages(text: str, options: Options) -> str | None:
    """Drops text in a language that is not in data.languages (ISO 639-1, as 'en').

    py3langid classifies the first 2,000 characters. It is often wrong about texts of
    a few words: put 'drop_short' before this step, or leave it out for short texts.
    """
    import py3langid

    language, _ = py3langid.classify(text[:2000])
    return text if language in options.languages else None


def drop_short(text: str, options: Options) -> str | None:
    """Drops text of fewer than data.min_characters characters."""
    return text if len(text) >= options.min_characters else None


def drop_long(text: str, options: Options) -> str | None:
    """Drops text of more than data.max_characters characters."""
    return text if len(text) <= options.max_characters else None


def drop_repetitive(text: str, options: Options) -> str | None:
    """Drops text if its repeated share is larger than data.max_repetition.

    The share is the larger of two: characters in lines that occurred before in the
    text, and 5-grams of words that occurred before. Texts of fewer than 50 words are
    kept, as short texts repeat themselves naturally.
    """
    words = text.split()
    if len(words) < 50:
        return text
    lines = [line for line in map(str.strip, text.split('\n')) if line]
    total = sum(map(len, lines))
    once = sum(map(len, set(lines)))
    grams = list(zip(*(words[start:] for start in range(5)), strict=False))
    repeated = max(1 - once / total, 1 - len(set(grams)) / len(grams))
    return text if repeated <= options.max_repetition else None


# Steps that change a text. In a conversation they run on each message.
TRANSFORMS = (
    repair_unicode,
    markup.html_to_text,
    remove_control_characters,
    normalize_whitespace,
    masking.mask_emails,
    masking.mask_phone_numbers,
    masking.mask_handles,
    masking.mask_user_ids,
    classical.lowercase,
    classical.remove_punctuation,
    classical.remove_stop_words,
    classical.split_sentences,
    classical.tokenize_words,
    *LINE_RULES,
)
# Steps that keep a document unchanged or drop it, or a whole conversation.
FILTERS = (
    *(keep_languages, drop_short, drop_long, drop_repetitive),
    *(*TEXT_RULES, keep_quality),
)
STEPS = {step.__name__: step for step in (*TRANSFORMS, *FILTERS)}


# The field of `data` that decides what is left out, by the reason.
FIELD_OF_FILTER = dict(
    keep_languages='languages',
    drop_short='min_characters',
    drop_long='max_characters',
    drop_repetitive='max_repetition',
    drop_near_duplicates='near_duplicate_similarity',
    c4_bad_words='bad_words',
    keep_quality='min_quality',
    other_licence='licences',
)
# Fields of `data` that are settings of an artifact only if it uses the step, so that
# artifacts that are older than the step stay valid.
FIELDS_OF_STEP = dict(
    drop_near_duplicates=('near_duplicate_similarity',),
    decontaminate=('evaluation_sets', 'decontaminate_ngram'),
    c4_bad_words=('bad_words',),
    keep_quality=('quality_classifier', 'min_quality'),
)


def name_reason(step: str, settings: dict) -> str:
    """Why a step drops text: 'data.min_characters=16', or 'drop_duplicates'.

    Args:
        settings: of the manifest, config fields by name.
    """
    if step not in FIELD_OF_FILTER:
        return f'{step} of data.clean'
    field = f'data.{FIELD_OF_FILTER[step]}'
    return f'{field}={settings[field]}'


def select_transforms(names: Sequence[str]) -> list[str]:
    """The named steps that change a text, in order."""
    return [name for name in names if STEPS.get(name) in TRANSFORMS]


# ---- Running the steps


@dataclass
class StepCount:
    """Counts what a step did to the documents of a source."""

    documents_changed: int = 0
    documents_dropped: int = 0
    characters_removed: int = 0  # includes dropped documents; added ones are subtracted

    def add(self, other: 'StepCount') -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def add_change(self, before: str, text: str | None) -> str | None:
        """Counts what a step made of a text; None if it dropped or emptied it."""
        if not text or text.isspace():
            self.documents_dropped += 1
            self.characters_removed += len(before)
            return None
        if text != before:
            self.documents_changed += 1
            self.characters_removed += len(before) - len(text)
        return text


def expand_groups(names: Iterable[str]) -> list[str]:
    """The names of steps, with those of its rules for 'gopher', 'c4' and 'fineweb'."""
    return [step for name in names for step in GROUPS.get(name, (name,))]


def choose_steps(field: str, section: ConfigDict, data: ConfigDict) -> list[str]:
    """The cleaning steps of a source, or of the pairs of `reward`.

    In its field `clean`, 'data.clean' stands for the steps of data.clean. 'default' is
    these too, except for chat files, which stay as their writers wrote them.
    """
    names = section.clean
    if tuple(names) == ('default',):
        names = () if section.kind == 'chat' else ('data.clean',)
    groups = (data.clean if name == 'data.clean' else (name,) for name in names)
    steps = expand_groups(step for group in groups for step in group)
    check_steps(steps, f'{field}.clean')
    return steps


def check_steps(names: Sequence[str], field: str = 'data.clean') -> None:
    """Raises UserError if a name of `field` is unknown or occurs twice."""
    known, names = (*STEPS, *COMPARING), expand_groups(names)
    for name in names:
        if name not in known:
            names_known = ', '.join((*known, *GROUPS))
            raise UserError(f'{field}: no step is called {name!r}: use {names_known}')
        if names.count(name) > 1:
            raise UserError(f'{field}: {name!r} occurs twice: remove one')


def hash_text(text: str) -> bytes:
    """16 bytes that are equal for texts that `is_duplicate` calls equal."""
    plain = ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def is_duplicate(text: str, seen: set[bytes], count: StepCount) -> bool:
    """Whether an equal text came before; adds the text to `seen` if not.

    Texts are equal if they differ only in case, white space or Unicode's form of a
    character: 'Straße\\n1' equals 'STRASSE 1'. The first one in the order of sources
    (by name) and of their documents is kept, on every machine.

    Args:
        seen: 16-byte hashes of the texts of all sources so far.
    """
    key = hash_text(text)
    if key in seen:
        count.add_change(text, None)
        return True
    seen.add(key)
    return False


def clean_text(
    text: str, steps: Iterable[str], options: Options, counts: dict[str, StepCount]
) -> str | None:
    """Runs the named steps in order; None if a step drops or empties the text."""
    for name in steps:
        before = text
        text = STEPS[name](before, options)
        if text is not before:
            text = counts[name].add_change(before, text)
        if text is None:
            return None
    return text
