"""The engine's requests and replies: plain types of the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from gptjax.core.console import UserError

MOST_ALTERNATIVES = 20  # of `logprobs`
LARGEST_SEED = 2**32 - 1


class Limits(NamedTuple):
    """The least and the most that a number may be; `above`: more than the least."""

    least: float
    most: float
    above: bool = False

    def allow(self, value: float) -> bool:
        """Whether `value` is within; NaN is not."""
        if self.above:
            return self.least < value <= self.most
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.above:
            return f'above {self.least}, at most {self.most}'
        return f'from {self.least} to {self.most}'


# Ranges of `SamplingParameters`; a server's schemas read them too.
LIMITS = dict(
    max_tokens=Limits(0, 2**17),  # the context is what bounds it
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
    """The constraint on one reply: which tokens may come next."""

    def allowed(self) -> np.ndarray:
        """uint32 (ceil(V / 32),), a bit a token, the lowest bit first."""

    def accept(self, token: int) -> None:
        """Advances by the token that was drawn."""

    def ended(self) -> bool:
        """Whether nothing more can follow."""


@dataclass(frozen=True)
class SamplingParameters:
    """The parameters of a reply's draws, and where it ends.

    max_tokens: at most so many are drawn; 0 only scores the prompt.
    temperature: divides the logits; 0: the likeliest token.
    top_k: tokens that stay, the likeliest; 0: all.
    top_p: the likeliest stay until their probabilities add up to it; 1: all.
    min_p: those stay with this share of the likeliest's probability; 0: all.
    repetition_penalty: divides a positive logit of a token that prompt or reply
        have, and multiplies a negative one (Keskar et al. 2019); 1: none.
    presence_penalty: taken from the logit of a token that the reply has.
    frequency_penalty: the same, times how often.
    logit_bias: added to the logits of these tokens.
    seed: of the draws. The same weights, prompt, parameters and seed give the
        same reply, whatever else runs.
    stop: the reply ends before the first of these strings to be complete.
    stop_tokens: and at these tokens. EOS always ends it.
    logprobs: alternatives listed beside each token; None: no log-probabilities.
    prompt_logprobs: log-probabilities of the prompt's tokens too.
    grammar: allows some tokens only; of this one request.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: Grammar | None = None


class Token(NamedTuple):
    """A token of a reply or a prompt.

    logprob: ln P under the model itself: temperature 1, no penalties, no filters;
        None where it was not asked for, and of a prompt's first token.
    top: the likeliest (id, logprob), best first. The token's own entry, where it
        is among them, is the identical float.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Update(NamedTuple):
    """News of a request from the engine. All texts joined are the reply.

    text: never holds a stop string, a part of one, or half a character.
    tokens: those the text is from. Those of text that is held back come later; those
        of text that a stop string cut off never do.
    prompt: once, in the first update, where `prompt_logprobs` was asked for.
    finish: in the last one: 'stop' (EOS, stop token, stop string, the grammar's
        end), 'length', 'cancelled' or 'error'.
    stopped_by: the stop string, or the stop token's id; None for EOS.
    ending: the EOS or stop token that ended the reply.
    error: what went wrong, where `finish` is 'error'.
    """

    text: str = ''
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] | None = None
    finish: str | None = None
    stopped_by: str | int | None = None
    ending: Token | None = None
    error: str | None = None


class Reply(NamedTuple):
    """A whole reply; the fields are those of its updates, joined."""

    text: str
    tokens: tuple[Token, ...]
    prompt: tuple[Token, ...] | None
    finish: str
    stopped_by: str | int | None
    ending: Token | None


def join_updates(updates: Sequence[Update]) -> Reply:
    """The whole reply that updates add up to; RuntimeError if the engine failed."""
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
    """As many requests wait as may; later there is room again."""


class EngineStopped(Exception):
    """The engine draws no more: it has failed, or it was closed."""


class ContextOverflow(UserError):
    """The prompt leaves no room for a reply."""

    def __init__(self, prompt_tokens: int, context: int):
        super().__init__(
            f'the prompt has {prompt_tokens} tokens and the context {context}: '
            f'shorten it to {context - 1} at most, so that a reply has room'
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


def check_parameters(
    parameters: SamplingParameters, vocab_size: int, prefix: str = ''
) -> None:
    """Refuses fields out of range; `prefix`, as 'sample.', goes before their names."""
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
