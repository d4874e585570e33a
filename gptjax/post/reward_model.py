"""Reward models: a language model and a head that scores the end of a conversation.

This file computes rewards and loads reward models; `reward.py` trains them.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.comparisons import (
    EncodedConversation,
    encode_end,
    make_comparison_arrays,
)
from gptjax.data.preference_pairs import batch_in_order
from gptjax.models import gpt, heads, settings
from gptjax.optim.optimizer import ema_params, make_optimizer
from gptjax.parallel.mesh import batch_shards
from gptjax.parallel.sharding import put_on_mesh, replicated
from gptjax.tokenizer.load_tokenizer import AnyTokenizer, load_tokenizer
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import Trained
from gptjax.train.state import TrainState, abstract_state

RESULTS = 'results.json'
ROWS_AT_ONCE = 32


def compute_rewards(settings, params, arrays, key=None):
    """The reward of each conversation, float32 in the shape of `arrays['last']`.

    Args:
        params: parameters of the model and 'reward_head'.
        arrays: `inputs`, `segments`, `positions` (…, T) and `last` (…), int32, from
            `comparisons.make_comparison_arrays`.
        key: for dropout; None means no dropout.
    """
    T = arrays['inputs'].shape[-1]
    tokens = (arrays[name].reshape(-1, T) for name in TOKEN_ARRAYS)
    model, head = heads.split_heads(params)
    hidden = gpt.bind(settings, model).hidden(*tokens, key)
    rewards = heads.compute_rewards(
        head[heads.REWARD_HEAD], hidden, arrays['last'].reshape(-1)
    )
    return rewards.reshape(arrays['last'].shape)


TOKEN_ARRAYS = ('inputs', 'segments', 'positions')
WITHOUT_TOKENS = ('last', 'values', 'margins')  # (B, G): arrays without a token axis


def make_reward_scorer(settings, tokenizer, context: int, mesh: Mesh) -> Callable:
    """`scorer(params, encoded) -> rewards (N,)`, float32 NumPy, computed in batches."""
    rows = math.lcm(ROWS_AT_ONCE, batch_shards(mesh))
    compiled = jax.jit(
        lambda params, arrays: compute_rewards(settings, params, arrays),
        out_shardings=replicated(mesh),
    )

    def scorer(params, encoded: Sequence[EncodedConversation]) -> np.ndarray:
        with jax.set_mesh(mesh):
            parts = []
            for chosen in batch_in_order(len(encoded), rows):
                arrays = make_comparison_arrays(
                    encoded, chosen, context, tokenizer.pad_id
                )
                parts.append(
                    compiled(params, put_on_mesh(arrays, mesh, WITHOUT_TOKENS))
                )
        whole = np.concatenate([np.zeros(0, np.float32), *map(np.asarray, parts)])
        return whole[: len(encoded)]

    return scorer


def reward_shapes(model) -> tuple[dict, dict]:
    """(shapes, axes) of the parameters of a reward model, with the head."""
    shapes = dict(
        gpt.abstract_params(model),
        **jax.eval_shape(
            lambda key: heads.init_reward_head(model, key), jax.random.key(0)
        ),
    )
    return shapes, dict(gpt.param_axes(model), **heads.head_axes(heads.REWARD_HEAD))


def abstract_reward_state(config: ConfigDict, model, mesh: Mesh) -> TrainState:
    """Shapes and shardings of the training state."""
    shapes, axes = reward_shapes(model)
    return abstract_state(shapes, make_optimizer(config, shapes), axes, mesh)


def reward_identity(config: ConfigDict, tokenizer: AnyTokenizer) -> dict:
    """What a checkpoint depends on besides weights: how conversations are encoded."""
    return dict(
        tokenizer=tokenizer.fingerprint,
        context=config.data.context,
        template=config.chat.template,
    )


def load_reward_model(config: ConfigDict, workdir: Path, mesh: Mesh) -> Trained:
    """The checkpoint with the lowest validation loss of a reward run, with the head.

    Raises:
        UserError: there is no reward model.
    """
    if 'reward' not in config or not (workdir / 'checkpoints').is_dir():
        raise UserError(
            f'--workdir={workdir}: no reward model there: run the stage reward first'
        )
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    model = settings.resolve(config.model, tokenizer.vocab_size)
    with jax.set_mesh(mesh):
        abstract = abstract_reward_state(config, model, mesh)
        identity = reward_identity(config, tokenizer)
        checkpoints = Checkpoints(workdir / 'checkpoints', identity, read_only=True)
        part = lambda state: (state.step, ema_params(state.opt_state, state.params))
        restored = checkpoints.restore(abstract, checkpoints.best_step(), select=part)
        checkpoints.close()
    if restored is None:
        raise UserError(f'{workdir}/checkpoints is empty: run the stage reward first')
    step, params = restored[0]
    return Trained(model, params, tokenizer, int(step))


def read_center(workdir: Path) -> np.float32:
    """The mean reward of the training conversations of a finished run."""
    path = workdir / RESULTS
    results = storage.read_undamaged(path)
    if results is None:
        raise UserError(
            f'{path} is not there, or damaged: run the stage reward to its end'
        )
    return np.float32(results['center'])


def load_reward_function(
    config: ConfigDict, workdir: Path, mesh: Mesh
) -> Callable[..., np.ndarray]:
    """`rewards(conversations, truncated=None) -> (N,)` float32, for best-of-n and PPO.

    A conversation is a list of messages; the reward is for the last message, given the
    others. A message that is truncated gets no end, as it was generated without one.
    The mean reward of the training conversations is subtracted, so 0 is the average.
    Conversations that do not fit the context lose their first messages.

    Raises:
        UserError: the run has no reward model, or is not finished.
    """
    center = read_center(workdir)
    trained = load_reward_model(config, workdir, mesh)
    context, template = config.data.context, config.chat.template
    scorer = make_reward_scorer(trained.settings, trained.tokenizer, context, mesh)

    def rewards(conversations, truncated=None):
        truncated = truncated or [False] * len(conversations)
        encoded = [
            encode_end(messages, trained.tokenizer, template, context, unfinished)
            for messages, unfinished in zip(conversations, truncated, strict=True)
        ]
        return scorer(trained.params, encoded) - center

    return rewards
