"""From tokens to text that may be shown: whole characters, no stop strings."""

from collections.abc import Sequence
from typing import NamedTuple

from gptjax.infer.request import Token


class Shown(NamedTuple):
    """Text to show now, the tokens it is from, and the stop string that ended it."""

    text: str
    tokens: tuple[Token, ...]
    stopped_by: str | None


class ReplyText:
    """Turns a reply's tokens into text, one at a time.

    The texts of all `push` and the `finish` joined are the decoded tokens, up to
    where a stop string begins: the one that is complete first, and of those that end
    together the longest. So it does not matter how the text is cut into tokens: with
    the stops 'abc' and 'b', 'abc' gives 'a'. What may still become a stop string is
    held back.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._text = ''  # decoded and not shown yet
        self._tokens = []  # (token, its first and last place in it), not shown yet

    def push(self, token: Token) -> Shown:
        """What `token` allows to be shown; nothing may be pushed after a stop."""
        start = len(self._text)
        self._text += self._stream.push(token.id)
        # What begins a character belongs to it, and comes with it.
        end = len(self._text) + self._stream.unfinished
        self._tokens.append((token, start, end))
        found = [
            (place + len(stop), place, stop)
            for stop in self._stop
            if (place := self._text.find(stop)) >= 0
        ]
        if found:
            _, place, stop = min(found)
            tokens = [token for token, start, _ in self._tokens if start < place]
            return Shown(self._text[:place], tuple(tokens), stop)
        return self._show(len(self._text) - self._held_back())

    def finish(self) -> Shown:
        """The rest, where the reply ends without a stop string."""
        self._text += self._stream.finish()
        return Shown(self._text, tuple(token for token, *_ in self._tokens), None)

    def _held_back(self) -> int:
        """How many last characters are the beginning of a stop string."""
        for length in range(len(self._text), 0, -1):
            end = self._text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _show(self, end):
        text, self._text = self._text[:end], self._text[end:]
        shown = sum(last <= end for _, _, last in self._tokens)
        tokens = tuple(token for token, *_ in self._tokens[:shown])
        self._tokens = [
            (token, first - end, last - end)
            for token, first, last in self._tokens[shown:]
        ]
        return Shown(text, tokens, None)
