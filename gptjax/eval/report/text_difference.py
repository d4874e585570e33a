"""What differs between two texts, cut around the first change, for a page."""

import difflib
import os
import re
from typing import NamedTuple

SHOWN = 480  # characters of each text
COMPARED = 1600  # characters of each that are compared, as what follows may have moved
PARTS = 300  # of these, as the time grows with the cube of the number
CONTEXT = 60  # characters before the first change
JOINERS = '\u200c\u200d'  # within emoji and Persian words
_PART = re.compile(r'\w+|\s|[^\w\s]')


class Marked(NamedTuple):
    """A part of a text, and whether the other text lacks it."""

    text: str
    differs: bool


def mark_difference(before: str, after: str) -> tuple[list[Marked], list[Marked]]:
    """The parts of both texts around the first difference; '…' where they are cut.

    'a  b', 'a b' → [a, ·, (·), b], [a, ·, b]  — the part in () differs
    """
    same = len(os.path.commonprefix([before, after]))
    least = max(0, same - CONTEXT)
    while same > least and before[same - 1].isalnum():  # begin at a word
        same -= 1
    start = max(0, same - CONTEXT)
    alike = [Marked(before[start:same], False)] if same else []
    marked = [*alike], [*alike]
    parts = [
        _PART.findall(text[same : start + COMPARED])[:PARTS] for text in (before, after)
    ]
    matcher = difflib.SequenceMatcher(None, *parts, autojunk=False)
    for kind, *places in matcher.get_opcodes():
        for side, (first, last) in enumerate((places[:2], places[2:])):
            if first < last:
                text = ''.join(parts[side][first:last])
                marked[side].append(Marked(text, kind != 'equal'))
    cuts = (
        len(text) > same + len(''.join(compared))
        for text, compared in zip((before, after), parts, strict=True)
    )
    return tuple(
        _cut(one, start > 0, is_cut) for one, is_cut in zip(marked, cuts, strict=True)
    )


def excerpt(text: str) -> list[Marked]:
    """The beginning of a text, as `mark_difference` returns it."""
    return _cut([Marked(text[: SHOWN + 1], False)], False, len(text) > SHOWN)


def _cut(parts: list[Marked], is_later: bool, goes_on: bool) -> list[Marked]:
    """The first SHOWN characters, with invisible characters made visible."""
    shown, left = [Marked('…', False)] if is_later else [], SHOWN
    for part in parts:
        text = part.text[:left]
        shown.append(Marked(_show_invisible(text, part.differs), part.differs))
        left -= len(part.text)
        if left < 0:
            goes_on = True
            break
    return [*shown, Marked('…', False)] if goes_on else shown


def _show_invisible(text: str, differs: bool) -> str:
    """Names characters that a page does not show; blanks only where they differ."""
    return ''.join(_SHOWN_AS.get(c, _name(c)) if differs else _name(c) for c in text)


_SHOWN_AS = {'\n': '↵\n', '\t': '⇥', ' ': '·'}


def _name(character: str) -> str:
    if character.isprintable() or character in '\n\t\u3000' + JOINERS:
        return character
    return f'⟨U+{ord(character):04X}⟩'
