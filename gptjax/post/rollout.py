"""Rollouts: replies that the policy generates, as rows of a training batch.

Replies come from the same engine that serves. The seed of a reply follows from (seed,
rollout, place), so that a killed run generates the same rollout again. The engine has
no dropout, and no top-k or top-p: the sampling distribution is the one that is trained.

A row with the prompt `p q` and the reply `a b <|end|>`, padded to T = 6:

    inputs    p q a b     pad pad
    targets   q a b <end> pad pad
    weights   0 1 1 1     0   0      the policy also chooses the stop token
    segments  1 1 1 1     0   0

A reply that was truncated at `policy.max_tokens` has no stop token.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.core.config import cache_context
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_integer
from gptjax.data import chat_template
from gptjax.infer.engine import Engine
from gptjax.infer.quantize import cast_params
from gptjax.infer.request import Reply, SamplingParameters, Token
from gptjax.models import gpt
from gptjax.parallel import multihost, watchdog
from gptjax.parallel.mesh import get_mesh, make_mesh
from gptjax.parallel.sharding import replicated, state_shardings
from gptjax.post.problems.problem_sources import Problem
from gptjax.train.load_model import Trained

# The signature of `Engine.complete`.
Complete = Callable[
    [Sequence[Sequence[int]], Sequence[SamplingParameters]], list[Reply]
]


class ReplyText(str):
    """The text of a reply; `truncated` says whether the reply has no stop token."""

    truncated: bool

    @classmethod
    def of(cls, reply: Reply) -> 'ReplyText':
        text = cls(reply.text)
        text.truncated = reply.ending is None
        return text


class Rollout(NamedTuple):
    """B rows with a reply each; the G replies to a prompt are neighbours.

    problems: the problem of each row.
    replies: texts, with the names of special tokens that are not the stop token.
    batch: inputs, targets, segments, positions int32 (B, T), weights float32 (B, T):
        1 where the target is a token of the reply.
    sampled_BT: float32, the engine's log-probabilities of the targets at temperature 1;
        0 where the weights are 0.
    lengths_B: int32, tokens of the replies, including the stop token.
    truncated_B: bool, whether the reply has no stop token.
    """

    problems: list[Problem]
    replies: list[ReplyText]
    batch: dict[str, np.ndarray]
    sampled_BT: np.ndarray
    lengths_B: np.ndarray
    truncated_B: np.ndarray


class PromptFormat(NamedTuple):
    """How prompts are written and replies are sampled.

    context: T, the tokens of a row.
    max_tokens: of a reply.
    section: of the config, for messages.
    longest: the positions of the model, for messages.
    """

    tokenizer: object
    template: str
    context: int
    max_tokens: int
    temperature: float
    section: str = 'eval'
    longest: int = 0

    def prompt(self, messages: Sequence[dict]) -> list[int]:
        return chat_template.encode_prompt(
            list(messages), self.tokenizer, self.template
        )

    def fits(self, messages: Sequence[dict]) -> bool:
        """Whether a row has room for the prompt and the longest reply."""
        return len(self.prompt(messages)) + self.max_tokens <= self.context

    @property
    def room_advice(self) -> str:
        """How to make more prompts fit, for the error of a task without problems."""
        field = f'--config.{self.section}.max_tokens={self.max_tokens}'
        room = self.context - self.max_tokens
        return (
            f'use less than {field}, which leaves {room} of '
            f'data.context={self.context} tokens for the prompt'
            + _larger_context(self.context, self.longest)
        )


def make_prompt_format(config: ConfigDict, name: str, tokenizer) -> PromptFormat:
    """The prompt format for the config section `name`, for example 'policy'."""
    section, context = config[name], config.data.context
    if config.chat.template != 'turns':
        raise UserError(
            f'chat.template={config.chat.template}: replies need a stop token: '
            "start from a run of the stage sft, which has chat.template='turns'"
        )
    if section.max_tokens >= context:
        raise UserError(
            f'{name}.max_tokens={section.max_tokens}: use less than '
            f'data.context={context}' + _larger_context(context, config.model.context)
        )
    return PromptFormat(
        tokenizer,
        'turns',
        context,
        section.max_tokens,
        section.temperature,
        name,
        config.model.context,
    )


def _larger_context(context: int, longest: int) -> str:
    """Advice for errors, if the model has more positions than `data.context`."""
    return f', or a larger data.context, up to {longest}' if context < longest else ''


# ---- generating replies


def draw_rollout(
    complete: Complete,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    replies: int,
    seed: int,
    name: int | str,
) -> Rollout:
    """A rollout with `replies` replies to each problem, each sampled with its own seed.

    `name` identifies the rollout: two rollouts of a run must have different names.
    """
    rows = [problem for problem in problems for _ in range(replies)]
    requests = _make_requests(prompt_format, problems, replies, (seed, name))
    return build_rollout(prompt_format, rows, requests[0], complete(*requests))


def generate_replies(
    complete: Complete,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    temperature: float,
    seed: int,
    replies: int = 1,
    first: int = 0,
) -> list[Reply]:
    """Replies for an evaluation; the `replies` replies to a problem are neighbours.

    `first` is the index of the first problem, if the caller splits the problems.
    Temperature 0 is greedy decoding.
    """
    requests = _make_requests(
        prompt_format,
        problems,
        replies,
        (seed, 'answers'),
        first * replies,
        temperature=temperature,
    )
    return complete(*requests)


def _make_requests(prompt_format, problems, replies, seed_words, first=0, **changes):
    """(prompts, sampling parameters) of the replies; `first` is a reply's index."""
    prompts = []
    for problem in problems:
        prompts += [prompt_format.prompt(problem.messages)] * replies
    parameters = [
        sampling_parameters(
            prompt_format,
            seed=hash_integer(*seed_words, place, num_bytes=4),
            **changes,
        )
        for place in range(first, first + len(prompts))
    ]
    return prompts, parameters


