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
    the first place where one of the stop strings begins. What may still become a
    stop string is held back.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._text = ''  # decoded and not shown yet
        self._tokens = []  # (token, its text's end in self._text), not shown yet

    def push(self, token: Token) -> Shown:
        """What `token` allows to be shown; nothing may be pushed after a stop."""
        self._text += self._stream.push(token.id)
        self._tokens.append((token, len(self._text)))
        found = [
            (place, stop)
            for stop in self._stop
            if (place := self._text.find(stop)) >= 0
        ]
        if found:
            place, stop = min(found)
            # A token that is only begun before the stop counts as well.
            begins = [0, *(end for _, end in self._tokens)]
            tokens = [
                token
                for (token, _), start in zip(self._tokens, begins, strict=False)
                if start < place
            ]
            return Shown(self._text[:place], tuple(tokens), stop)
        return self._show(len(self._text) - self._held_back())

    def finish(self) -> Shown:
        """The rest, where the reply ends without a stop string."""
        self._text += self._stream.finish()
        tokens = tuple(token for token, _ in self._tokens)
        return Shown(self._text, tokens, None)

    def _held_back(self) -> int:
        """How many last characters are the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _show(self, end):
        text, self._text = self._text[:end], self._text[end:]
        # A token without text yet is the begin of a character: its text comes.
        shown = 0
        if text:
            ends = [token_end for _, token_end in self._tokens]
            shown = sum(token_end <= end for token_end in ends)
            while shown and not self._whole(shown):
                shown -= 1
        tokens = tuple(token for token, _ in self._tokens[:shown])
        self._tokens = [(token, place - end) for token, place in self._tokens[shown:]]
        return Shown(text, tokens, None)

    def _whole(self, count) -> bool:
        """Whether the first `count` tokens end at the end of a character."""
        # The last of them added text of its own, or nothing at all stands for it.
        start = self._tokens[count - 2][1] if count > 1 else 0
        return self._tokens[count - 1][1] > start
