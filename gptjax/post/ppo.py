"""PPO: a critic says what to expect of each token, the policy ascends what exceeds it.

Schulman et al. 2017 as Stiennon et al. 2020 and Ouyang et al. 2022 train language
models with it: the reward of a reply stands at its last token, less k1 of the KL to
the reference at every token; generalised advantages; ratios and values are clipped.
The loss, divided once by the tokens of all replies in an update, is

    clipped surrogate + value_coefficient x value loss
        + kl_loss x k2 - entropy x entropy + ptx x language loss

The last is PPO-ptx: text that the model was pretrained on, so that it is not forgotten.
The critic is a head on the policy's own hidden vectors ('head'), or a network of its
own that begins as a copy of the policy or as a reward model ('network'). For the first
`ppo.warm_up` rollouts it alone is trained: not even the hidden vectors below its head
move.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.data.packed_dataset import PackedDataset
from gptjax.models import gpt, heads
from gptjax.parallel.mesh import batch_shards
from gptjax.post.experience import Algorithm
from gptjax.post.objectives import advantages, policy_losses, reply_tokens
from gptjax.post.objectives.kl import kl_in_reward
from gptjax.post.objectives.logprobs import hidden_logprobs, token_logprobs
from gptjax.post.policy_gradient import train_policy
from gptjax.post.policy_model import PolicyModel
from gptjax.post.reward_functions import find_reward_run
from gptjax.post.reward_model import load_reward_model, read_center
from gptjax.train import config_checks
from gptjax.train.load_model import Trained
from gptjax.train.loop import Command
from gptjax.train.losses import make_language_loss

TOKEN_METRICS = (
    *('ratio', 'clip_fraction', 'approx_kl', 'advantage', 'entropy', 'kl_loss'),
    *('value_loss', 'value_clip_fraction', 'value'),
)


def ppo(config: ConfigDict, workdir: Path) -> dict:
    """Trains RUN by proximal policy optimisation; see `train_policy`."""
    check_config(config)
    return train_policy(config, workdir, make_algorithm)


def check_config(config: ConfigDict) -> None:
    """Refuses fields of the section `ppo` that do not fit each other.

    Raises:
        UserError: it names the field.
    """
    section = config.ppo
    if section.critic != 'network':
        why = f'where ppo.critic={section.critic}'
        config_checks.check_unused(config, 'ppo', ['critic_run'], why)


def make_algorithm(
    config: ConfigDict, trained: Trained, policy: PolicyModel, mesh: Mesh
) -> Algorithm:
    """The algorithm, for `train_policy`."""
    settings, section = trained.settings, config.ppo
    options = dict(temperature=config.policy.temperature, chunk=config.train.loss_chunk)
    extra_arrays, identity = None, {}
    if section.ptx:
        check_text_rows(config, batch_shards(mesh))
        text = open_text(config)
        extra_arrays = make_text_arrays(config, text)
        identity['text'] = text.fingerprint

    def forward(policy_params, params, batch, policy_on):
        """(log-probabilities, entropy, values) of the targets, (B, T) each."""
        model = gpt.bind(settings, policy_params)
        hidden = model.hidden(batch['inputs'], batch['segments'], batch['positions'])
        logprobs_BT, entropy_BT = hidden_logprobs(
            model, hidden, batch['targets'], **options
        )
        values_BT = heads.compute_values(settings, params, hidden, batch, policy_on)
        return logprobs_BT, entropy_BT, values_BT

    def score_tokens(params, reference, batch):
        policy_params = policy.compute(params, reference)
        logprobs_BT, _, values_BT = forward(policy_params, params, batch, 1.0)
        reference_BT, _ = token_logprobs(settings, reference, batch, **options)
        return dict(old=logprobs_BT, reference=reference_BT, values=values_BT)

    def init_arguments():
        if not section.critic_run:
            return ()
        return (load_critic(section.critic_run, config.chat.template, trained, mesh),)

    return Algorithm(
        score_tokens=score_tokens,
        compute_advantages=partial(compute_advantages, section),
        loss_fn=make_loss(config, policy, forward, settings),
        token_metrics=TOKEN_METRICS,
        extra_arrays=extra_arrays,
        identity=identity,
        init_arguments=init_arguments,
        warm_up=section.warm_up,
    )


def compute_advantages(section: ConfigDict, batch: dict, scores_B, coefficient):
    """(the batch with `advantages` and `returns`, metrics), of a whole rollout."""
    mask_BT = batch['weights']
    rewards_BT = advantages.terminal_rewards(scores_B, mask_BT)
    rewards_BT = kl_in_reward(
        rewards_BT, batch['old'], batch['reference'], mask_BT, coefficient
    )
    advantages_BT, returns_BT = advantages.gae(
        rewards_BT, batch['values'], mask_BT, section.gamma, section.lam
    )
    explained = policy_losses.explained_variance(batch['values'], returns_BT, mask_BT)
    if section.whiten:
        advantages_BT = advantages.whiten(advantages_BT, mask_BT)
    batch = dict(
        batch, advantages=np.asarray(advantages_BT), returns=np.asarray(returns_BT)
    )
    return batch, dict(explained_variance=float(explained))


def make_loss(
    config: ConfigDict, policy: PolicyModel, forward: Callable, settings
) -> Callable:
    """`Algorithm.loss_fn`; the formula is in the file's docstring."""
    section, shared = config.ppo, config.policy
    language_loss = make_language_loss(settings, config.train)

    def loss_fn(params, batch, key, control, reference=None):
        del key  # no dropout: the replies were drawn without
        mask_BT, policy_on = batch['weights'], control['policy']
        policy_params = policy.compute(params, reference)
        logprobs_BT, entropy_BT, values_BT = forward(
            policy_params, params, batch, policy_on
        )
        loss_BT, metrics = policy_losses.clipped(
            logprobs_BT,
            batch['old'],
            batch['advantages'],
            mask_BT,
            section.clip_low,
            section.clip_high,
        )
        loss_BT, kl_metrics = policy_losses.add_kl_and_entropy(
            loss_BT,
            logprobs_BT,
            batch['reference'],
            entropy_BT,
            mask_BT,
            shared.entropy,
            control['coefficient'] if shared.kl_loss else None,
        )
        value_BT, value_metrics = policy_losses.value_loss(
            values_BT, batch['values'], batch['returns'], mask_BT, section.value_clip
        )
        metrics.update(
            kl_metrics, **value_metrics, value_loss=value_BT, value=values_BT
        )
        total_BT = policy_on * loss_BT + section.value_coefficient * value_BT
        weights_BT, counts_B = reply_tokens.token_weights(mask_BT)
        total, metrics = reply_tokens.sum_losses(
            total_BT, metrics, mask_BT, weights_BT, counts_B
        )
        if section.ptx:
            text_loss, text_metrics = language_loss(policy_params, batch['ptx'], None)
            total += policy_on * section.ptx * text_loss
            metrics['ptx_loss'] = text_metrics['loss']
        return total, metrics

    return loss_fn


