"""Replies drawn from the policy, and the rows it trains on.

The engine that serves also draws here. A reply's seed comes from (seed, step, place),
so a rollout is a function of the weights, the seed and the step: a run that is killed
draws the same again. There is no dropout in the engine, and nothing is cut off the
distribution (`check_sampling`): what is drawn from is what is trained on.

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
from gptjax.parallel.mesh import make_mesh, mesh_of
from gptjax.parallel.sharding import partition_spec, replicated
from gptjax.post.tasks.verifiable_tasks import Item

Complete = Callable[
    [Sequence[Sequence[int]], Sequence[SamplingParameters]], list[Reply]
]


class Rollout(NamedTuple):
    """B replies; the G replies to a prompt stand side by side.

    items: the problem of each row.
    replies: texts.
    batch: inputs, targets, segments, positions int32 (B, T), weights float32 (B, T):
        1 where the target is the reply's.
    sampled_BT: float32, ln P of the targets as the engine has it (at temperature 1);
        0 where weights are.
    lengths_B: int32, tokens of the replies, the stop token with them.
    truncated_B: bool, cut off before a stop token.
    """

    items: list[Item]
    replies: list[str]
    batch: dict[str, np.ndarray]
    sampled_BT: np.ndarray
    lengths_B: np.ndarray
    truncated_B: np.ndarray


class Style(NamedTuple):
    """What prompts and replies have in common in a run.

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
        return chat_template.prompt_of(list(messages), self.tokenizer, self.template)

    def fits(self, messages: Sequence[dict]) -> bool:
        """Whether a row has room for the prompt and the longest reply."""
        return len(self.prompt(messages)) + self.max_tokens <= self.context


def style_of(config: ConfigDict, tokenizer) -> Style:
    """The style of a run with the section `policy`.

    Raises:
        UserError: the sampling or the template is not one that can be trained on.
    """
    check_sampling(config.policy)
    if config.chat.template != 'turns':
        raise UserError(
            f'chat.template={config.chat.template}: a reply must end with a token that '
            "can be trained: use 'turns', and start from a run of the stage sft"
        )
    policy = config.policy
    if not 1 <= policy.max_tokens < config.data.context:
        raise UserError(
            f'policy.max_tokens={policy.max_tokens}: use at least 1, and less than '
            f'data.context={config.data.context}'
        )
    return Style(
        tokenizer,
        config.chat.template,
        config.data.context,
        policy.max_tokens,
        policy.temperature,
    )


def check_sampling(policy: ConfigDict) -> None:
    """Refuses to sample from another distribution than the one that is trained."""
    for name, off in (('top_k', 0), ('top_p', 1.0), ('min_p', 0.0)):
        if policy[name] != off:
            raise UserError(
                f'policy.{name}={policy[name]}: the policy is trained on its whole '
                f'distribution and must be sampled from it: use policy.{name}={off}'
            )
    if not policy.temperature > 0:
        raise UserError(
            f'policy.temperature={policy.temperature}: use a positive number'
        )


# ---- drawing


def draw(
    complete: Complete,
    style: Style,
    items: Sequence[Item],
    replies: int,
    seed: int,
    step: int,
) -> Rollout:
    """`replies` replies to each item, each drawn by its own seed.

    Args:
        complete: as the engine's.
        style: of the run.
        items: N problems; B = N times `replies`.
        replies: G.
        seed: of the run.
        step: of the rollout; no two may share it.
    """
    rows = [item for item in items for _ in range(replies)]
    prompts = _prompts(style, items, replies)
    parameters = [
        stopping(style, seed=seed_of(seed, step, place)) for place in range(len(rows))
    ]
    drawn = complete(prompts, parameters)
    return rows_of(style, rows, prompts, drawn)


def answers(
    complete: Complete,
    style: Style,
    items: Sequence[Item],
    temperature: float,
    seed: int,
    replies: int = 1,
    first: int = 0,
) -> list[Reply]:
    """Replies for an evaluation, those to an item side by side.

    Args:
        complete: as the engine's.
        style: of the run.
        items: the problems.
        temperature: of draws; 0: the likeliest.
        seed: of the draws.
        replies: to each item.
        first: the place of the first item among all, where they come in parts.
    """
    start = first * replies
    prompts = _prompts(style, items, replies)
    parameters = [
        stopping(
            style, temperature=temperature, seed=seed_of(seed, 'answers', start + place)
        )
        for place in range(len(prompts))
    ]
    return complete(prompts, parameters)


