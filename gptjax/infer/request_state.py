"""The state of one request on the host: prefill progress, drawn tokens, reply text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptjax.infer.request import SamplingParameters, Token, Update
from gptjax.infer.slots import Detail, StepOutput


class StreamedText:
    """Turns the tokens of a reply into text: whole characters, no stop strings.

    A suffix that may become a stop string is held back. With the stop string 'cd',
    the tokens 'ab', 'c', 'e' give the texts 'ab', '', 'ce'.

    The reply ends before the stop string that is completed first, or before the
    longest of those that are completed by the same character. The split into tokens
    makes no difference: with the stop strings 'abc' and 'b', 'abc' gives 'a'.
    """

    def __init__(
        self, tokenizer, stop: Sequence[str] = (), special_tokens: bool = False
    ):
        self._stream = tokenizer.stream(special_tokens)
        self._stop = tuple(stop)
        self._text = ''  # decoded, not returned yet
        self._tokens = []  # (token, start and end in `_text`), not returned yet

    def push(self, token: Token) -> Update:
        """Text that can be shown after `token`; `stopped_by` is set at a stop string.

        There is no further call after a stop string.
        """
        start = len(self._text)
        self._text += self._stream.push(token.id)
        # The first bytes of a character are returned together with that character.
        end = len(self._text) + self._stream.unfinished
        self._tokens.append((token, start, end))
        stops = [
            (begin + len(stop), begin, stop)
            for stop in self._stop
            if (begin := self._text.find(stop)) >= 0
        ]
        if stops:
            _, begin, stop = min(stops)
            tokens = tuple(token for token, start, _ in self._tokens if start < begin)
            return Update(self._text[:begin], tokens, stopped_by=stop)
        return self._take(len(self._text) - self._num_held_back())

    def finish(self) -> Update:
        """The rest of the text, if the reply ended without a stop string."""
        self._text += self._stream.finish()
        return Update(self._text, tuple(token for token, *_ in self._tokens))

    def _num_held_back(self) -> int:
        """The length of the longest suffix that begins a stop string."""
        for length in range(len(self._text), 0, -1):
            suffix = self._text[-length:]
            if any(stop.startswith(suffix) for stop in self._stop):
                return length
        return 0

    def _take(self, length):
        """Removes and returns the first `length` characters and their tokens."""
        text, self._text = self._text[:length], self._text[length:]
        count = sum(end <= length for _, _, end in self._tokens)
        tokens = tuple(token for token, *_ in self._tokens[:count])
        self._tokens = [
            (token, start - length, end - length)
            for token, start, end in self._tokens[count:]
        ]
        return Update(text, tokens)


@dataclass
class RequestState:
    """A request that waits or runs."""

    request_id: int  # ascending in the order of submission
    prompt: tuple[int, ...]
    parameters: SamplingParameters
    on_update: Callable[[Update], None]
    text: StreamedText
    max_tokens: int  # of the reply: the smaller of the parameter and the context's room
    eos_ids: Sequence[int]
    slot: int | None = None  # None while the request waits
    num_prefilled: int = 0  # tokens of the prompt in the slot's cache
    num_drawn: int = 0  # tokens of the reply
    decoding: bool = False  # the prompt is prefilled and the slot decodes
    # (number of tokens, `StepOutput`) of each chunk of a prompt that is scored.
    prompt_outputs: list = field(default_factory=list)

    def append_token(self, token: Token) -> Update:
        """Adds a drawn token to the reply; the last update has `finish`."""
        parameters = self.parameters
        self.num_drawn += 1
        if token.id in self.eos_ids or token.id in parameters.stop_tokens:
            stopped_by = None if token.id in self.eos_ids else token.id
            return self.text.finish()._replace(
                finish='stop', stopped_by=stopped_by, ending=token
            )
        update = self.text.push(token)
        if update.stopped_by is not None:
            return update._replace(finish='stop')
        finish = None
        if parameters.grammar:
            parameters.grammar.accept(token.id)
            finish = 'stop' if parameters.grammar.ended() else None
        if not finish and self.num_drawn == self.max_tokens:
            finish = 'length'
        if finish:
            rest = self.text.finish()
            return Update(
                update.text + rest.text, update.tokens + rest.tokens, finish=finish
            )
        return update

    def scored_prompt(self) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities; the first has none."""
        tokens = [Token(self.prompt[0])]
        for length, output in self.prompt_outputs:
            output = StepOutput(*(np.asarray(array) for array in output))
            tokens += [read_token(output, 0, t, self.parameters) for t in range(length)]
        return tuple(tokens)


def required_detail(parameters: SamplingParameters) -> Detail:
    """What a step has to compute for a request with these parameters."""
    if parameters.logprobs:
        return Detail.ALTERNATIVES
    if parameters.logprobs is not None or parameters.prompt_logprobs:
        return Detail.LOGPROB
    return Detail.TOKEN


def read_token(
    output: StepOutput, row: int, t: int, parameters: SamplingParameters
) -> Token:
    """Token `t` of a row of a step, with the log-probabilities that were requested."""
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