def sampling_parameters(prompt_format: PromptFormat, **changes) -> SamplingParameters:
    """Parameters of a reply that stops where the chat template ends a message."""
    stops, stop_tokens = chat_template.stop_conditions(
        prompt_format.template, prompt_format.tokenizer
    )
    default = dict(
        max_tokens=prompt_format.max_tokens,
        temperature=prompt_format.temperature,
        stop=tuple(stops),
        stop_tokens=tuple(stop_tokens),
        logprobs=0,
        skip_special_tokens=False,  # 'Five.<|user|>' is not judged as 'Five.'
    )
    return SamplingParameters(**{**default, **changes})


def build_rollout(
    prompt_format: PromptFormat, problems, prompts, replies: Sequence[Reply]
) -> Rollout:
    """The rollout of prompts and replies; the table above shows a row."""
    B, T = len(replies), prompt_format.context
    inputs = np.full((B, T), prompt_format.tokenizer.pad_id, np.int32)
    targets = inputs.copy()
    segments, positions = np.zeros((2, B, T), np.int32)
    weights, sampled = np.zeros((2, B, T), np.float32)
    lengths = np.zeros(B, np.int32)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        reply_tokens = [*reply.tokens, *([reply.ending] if reply.ending else [])]
        ids = [*prompt, *(token.id for token in reply_tokens)]
        end, start = len(ids) - 1, len(prompt) - 1
        inputs[row, :end] = ids[:-1]
        targets[row, :end] = ids[1:]
        segments[row, :end] = 1
        positions[row, :end] = np.arange(end)
        weights[row, start:end] = 1
        sampled[row, start:end] = [token.logprob for token in reply_tokens]
        lengths[row] = len(reply_tokens)
    return Rollout(
        problems=list(problems),
        replies=[ReplyText.of(reply) for reply in replies],
        batch=dict(
            inputs=inputs,
            targets=targets,
            segments=segments,
            positions=positions,
            weights=weights,
        ),
        sampled_BT=sampled,
        lengths_B=lengths,
        truncated_B=np.array([reply.ending is None for reply in replies]),
    )