def _prompts(style, items, replies):
    once = (style.prompt(item.messages) for item in items)
    return [prompt for prompt in once for _ in range(replies)]


def stopping(style: Style, **changes) -> SamplingParameters:
    """Parameters of a reply that ends where the template ends a turn."""
    stops, stop_tokens = chat_template.stops_of(style.template, style.tokenizer)
    default = dict(
        max_tokens=style.max_tokens,
        temperature=style.temperature,
        stop=tuple(stops),
        stop_tokens=tuple(stop_tokens),
        logprobs=0,
    )
    return SamplingParameters(**{**default, **changes})


def seed_of(*words) -> int:
    """A seed of 32 bits that only these words decide."""
    return hash_integer(*words, num_bytes=4)


def rows_of(style: Style, items, prompts, drawn: Sequence[Reply]) -> Rollout:
    """The rows of prompts and the replies to them; see the table above."""
    B, T = len(drawn), style.context
    inputs = np.full((B, T), style.tokenizer.pad_id, np.int32)
    targets = inputs.copy()
    segments, positions = np.zeros((2, B, T), np.int32)
    weights, sampled = np.zeros((2, B, T), np.float32)
    lengths = np.zeros(B, np.int32)
    for row, (prompt, reply) in enumerate(zip(prompts, drawn, strict=True)):
        tokens = [*reply.tokens, *([reply.ending] if reply.ending else [])]
        text = [*prompt, *(token.id for token in tokens)]
        end, start = len(text) - 1, len(prompt) - 1
        inputs[row, :end] = text[:-1]
        targets[row, :end] = text[1:]
        segments[row, :end] = 1
        positions[row, :end] = np.arange(end)
        weights[row, start:end] = 1
        sampled[row, start:end] = [token.logprob for token in tokens]
        lengths[row] = len(tokens)
    return Rollout(
        items=list(items),
        replies=[reply.text for reply in drawn],
        batch=dict(
            inputs=inputs,
            targets=targets,
            segments=segments,
            positions=positions,
            weights=weights,
        ),
        sampled_BT=sampled,
        lengths_B=lengths,
        truncated_B=np.array([reply.ending is None for reply in drawn]),
    )


def take(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """Some rows of a rollout, in this order."""
    rows = np.asarray(rows, np.int64)
    return Rollout(
        items=[rollout.items[row] for row in rows],
        replies=[rollout.replies[row] for row in rows],
        batch={name: array[rows] for name, array in rollout.batch.items()},
        sampled_BT=rollout.sampled_BT[rows],
        lengths_B=rollout.lengths_B[rows],
        truncated_B=rollout.truncated_B[rows],
    )


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts one after another."""
    names = rollouts[0].batch
    stack = lambda arrays: np.concatenate(list(arrays))
    return Rollout(
        items=[item for rollout in rollouts for item in rollout.items],
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
        settings: of the model.
        params: of the policy, on the training mesh.
        tokenizer: of the run.
        slots: replies drawn at once.
        tensor: devices that one copy of the weights is split over to generate.
    """

    def __init__(self, settings, params, tokenizer, slots: int, tensor: int = 1):
        section = ConfigDict(dict(data=1, fsdp=1, tensor=tensor, context=1))
        self.mesh = make_mesh(section, jax.local_devices()[:tensor])
        self._shardings = _shardings(settings, self.mesh)
        everywhere = replicated(mesh_of(params))
        self._gather = jax.jit(lambda params: params, out_shardings=everywhere)
        self._engine = Engine(
            settings, self._moved(params), tokenizer, slots=slots, queue=slots
        )
        self._engine.warm_up()

    def follow(self, params, name: str) -> None:
        """Draws with these weights from now on; `name` says which they are."""
        self._engine.update_weights(self._moved(params), name)

    def complete(self, prompts, parameters) -> list[Reply]:
        return self._engine.complete(prompts, parameters)

    def close(self) -> None:
        self._engine.close()

    def _moved(self, params):
        if jax.process_count() > 1:  # parts of them are on devices of others
            params = jax.tree.map(lambda x: x.addressable_data(0), self._gather(params))
        return jax.device_put(params, self._shardings)


def _shardings(settings, mesh: Mesh):
    axes = gpt.param_axes(settings)
    return jax.tree.map(
        lambda leaf, names: NamedSharding(
            mesh, partition_spec(names, leaf.shape, mesh)
        ),
        gpt.abstract_params(settings),
        axes,
    )
