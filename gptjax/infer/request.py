"""Requests to the engine and its replies, as plain Python types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from gptjax.core.console import UserError

MOST_ALTERNATIVES = 20  # the largest `logprobs`
LARGEST_SEED = 2**32 - 1


class Limits(NamedTuple):
    """The smallest and the largest valid number; with `above`, `least` is not valid."""

    least: float
    most: float
    above: bool = False

    def allow(self, value: float) -> bool:
        """Whether `value` is valid; NaN is not."""
        if self.above:
            return self.least < value <= self.most
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.above:
            return f'above {self.least}, at most {self.most}'
        return f'from {self.least} to {self.most}'


# Ranges of `SamplingParameters`. The JSON schemas of the server use them too.
LIMITS = dict(
    max_tokens=Limits(0, 2**17),  # the context sets the real limit
    temperature=Limits(0, 100),
    top_k=Limits(0, 2**31 - 1),
    top_p=Limits(0, 1, above=True),
    min_p=Limits(0, 1),
    repetition_penalty=Limits(0.01, 100),
    presence_penalty=Limits(-100, 100),
    frequency_penalty=Limits(-100, 100),
    seed=Limits(0, LARGEST_SEED),
    logprobs=Limits(0, MOST_ALTERNATIVES),
)
BIAS_LIMITS = Limits(-1000, 1000)


class Grammar(Protocol):
    """Decides which tokens may come next in one reply."""

    def allowed(self) -> np.ndarray:
        """uint32 (ceil(V / 32),): one bit for each token, lowest bit first."""

    def accept(self, token: int) -> None:
        """Appends a drawn token."""

    def ended(self) -> bool:
        """Whether no further token is allowed."""


@dataclass(frozen=True)
class SamplingParameters:
    """How the tokens of a reply are drawn, and where the reply ends.

    The same weights, prompt, parameters and seed give the same reply, whatever other
    requests run. EOS always ends a reply.
    """

    max_tokens: int = 256  # of the reply; 0 only scores the prompt
    temperature: float = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = 0  # keeps the k most likely tokens; 0 keeps all
    # Keeps the most likely tokens until their probabilities sum to this.
    top_p: float = 1.0
    # Keeps tokens of at least this share of the largest probability.
    min_p: float = 0.0
    # For tokens of the prompt and the reply: divides a positive logit and multiplies
    # a negative one (Keskar et al. 2019).
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # subtracted from logits of tokens of the reply
    frequency_penalty: float = 0.0  # the same, times the token's count
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to logits
    seed: int = 0
    stop: tuple[str, ...] = ()  # strings that end the reply and are not part of it
    stop_tokens: tuple[int, ...] = ()  # tokens that end the reply
    # Number of alternatives listed for each token; None returns no log-probabilities.
    logprobs: int | None = None
    prompt_logprobs: bool = False  # also scores the tokens of the prompt
    grammar: Grammar | None = None  # an object for this request alone
    # The text leaves special tokens out; otherwise it has their names, as '<|user|>'.
    skip_special_tokens: bool = True


class Token(NamedTuple):
    """A token of a reply or a prompt.

    logprob: ln P of the model itself (temperature 1, no penalties, no filters). None
        if log-probabilities were not requested, and for the first token of a prompt.
    top: the most likely (id, logprob), best first. If the token is among them, its
        value there is the identical float.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Update(NamedTuple):
    """A part of a reply. The reply is the concatenation of the parts.

    text: complete characters, without stop strings or a beginning of one.
    tokens: the tokens of `text`. Tokens whose text is held back come in a later
        update; tokens whose text a stop string removed never come.
    prompt: the scored prompt, in the first update if `prompt_logprobs` is set.
    finish: None until the last update, then 'stop' (EOS, a stop token, a stop string
        or the end of the grammar), 'length', 'cancelled' or 'error'.
    stopped_by: the stop string, or the id of the stop token; None for EOS.
    ending: the EOS or stop token that ended the reply.
    error: the message if `finish` is 'error'.
    """

    text: str = ''
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] | None = None
    finish: str | None = None
    stopped_by: str | int | None = None
    ending: Token | None = None
    error: str | None = None


class Reply(NamedTuple):
    """A whole reply, with the fields of `Update`."""

    text: str
    tokens: tuple[Token, ...]
    prompt: tuple[Token, ...] | None
    finish: str
    stopped_by: str | int | None
    ending: Token | None


def join_updates(updates: Sequence[Update]) -> Reply:
    """Concatenates all updates of a request; RuntimeError if the engine failed."""
    last = updates[-1]
    if last.finish == 'error':
        raise RuntimeError(last.error)
    return Reply(
        text=''.join(update.text for update in updates),
        tokens=tuple(token for update in updates for token in update.tokens),
        prompt=next((u.prompt for u in updates if u.prompt is not None), None),
        finish=last.finish,
        stopped_by=last.stopped_by,
        ending=last.ending,
    )


class QueueFull(Exception):
    """The queue of waiting requests is full; try again later."""


class EngineStopped(Exception):
    """The engine takes no more requests: it failed, or it was closed."""


class ContextOverflow(UserError):
    """The prompt leaves no room for a reply.

    `longest` is the context of the model, if that may be longer than the one in use.
    """

    def __init__(self, prompt_tokens: int, context: int, longest: int = 0):
        super().__init__(
            f'the prompt has {prompt_tokens} tokens and the context {context}: '
            f'shorten it to {context - 1} at most, so that a reply has room'
            + (f', or use --context up to {longest}' if longest > context else '')
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


def check_parameters(
    parameters: SamplingParameters, vocab_size: int, prefix: str = ''
) -> None:
    """Refuses values out of range; `prefix` ('/set ') stands before a name."""
    for name, limits in LIMITS.items():
        value = getattr(parameters, name)
        if value is not None and not limits.allow(value):
            raise UserError(f'{prefix}{name}={value}: use a number {limits}')
    for token, bias in parameters.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise UserError(
                f'{prefix}logit_bias has the token {token}: use ids from 0 to '
                f'{vocab_size - 1}'
            )
        if not BIAS_LIMITS.allow(bias):
            raise UserError(
                f'{prefix}logit_bias of {token} is {bias}: use a number {BIAS_LIMITS}'
            )
    if any(not text for text in parameters.stop):
        raise UserError(f'{prefix}stop has an empty string: leave it out')