def select_rows(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """A rollout of these rows, in this order."""
    rows = np.asarray(rows, np.int64)
    return Rollout(
        problems=[rollout.problems[row] for row in rows],
        replies=[rollout.replies[row] for row in rows],
        batch={name: array[rows] for name, array in rollout.batch.items()},
        sampled_BT=rollout.sampled_BT[rows],
        lengths_B=rollout.lengths_B[rows],
        truncated_B=rollout.truncated_B[rows],
    )


def concatenate_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout with the rows of all."""
    names = rollouts[0].batch
    stack = lambda arrays: np.concatenate(list(arrays))
    return Rollout(
        problems=[problem for rollout in rollouts for problem in rollout.problems],
        replies=[reply for rollout in rollouts for reply in rollout.replies],
        batch={name: stack(r.batch[name] for r in rollouts) for name in names},
        sampled_BT=stack(r.sampled_BT for r in rollouts),
        lengths_B=stack(r.lengths_B for r in rollouts),
        truncated_B=stack(r.truncated_B for r in rollouts),
    )


# ---- the engines


class Sampler:
    """Engines that generate replies with the weights of a model in training.

    Every `tensor` devices of this process have an engine, with its own copy of the
    weights in the model's compute dtype; `update_weights` copies them anew before each
    rollout. The prompts are divided among the engines of all processes, and every
    process gets all replies. All engines run the same programs, so a reply does not
    depend on the engine that generates it.

    Args:
        params: of the policy, on the training mesh.
        slots: the number of replies that an engine generates at once.
        context: the most tokens of a prompt and its reply; None: that of the model.
        tensor: the number of devices that share one copy of the weights.
    """

    def __init__(
        self,
        settings,
        params,
        tokenizer,
        slots: int,
        context: int | None = None,
        tensor: int = 1,
    ):
        sizes = ConfigDict(dict(data=1, fsdp=1, tensor=tensor, context=1))
        devices = get_mesh(params).local_devices
        shapes, axes = gpt.abstract_params(settings), gpt.param_axes(settings)
        self._shardings = [
            state_shardings(shapes, axes, make_mesh(sizes, devices[i : i + tensor]))
            for i in range(0, max(1, len(devices) - tensor + 1), tensor)
        ]
        self._dtype = settings.dtype
        everywhere = replicated(get_mesh(params))
        self._gather = jax.jit(lambda params: params, out_shardings=everywhere)
        self._engines = [
            Engine(
                settings, weights, tokenizer, context=context, slots=slots, queue=slots
            )
            for weights in self._transfer(params)
        ]
        self._threads = ThreadPoolExecutor(len(self._engines))
        list(self._threads.map(Engine.warm_up, self._engines))

    def update_weights(self, params, name: str) -> None:
        """Replaces the weights; `name` becomes the engines' fingerprint."""
        for engine, weights in zip(self._engines, self._transfer(params), strict=True):
            engine.update_weights(weights, name)

    def complete(self, prompts, parameters) -> list[Reply]:
        """`Engine.complete`; with several processes, each calls it with all prompts."""
        shares = np.array_split(np.arange(len(prompts)), jax.process_count())
        parts = np.array_split(shares[jax.process_index()], len(self._engines))

        def complete_part(engine, part):
            return engine.complete(
                [prompts[place] for place in part],
                [parameters[place] for place in part],
            )

        def complete_share():
            engines = self._engines
            watchdog.at(
                'the rollout',
                progress=lambda: sum(engine.stats().reply_tokens for engine in engines),
            )
            replies = self._threads.map(complete_part, engines, parts)
            replies = [reply for part in replies for reply in part]
            watchdog.at('the replies of all')
            return replies

        gathered = multihost.gather_lists(complete_share)
        return [_read_reply(*fields) for fields in gathered]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._threads.shutdown()

    def _transfer(self, params) -> Iterator:
        """The weights for each engine."""
        params = cast_params(params, self._dtype)
        if jax.process_count() > 1:  # other processes hold some of the shards
            params = jax.tree.map(lambda x: x.addressable_data(0), self._gather(params))
        return (jax.device_put(params, shardings) for shardings in self._shardings)


def _read_reply(text, tokens, prompt, finish, stopped_by, ending) -> Reply:
    """The reply of another process: its fields were sent as JSON, without types."""
    read = lambda token: Token(*token[:2], tuple(map(tuple, token[2])))
    tokens = tuple(read(token) for token in tokens)
    prompt = prompt and tuple(read(token) for token in prompt)
    return Reply(text, tokens, prompt, finish, stopped_by, ending and read(ending))


def make_sampler(trained: Trained, section: ConfigDict, context: int) -> Sampler:
    """A sampler with the `slots` and `generation_tensor` of a config section.

    `context` is that of the `PromptFormat`: prompts that do not fit are left out.
    """
    return Sampler(
        trained.settings,
        trained.params,
        trained.tokenizer,
        slots=section.slots,
        context=cache_context(trained.settings.context, context),
        tensor=section.generation_tensor,
    )
