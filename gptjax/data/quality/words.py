"""The words by which documents are compared: without case, punctuation and form."""

import re
import unicodedata

from gptjax.data.cleaning.classical import remove_punctuation

# Scripts without spaces between words; each of their characters counts as a word.
_NO_SPACES = (
    '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff'  # Thai and Lao, Burmese, Khmer
    '\u3040-\u30ff\uff66-\uff9f'  # Hiragana, Katakana
    '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'  # Han
)
_WORD = re.compile(rf'[{_NO_SPACES}]|[^\s{_NO_SPACES}]+')


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation (Unicode's classes P).

    "Don't  STOP – 再见" → ['dont', 'stop', '再', '见']
    """
    plain = unicodedata.normalize('NFKC', text).casefold()
    return _WORD.findall(remove_punctuation(plain, None))


def join_ngrams(words: list[str], n: int) -> list[str]:
    """All runs of n words: (['a', 'b', 'c'], 2) → ['a b', 'b c']"""
    return [' '.join(words[start : start + n]) for start in range(len(words) - n + 1)]
