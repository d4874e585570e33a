"""A request while it runs: how far its prompt is read, and the reply so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gptjax.infer.request import SamplingParameters, Token, Update
from gptjax.infer.slots import Detail, StepOutput


class TextPart(NamedTuple):
    """Text to show now, the tokens it is from, and the stop string that ended it."""

    text: str
    tokens: tuple[Token, ...]
    stopped_by: str | None


class StreamedText:
    """Turns a reply's tokens into text: whole characters, no stop strings.

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
        self._tokens = []  # (token, where it begins and ends in it), not shown yet

    def push(self, token: Token) -> TextPart:
        """The text that can be shown after `token`; the last call once stopped."""
        start = len(self._text)
        self._text += self._stream.push(token.id)
        # What begins a character belongs to it, and comes with it.
        end = len(self._text) + self._stream.unfinished
        self._tokens.append((token, start, end))
        stops = [
            (begin + len(stop), begin, stop)
            for stop in self._stop
            if (begin := self._text.find(stop)) >= 0
        ]
        if stops:
            _, begin, stop = min(stops)
            tokens = [token for token, start, _ in self._tokens if start < begin]
            return TextPart(self._text[:begin], tuple(tokens), stop)
        return self._show(len(self._text) - self._num_held_back())

    def finish(self) -> TextPart:
        """The rest, where the reply ends without a stop string."""
        self._text += self._stream.finish()
        return TextPart(self._text, tuple(token for token, *_ in self._tokens), None)

    def _num_held_back(self) -> int:
        """How many of the last characters are the beginning of a stop string."""
        for length in range(len(self._text), 0, -1):
            end = self._text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _show(self, length):
        text, self._text = self._text[:length], self._text[length:]
        count = sum(end <= length for _, _, end in self._tokens)
        tokens = tuple(token for token, *_ in self._tokens[:count])
        self._tokens = [
            (token, start - length, end - length)
            for token, start, end in self._tokens[count:]
        ]
        return TextPart(text, tokens, None)


@dataclass
class RequestState:
    """A request's state on the host.

    prompt_outputs: (number of tokens, `StepOutput`) of each chunk of the prompt,
        where its log-probabilities are wanted.
    """

    request_id: int  # ascending in the order of submission
    prompt: tuple[int, ...]
    parameters: SamplingParameters
    on_update: Callable[[Update], None]
    text: StreamedText
    max_tokens: int  # what the parameters and the context allow
    eos_id: int
    slot: int | None = None  # None while it waits
    num_prefilled: int = 0  # tokens of the prompt in the slot's cache
    num_drawn: int = 0  # tokens of the reply
    decoding: bool = False  # the whole prompt was read
    prompt_outputs: list = field(default_factory=list)

    @property
    def num_cached(self) -> int:
        """Its tokens in the cache."""
        return self.num_prefilled + self.num_drawn

    def append_token(self, token: Token) -> Update:
        """Adds a drawn token: it is shown, or held back, or ends the reply."""
        parameters = self.parameters
        self.num_drawn += 1
        if token.id == self.eos_id or token.id in parameters.stop_tokens:
            by = None if token.id == self.eos_id else token.id
            text, tokens, _ = self.text.finish()
            return Update(text, tokens, finish='stop', stopped_by=by, ending=token)
        text, tokens, stopped_by = self.text.push(token)
        finish = 'stop' if stopped_by is not None else None
        grammar = parameters.grammar
        if grammar and not finish:
            grammar.accept(token.id)
            finish = 'stop' if grammar.ended() else None
        if not finish and self.num_drawn == self.max_tokens:
            finish = 'length'
        if finish and stopped_by is None:
            rest = self.text.finish()
            text, tokens = text + rest.text, tokens + rest.tokens
        return Update(text, tokens, finish=finish, stopped_by=stopped_by)

    def scored_prompt(self) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities; the first has none."""
        tokens = [Token(self.prompt[0])]
        for length, output in self.prompt_outputs:
            output = StepOutput(*(np.asarray(array) for array in output))
            tokens += [read_token(output, 0, t, self.parameters) for t in range(length)]
        return tuple(tokens)


def required_detail(parameters: SamplingParameters) -> Detail:
    """What a request needs of each token of a step."""
    if parameters.logprobs:
        return Detail.ALTERNATIVES
    if parameters.logprobs is not None or parameters.prompt_logprobs:
        return Detail.LOGPROB
    return Detail.TOKEN


def read_token(
    output: StepOutput, row: int, t: int, parameters: SamplingParameters
) -> Token:
    """Token t of a row of a step, with what its request needs."""
    token, detail = int(output.tokens_BT[row, t]), required_detail(parameters)
    if detail == Detail.TOKEN:
        return Token(token)
    logprob = float(output.logprobs_BT[row, t])
    if detail == Detail.LOGPROB:
        return Token(token, logprob)
    listed = slice(parameters.logprobs)
    top = zip(
        output.top_BTA[row, t, listed].tolist(),
        output.top_logprobs_BTA[row, t, listed].tolist(),
        strict=True,
    )
    return Token(token, logprob, tuple(top))
