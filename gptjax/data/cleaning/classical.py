"""The classical steps of natural-language processing, as cleaning steps.

They make text easier to count and index. None is on by default, because a generative
model writes as the text that it was trained on.
"""

import re
import sys
import unicodedata
from functools import lru_cache


def lowercase(text: str, options) -> str:
    """Writes every letter in lower case: 'ÀB' → 'àb'"""
    return text.lower()


def remove_punctuation(text: str, options) -> str:
    """Removes punctuation: "Don't, $5!" → 'Dont $5'

    Only Unicode's punctuation classes: '$', '+' and emoji are symbols, and stay.
    """
    return text.translate(punctuation_codes())


def remove_stop_words(text: str, options) -> str:
    """Removes function words: "It's the cat.\\nAnd a dog" → 'cat.\\ndog'

    Only those of English, whatever data.languages is.
    """
    return '\n'.join(
        ' '.join(
            word
            for word in line.split()
            if word.lower().replace('’', "'").strip(_EDGES) not in STOP_WORDS
        )
        for line in text.split('\n')
    )


def split_sentences(text: str, options) -> str:
    """Writes a sentence per line: 'Hi Mr. Bean. You?' → 'Hi Mr. Bean.\\nYou?'

    sentencex knows the abbreviations of the language, which is data.languages[0].
    """
    import sentencex

    language = options.languages[0]
    return '\n'.join(
        '\n'.join(
            sentence.strip()
            for sentence in sentencex.segment(language, line)
            if sentence.strip()
        )
        for line in text.split('\n')
    )


def tokenize_words(text: str, options) -> str:
    """Puts one space between words and punctuation marks.

    "Hi, don't pay 1,000.50!\\nok" → "Hi , don't pay 1,000.50 !\\nok"
    """
    return '\n'.join(' '.join(_WORD.findall(line)) for line in text.split('\n'))


_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’-]\w+)*|[^\w\s]")
_EDGES = '.,;:!?"()[]'

STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are aren't as at be because
    been before being below between both but by can can't could couldn't did didn't
    do does doesn't doing don't down during each few for from further had hadn't has
    hasn't have haven't having he he'd he'll he's her here here's hers herself him
    himself his how how's i i'd i'll i'm i've if in into is isn't it it's its itself
    just let's me more most must mustn't my myself no nor not now of off on once only
    or other ought our ours ourselves out over own same shall she she'd she'll she's
    should shouldn't so some such than that that's the their theirs them themselves
    then there there's these they they'd they'll they're they've this those through
    to too under until up very was wasn't we we'd we'll we're we've were weren't what
    what's when when's where where's which while who who's whom why why's will with
    won't would wouldn't you you'd you'll you're you've your yours yourself
    yourselves
    """.split()
)


@lru_cache
def punctuation_codes() -> dict[int, None]:
    """The code points of Unicode's classes P, for `str.translate`."""
    return {
        code: None
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)).startswith('P')
    }
