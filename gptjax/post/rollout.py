"""Replies drawn from the policy, and the rows it trains on.

The engine that serves also draws here. A reply's seed comes from (seed, step, place),
so a rollout is a function of the weights, the seed and the step: a run that is killed
draws the same again. There is no dropout in the engine, and nothing is cut off the
distribution, as top-p would: what is drawn from is what is trained on.

Of the prompt `p q` and the reply `a b <|end|>` the row is, padded to T = 6,

    inputs    p q a b     pad pad
    targets   q a b <end> pad pad
    weights   0 1 1 1     0   0      the stop token is a choice of the policy's too
    segments  1 1 1 1     0   0

A reply that was cut off at `policy.max_tokens` has no stop token and gets none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.hashing import hash_integer
from gptjax.data import chat_template
from gptjax.infer.engine import Engine
from gptjax.infer.request import Reply, SamplingParameters
from gptjax.models import gpt
from gptjax.parallel.mesh import get_mesh, make_mesh
from gptjax.parallel.sharding import partition_spec, replicated
from gptjax.post.problems.problem_sources import Problem
from gptjax.train.load_model import Trained

Complete = Callable[
    [Sequence[Sequence[int]], Sequence[SamplingParameters]], list[Reply]
]


class Rollout(NamedTuple):
    """B replies; the G replies to a prompt stand side by side.

    problems: the problem of each row.
    replies: texts.
    batch: inputs, targets, segments, positions int32 (B, T), weights float32 (B, T):
        1 where the target is the reply's.
    sampled_BT: float32, ln P of the targets as the engine has it (at temperature 1);
        0 where weights are.
    lengths_B: int32, tokens of the replies, the stop token with them.
    truncated_B: bool, cut off before a stop token.
    """

    problems: list[Problem]
    replies: list[str]
    batch: dict[str, np.ndarray]
    sampled_BT: np.ndarray
    lengths_B: np.ndarray
    truncated_B: np.ndarray


class PromptFormat(NamedTuple):
    """How prompts are written and replies are drawn.

    tokenizer: of the run.
    template: of the chat.
    context: T.
    max_tokens: of a reply.
    temperature: of draws.
    """

    tokenizer: object
    template: str
    context: int
    max_tokens: int
    temperature: float

    def prompt(self, messages: Sequence[dict]) -> list[int]:
        return chat_template.encode_prompt(
            list(messages), self.tokenizer, self.template
        )

    def fits(self, messages: Sequence[dict]) -> bool:
        """Whether a row has room for the prompt and the longest reply."""
        return len(self.prompt(messages)) + self.max_tokens <= self.context


def make_prompt_format(config: ConfigDict, name: str, tokenizer) -> PromptFormat:
    """The prompt format of a run that draws by the section `name` of its config.

    Raises:
        UserError: no such length, or a template without a token that ends a turn.
    """
    section, context = config[name], config.data.context
    if config.chat.template != 'turns':
        raise UserError(
            f'chat.template={config.chat.template}: replies must end with a token of '
            "their own: start from a run of the stage sft, whose template is 'turns'"
        )
    if section.max_tokens >= context:
        raise UserError(
            f'{name}.max_tokens={section.max_tokens}: use less than '
            f'data.context={context}'
        )
    return PromptFormat(
        tokenizer, 'turns', context, section.max_tokens, section.temperature
    )


# ---- generating replies


def draw_rollout(
    complete: Complete,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    replies: int,
    seed: int,
    name: int | str,
) -> Rollout:
    """`replies` replies to each problem, each drawn by its own seed.

    Args:
        complete: as the engine's.
        problems: N problems; B = N times `replies`.
        replies: G.
        name: of the rollout; no two rollouts of a run may share it.
    """
    rows = [problem for problem in problems for _ in range(replies)]
    prompts = _format_prompts(prompt_format, problems, replies)
    parameters = [
        sampling_parameters(prompt_format, seed=make_seed(seed, name, place))
        for place in range(len(rows))
    ]
    return build_rollout(prompt_format, rows, prompts, complete(prompts, parameters))


def generate_replies(
    complete: Complete,
    prompt_format: PromptFormat,
    problems: Sequence[Problem],
    temperature: float,
    seed: int,
    replies: int = 1,
    first: int = 0,
) -> list[Reply]:
    """Replies for an evaluation, those to a problem side by side.

    Args:
        complete: as the engine's.
        temperature: 0: the likeliest replies.
        replies: to each problem.
        first: the place of the first problem among all, where they come in parts.
    """
    start = first * replies
    prompts = _format_prompts(prompt_format, problems, replies)
    parameters = [
        sampling_parameters(
            prompt_format,
            temperature=temperature,
            seed=make_seed(seed, 'answers', start + place),
        )
        for place in range(len(prompts))
    ]
    return complete(prompts, parameters)


def _format_prompts(prompt_format, problems, replies):
    once = (prompt_format.prompt(problem.messages) for problem in problems)
    return [prompt for prompt in once for _ in range(replies)]


def sampling_parameters(prompt_format: PromptFormat, **changes) -> SamplingParameters:
    """Parameters of a reply that ends where the template ends a turn."""
    stops, stop_tokens = chat_template.stop_conditions(
        prompt_format.template, prompt_format.tokenizer
    )
    default = dict(
        max_tokens=prompt_format.max_tokens,
        temperature=prompt_format.temperature,
        stop=tuple(stops),
        stop_tokens=tuple(stop_tokens),
        logprobs=0,
    )
    return SamplingParameters(**{**default, **changes})


def make_seed(*words) -> int:
    """A seed of 32 bits that only these words decide."""
    return hash_integer(*words, num_bytes=4)


def build_rollout(
    prompt_format: PromptFormat, problems, prompts, replies: Sequence[Reply]
) -> Rollout:
    """The rows of prompts and the replies to them; see the table above."""
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
        replies=[reply.text for reply in replies],
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
    """Some rows of a rollout, in this order."""
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
    """Rollouts one after another."""
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


# ---- the engine beside the training


class Sampler:
    """An engine on the generation mesh that follows weights on the training mesh.

    Of several processes each has an engine, on its own devices, and draws the whole
    rollout: the same seeds give all of them the same replies.

    Args:
        params: of the policy, on the training mesh.
        slots: replies drawn at once.
        tensor: devices that one copy of the weights is split over to generate.
    """

    def __init__(self, settings, params, tokenizer, slots: int, tensor: int = 1):
        section = ConfigDict(dict(data=1, fsdp=1, tensor=tensor, context=1))
        self.mesh = make_mesh(section, jax.local_devices()[:tensor])
        self._shardings = _shardings(settings, self.mesh)
        everywhere = replicated(get_mesh(params))
        self._gather = jax.jit(lambda params: params, out_shardings=everywhere)
        self._engine = Engine(
            settings, self._transfer(params), tokenizer, slots=slots, queue=slots
        )
        self._engine.warm_up()

    def update_weights(self, params, name: str) -> None:
        """Draws with these weights from now on; `name` says which they are."""
        self._engine.update_weights(self._transfer(params), name)

    def complete(self, prompts, parameters) -> list[Reply]:
        return self._engine.complete(prompts, parameters)

    def close(self) -> None:
        self._engine.close()

    def _transfer(self, params):
        if jax.process_count() > 1:  # parts of them are on devices of others
            params = jax.tree.map(lambda x: x.addressable_data(0), self._gather(params))
        return jax.device_put(params, self._shardings)


def make_sampler(trained: Trained, section: ConfigDict) -> Sampler:
    """An engine that draws replies of a model, as many at once as the section says."""
    return Sampler(
        trained.settings,
        trained.params,
        trained.tokenizer,
        slots=section.slots,
        tensor=section.generation_tensor,
    )


def _shardings(settings, mesh: Mesh):
    axes = gpt.param_axes(settings)
    return jax.tree.map(
        lambda leaf, names: NamedSharding(
            mesh, partition_spec(names, leaf.shape, mesh)
        ),
        gpt.abstract_params(settings),
        axes,
    )