def load_critic(run: str, template: str, trained: Trained, mesh: Mesh) -> dict:
    """A reward model's parameters, for a critic that begins as one.

    The bias of its head is less the mean reward, so that its values are those of the
    reward model as `task.rewards` counts it, with weight 1.

    Args:
        run: of the stage `reward`.
        template: of the chats that the policy reads.
        trained: the model that the run starts from.
        mesh: where it is laid out.

    Raises:
        UserError: it is no finished run, or reads another template, tokenizer or shape.
    """
    folder = find_reward_run(run, 'ppo.critic_run')
    config, field = run_dir.read_config(folder), f'ppo.critic_run={folder}'
    if config.chat.template != template:
        raise UserError(
            f'{field} reads chats as {config.chat.template}, and the policy as '
            f'{template}: name a reward model that started from a fine-tuned run'
        )
    reward_model = load_reward_model(config, folder, mesh)
    if reward_model.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise UserError(
            f'{field} was trained with another tokenizer than start.run: name a reward '
            'model that started from the same run'
        )
    shapes = lambda params: jax.tree.map(jnp.shape, params)
    params, head = heads.split_heads(reward_model.params)
    if shapes(params) != shapes(trained.params):
        raise UserError(
            f'{field} is a model of another shape than start.run: name a reward model '
            "that started from the same run, or use ppo.critic_run=''"
        )
    head = dict(head[heads.REWARD_HEAD])
    head['bias'] = head['bias'] - read_center(folder)
    return {**params, heads.REWARD_HEAD: head}


# ---- PPO-ptx: rows of pretraining text in every update


def check_text_rows(config: ConfigDict, shards: int) -> None:
    """Refuses text that does not divide into micro-batches and devices."""
    parts, rows = config.train.accumulation * shards, config.ppo.ptx_rows
    if rows % parts:
        raise UserError(
            f'ppo.ptx_rows={rows} is not divisible by train.accumulation * mesh.data * '
            f'mesh.fsdp = {parts}: use a multiple'
        )


def open_text(config: ConfigDict) -> PackedDataset:
    """The pretraining text of PPO-ptx.

    Raises:
        UserError: `ppo.ptx_run` has no prepared text, or another tokenizer.
    """
    section, run = config.ppo, Path(config.ppo.ptx_run).expanduser()
    if not section.ptx_run:
        raise UserError(
            f'ppo.ptx={section.ptx}: name the run with the text in ppo.ptx_run, as '
            'runs/chitchat, or set ppo.ptx=0'
        )
    packed = PackedDataset(run / 'prepared', 'train')
    tokenizer = Path(config.start.run) / 'tokenizer' / 'tokenizer.model'
    if packed.tokenizer != storage.sha256_of_file(tokenizer):
        raise UserError(
            f'ppo.ptx_run={run} was prepared with another tokenizer than '
            f'start.run={config.start.run}: name the run that it was pretrained in'
        )

    return packed


def make_text_arrays(config: ConfigDict, packed: PackedDataset) -> Callable:
    """`Algorithm.extra_arrays`: `{'ptx': arrays}` of an update's number and replies.

    Which rows of text they are is a function of (seed, number). The step divides by
    the replies' tokens; the weights make of that a mean over the text's tokens.
    """
    section = config.ppo

    def text_arrays(number, batch):
        slots = number * section.ptx_rows + np.arange(section.ptx_rows)
        rows = packed.load(packed.choose_training_rows(config.seed, slots))
        _, counts_B = reply_tokens.token_weights(batch['weights'])
        text_weights_BT = reply_tokens.second_loss_weights(rows['weights'], counts_B)
        return dict(ptx=dict(rows, weights=np.asarray(text_weights_BT)))

    return text_arrays


COMMAND = Command(
    ppo,
    check_config,
    sections=('ppo', 'policy', 'start', 'task'),
    example='configs/ppo.py',
)
