"""The words by which documents are compared: without case, punctuation and form."""

import re
import unicodedata
from functools import cache

from gptjax.data.cleaning.classical import punctuation_codes

# Scripts without spaces between words; each of their characters counts as a word.
NO_SPACES = (
    '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff'  # Thai and Lao, Burmese, Khmer
    '\u3040-\u30ff\uff66-\uff9f'  # Hiragana, Katakana
    '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'  # Han
)
_WORD = re.compile(rf'[{NO_SPACES}]|[^\s{NO_SPACES}]+')
_APOSTROPHE = re.compile("(?<=\\w)['’ʼ](?=\\w)")


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation (Unicode's classes P).

    "Don't  STOP—now – 再见" → ['dont', 'stop', 'now', '再', '见']

    GPT-3 removes punctuation, so that 'stop—now' is a word and 'stop — now' are two.
    Here it is a border of words, however it is spaced, except an apostrophe in a word.
    """
    plain = unicodedata.normalize('NFKC', text).casefold()
    return _WORD.findall(_APOSTROPHE.sub('', plain).translate(_borders()))


def join_ngrams(words: list[str], n: int) -> list[str]:
    """All runs of n words: (['a', 'b', 'c'], 2) → ['a b', 'b c']"""
    return [' '.join(words[start : start + n]) for start in range(len(words) - n + 1)]


@cache
def _borders() -> dict[int, str]:
    return dict.fromkeys(punctuation_codes(), ' ')
