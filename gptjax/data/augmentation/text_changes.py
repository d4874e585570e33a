"""Changes of a text, as pure functions `(text, draws, options) -> text`.

The text is a document, a part of one, or a user's message. `options` has the fields of
`config.data` (see `augmentations.Options`) and `draws` the random numbers. With a rate
of 0 a function returns its argument.
"""

import re

import numpy as np

from gptjax.data.augmentation.random_draws import Draws

WORD = re.compile(r'\S+')
BLANKS_AND_WORD = re.compile(r'[^\S\n]*\S+')  # with the blanks before it in its line
LETTERS = re.compile(r'[^\W\d_]+')
# What separates two sentences: white space after a full stop, or line breaks.
SENTENCE_BREAK = re.compile(r'((?<=[.!?…])\s+|(?<=[。！？])\s*|\n+)')
SPAN_WORDS = 5  # most words of a deleted span; the mean is 3, as in T5

KEYBOARD = ('qwertyuiop', 'asdfghjkl', 'zxcvbnm')


def _find_neighbours() -> dict[str, str]:
    """The letters beside each letter: 'g' → 'tyfhvb'."""
    place = {
        letter: (row, column)
        for row, letters in enumerate(KEYBOARD)
        for column, letter in enumerate(letters)
    }
    return {
        letter: ''.join(
            other
            for other, (y, x) in place.items()
            # A row begins half a key to the right of the row above it.
            if (y == row and abs(x - column) == 1)
            or (abs(y - row) == 1 and (x - column) in (0, row - y))
        )
        for letter, (row, column) in place.items()
    }


NEIGHBOURS = _find_neighbours()


def character_noise(text: str, draws: Draws, options) -> str:
    """Typos: a share `data.typo_rate` of the letters is mistyped.

    A letter is replaced by a neighbour on an English keyboard, swapped with the next
    one, left out, or doubled (Belinkov & Bisk 2018):

        'hello' → 'gello', 'ehllo', 'hllo' or 'hhello'
    """
    hit = np.flatnonzero(draws.array(len(text)) < options.typo_rate)
    characters = list(text)
    for place in hit.tolist():
        letter = characters[place]
        if not letter.isalpha():  # also a letter that a swap has moved away
            continue
        kind, neighbours = draws.below(4), NEIGHBOURS.get(letter.lower())
        following = characters[place + 1 : place + 2]
        if kind == 0 and neighbours:
            other = neighbours[draws.below(len(neighbours))]
            characters[place] = other.upper() if letter.isupper() else other
        elif kind == 1 and following and following[0].isalpha():
            characters[place : place + 2] = following[0], letter
        elif kind == 2:
            characters[place] = ''
        else:
            characters[place] = letter * 2
    return ''.join(characters)


def reorder_words(text: str, draws: Draws, options) -> str:
    """Shuffles the words of each line so that none moves further than a few places.

    Word i is sorted by i + u, where u is uniform from 0 to k + 1, so no word moves more
    than k = `data.reorder_distance` places (Lample et al. 2018, section 2.3). The white
    space stays where it is.
    """
    return '\n'.join(
        _reorder_line(line, draws, options.reorder_distance + 1)
        for line in text.split('\n')
    )


def _reorder_line(line: str, draws: Draws, distance: int) -> str:
    words = WORD.findall(line)
    keys = np.arange(len(words)) + distance * draws.array(len(words))
    if distance == 1 or len(words) < 2:
        return line
    ordered = iter([words[place] for place in np.argsort(keys, kind='stable')])
    return WORD.sub(lambda _: next(ordered), line)


def shuffle_sentences(text: str, draws: Draws, options) -> str:
    """Puts the sentences of a share `data.shuffle_rate` of texts in a random order.

    What separates the sentences stays where it is (Lewis et al. 2020, BART):

        'A b. C d!\\nE f?' → 'C d! E f?\\nA b.'
    """
    if draws() >= options.shuffle_rate:
        return text
    parts = SENTENCE_BREAK.split(text)  # sentence, break, sentence, …
    places = [place for place in range(0, len(parts), 2) if parts[place]]
    sentences = [parts[place] for place in places]
    order = np.argsort(draws.array(len(places)), kind='stable')
    for place, number in zip(places, order, strict=True):
        parts[place] = sentences[number]
    return ''.join(parts)


def rotate_document(text: str, draws: Draws, options) -> str:
    """Lets a share `data.rotation_rate` of texts begin at a random word.

    The words before it follow after the end (Lewis et al. 2020, BART):

        'a b, c d' → 'c d a b,'
    """
    if draws() >= options.rotation_rate:
        return text
    words = list(WORD.finditer(text))
    if len(words) < 2:
        return text
    number = 1 + draws.below(len(words) - 1)
    first, before, start = words[0].start(), words[number - 1], words[number].start()
    last = words[-1].end()
    break_ = text[before.end() : start]
    moved = text[start:last] + break_ + text[first : before.end()]
    return text[:first] + moved + text[last:]


def delete_spans(text: str, draws: Draws, options) -> str:
    """Deletes spans of one to five words, about `data.deletion_rate` of all words.

    The rate and the mean length of a span are those of T5's span corruption (Raffel et
    al. 2020, section 3.3), but nothing marks the place. Line breaks stay.
    """
    rate = options.deletion_rate / ((1 + SPAN_WORDS) / 2)
    words = list(BLANKS_AND_WORD.finditer(text))
    kept = np.ones(len(words), bool)
    for place in np.flatnonzero(draws.array(len(words)) < rate).tolist():
        kept[place : place + 1 + draws.below(SPAN_WORDS)] = False
    kept = iter(kept.tolist())
    return BLANKS_AND_WORD.sub(lambda match: match[0] if next(kept) else '', text)


def replace_synonyms(text: str, draws: Draws, options) -> str:
    """Replaces a share `data.synonym_rate` of the words that `data.synonyms` lists.

    A word is looked up without its case, and the synonym gets the case of the word:
    'Big' → 'Large'.
    """
    table, rate = options.synonyms, options.synonym_rate

    def replace(match):
        word = match[0]
        choices = table.get(word.lower())
        if not choices or draws() >= rate:
            return word
        synonym = choices[draws.below(len(choices))]
        if word.isupper() and len(word) > 1:
            return synonym.upper()
        return synonym[:1].upper() + synonym[1:] if word[0].isupper() else synonym

    return LETTERS.sub(replace, text)
