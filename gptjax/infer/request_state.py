"""A request while it lives: its prompt being read, its reply being written."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gptjax.infer.request import SamplingParameters, Token, Update
from gptjax.infer.slots import Detail, Drawn
from gptjax.infer.streamed_text import ReplyText


@dataclass
class LiveRequest:
    """A request's state on the host.

    Attributes:
        ticket: its number; earlier ones were submitted earlier.
        prompt: token ids.
        parameters: how to draw.
        listen: is told of what happens.
        text: of the reply.
        max_tokens: what the parameters and the context allow.
        eos_id: the token that always ends a reply.
        slot: None while it waits.
        read: tokens of the prompt in the slot's cache.
        drawn: tokens of the reply.
        decoding: the whole prompt was read.
        scores: (tokens in a chunk, `Drawn`) of the prompt, where they are wanted.
    """

    ticket: int
    prompt: tuple[int, ...]
    parameters: SamplingParameters
    listen: Callable[[Update], None]
    text: ReplyText
    max_tokens: int
    eos_id: int
    slot: int | None = None
    read: int = 0
    drawn: int = 0
    decoding: bool = False
    scores: list = field(default_factory=list)

    @property
    def place(self) -> int:
        """Tokens of it in the cache."""
        return self.read + self.drawn

    def take(self, token: Token) -> Update:
        """Goes on with a drawn token: shown, held back, or the reply's end."""
        parameters = self.parameters
        self.drawn += 1
        if token.id == self.eos_id or token.id in parameters.stop_tokens:
            by = None if token.id == self.eos_id else token.id
            text, tokens, _ = self.text.finish()
            return Update(text, tokens, finish='stop', stopped_by=by, ending=token)
        shown = self.text.push(token)
        finish = 'stop' if shown.stopped_by is not None else None
        grammar = parameters.grammar
        if grammar and not finish:
            grammar.accept(token.id)
            finish = 'stop' if grammar.ended() else None
        if not finish and self.drawn == self.max_tokens:
            finish = 'length'
        if finish and shown.stopped_by is None:
            rest = self.text.finish()
            shown = shown._replace(
                text=shown.text + rest.text, tokens=shown.tokens + rest.tokens
            )
        return Update(
            shown.text, shown.tokens, finish=finish, stopped_by=shown.stopped_by
        )

    def scored_prompt(self) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities; the first has none."""
        told = [Token(self.prompt[0])]
        for length, scored in self.scores:
            scored = Drawn(*(np.asarray(array) for array in scored))
            told += [token_of(scored, 0, n, self.parameters) for n in range(length)]
        return tuple(told)


def detail_of(parameters: SamplingParameters) -> Detail:
    """What a request wants to be told of each token."""
    if parameters.logprobs:
        return Detail.ALTERNATIVES
    if parameters.logprobs is not None or parameters.prompt_logprobs:
        return Detail.LOGPROB
    return Detail.TOKEN


def token_of(
    drawn: Drawn, row: int, place: int, parameters: SamplingParameters
) -> Token:
    """One token of a step, as the host tells it."""
    token, detail = int(drawn.tokens_BT[row, place]), detail_of(parameters)
    if detail == Detail.TOKEN:
        return Token(token)
    logprob = float(drawn.logprobs_BT[row, place])
    if detail == Detail.LOGPROB:
        return Token(token, logprob)
    listed = slice(parameters.logprobs)
    top = zip(
        drawn.top_BTA[row, place, listed].tolist(),
        drawn.top_logprobs_BTA[row, place, listed].tolist(),
        strict=True,
    )
    return Token(token, logprob, tuple(top))
