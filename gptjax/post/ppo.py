"""PPO: proximal policy optimisation (Schulman et al. 2017) with a critic.

As Stiennon et al. 2020 and Ouyang et al. 2022 train language models: the last token of
a reply has the reward, every token has the penalty of the KL to the reference (k1, see
objectives/kl.py), advantages are generalised (GAE), and ratios and values are clipped.
The loss, divided by the number of reply tokens in an update, is

    clipped policy loss + value_coefficient x value loss
        + kl_loss x KL - entropy x entropy + ptx x language loss

The last term is PPO-ptx, the loss on pretraining text, against forgetting. The critic
is a head on the policy's hidden vectors (ppo.critic='head'), or a separate network that
is initialised as a copy of the policy or of a reward model ('network'). During the
first `ppo.warm_up` rollouts only the critic is trained; the policy does not change.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.data.packed_dataset import PackedDataset
from gptjax.models import gpt, heads
from gptjax.parallel.mesh import batch_shards
from gptjax.post.experience import Algorithm, kl_estimator
from gptjax.post.objectives import advantages, policy_losses, reply_tokens
from gptjax.post.objectives.kl import k1, kl_in_reward
from gptjax.post.objectives.logprobs import hidden_logprobs, token_logprobs
from gptjax.post.policy_gradient import train_policy
from gptjax.post.policy_model import PolicyModel
from gptjax.post.reward_functions import find_reward_run
from gptjax.post.reward_model import load_reward_model, read_center
from gptjax.tokenizer.load_tokenizer import load_tokenizer
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
    """Refuses fields of the section `ppo` that do not fit each other."""
    config_checks.check_unused(config, 'ppo')


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
        """(log-probabilities, entropies, values) of the targets, (B, T) each."""
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
        compute_advantages=partial(
            compute_advantages,
            section,
            estimator=kl_estimator(config.policy, 'kl_reward'),
        ),
        loss_fn=make_loss(config, policy, forward, settings),
        token_metrics=TOKEN_METRICS,
        extra_arrays=extra_arrays,
        identity=identity,
        init_arguments=init_arguments,
        warm_up=section.warm_up,
        has_critic=True,
    )


def compute_advantages(
    section: ConfigDict, batch: dict, scores_B, coefficient, estimator=k1
):
    """(the batch with `advantages` and `returns`, metrics), of a whole rollout.

    Args:
        coefficient: of the KL in the reward.
        estimator: of that KL.
    """
    mask_BT = batch['weights']
    rewards_BT = advantages.terminal_rewards(scores_B, mask_BT)
    logprobs = (batch['old'], batch['reference'])
    rewards_BT = kl_in_reward(rewards_BT, *logprobs, mask_BT, coefficient, estimator)
    advantages_BT, returns_BT = advantages.gae(
        rewards_BT, batch['values'], mask_BT, section.gamma, section.lam
    )
    explained = policy_losses.explained_variance(batch['values'], returns_BT, mask_BT)
    if section.whiten:
        advantages_BT = advantages.whiten(advantages_BT, mask_BT)
    batch = dict(batch, advantages=advantages_BT, returns=returns_BT)
    return batch, dict(explained_variance=float(explained))


def make_loss(
    config: ConfigDict, policy: PolicyModel, forward: Callable, settings
) -> Callable:
    """`Algorithm.loss_fn`: the formula at the top of this file."""
    section, shared = config.ppo, config.policy
    language_loss = make_language_loss(settings, config.train)
    estimator = kl_estimator(shared, 'kl_loss')

    def loss_fn(params, batch, key, control, reference=None):
        del key  # no dropout, as in the engine
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
            estimator,
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
    """The parameters of a reward model, which initialise the critic.

    The mean reward is subtracted from the bias of the head. The values are then those
    of the reward model in `task.rewards` with weight 1.

    Args:
        run: a run of the stage `reward`.
        template: the chat template of the policy.
        trained: the model of `start.run`.

    Raises:
        UserError: the run is not finished, or has another template, tokenizer or shape.
    """
    folder = find_reward_run(run, 'ppo.critic_run')
    config, field = run_dir.read_config(folder), f'ppo.critic_run={folder}'
    if config.chat.template != template:
        raise UserError(
            f'{field} has chat.template={config.chat.template}, and the policy has '
            f'{template}: use a reward model that started from a fine-tuned run'
        )
    reward_model = load_reward_model(config, folder, mesh)
    if reward_model.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise UserError(
            f'{field} has another tokenizer than start.run: use a reward model that '
            'started from the same run'
        )
    shapes = lambda params: jax.tree.map(jnp.shape, params)
    params, head = heads.split_heads(reward_model.params)
    if shapes(params) != shapes(trained.params):
        raise UserError(
            f'{field} is a model of another shape than start.run: use a reward model '
            "that started from the same run, or ppo.critic_run=''"
        )
    head = dict(head[heads.REWARD_HEAD])
    head['bias'] = head['bias'] - read_center(folder)
    return {**params, heads.REWARD_HEAD: head}


# ---- PPO-ptx: pretraining text in every update


def check_text_rows(config: ConfigDict, shards: int) -> None:
    """Refuses `ppo.ptx_rows` that do not divide into micro-batches and devices."""
    parts, rows = config.train.accumulation * shards, config.ppo.ptx_rows
    if rows % parts:
        raise UserError(
            f'ppo.ptx_rows={rows} is not divisible by train.accumulation * mesh.data * '
            f'mesh.fsdp = {parts}: use a multiple'
        )


def open_text(config: ConfigDict) -> PackedDataset:
    """The packed dataset of PPO-ptx; it must have the tokenizer of `start.run`."""
    section, run = config.ppo, Path(config.ppo.ptx_run).expanduser()
    if not section.ptx_run:
        raise UserError(
            f'ppo.ptx={section.ptx}: set ppo.ptx_run to the run with the text, as '
            'runs/base, or set ppo.ptx=0'
        )
    packed = PackedDataset(run / 'prepared', 'train')
    tokenizer = load_tokenizer(Path(config.start.run) / 'tokenizer')
    if packed.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f'ppo.ptx_run={run} was prepared with another tokenizer than '
            f'start.run={config.start.run}: use the run that pretrained this model'
        )
    return packed


def make_text_arrays(config: ConfigDict, packed: PackedDataset) -> Callable:
    """`Algorithm.extra_arrays`: `{'ptx': arrays}`, rows of text for an update.

    The rows depend on the seed and the number of the update. The training step divides
    the loss by the number of reply tokens; `weights` turn this into a mean over the
    tokens of the text.
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
