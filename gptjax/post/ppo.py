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
from gptjax.post.objectives.kl import kl_in_reward, kl_loss
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


def check_rows(config: ConfigDict, shards: int) -> None:
    """Refuses text that does not divide into micro-batches and devices."""
    parts, rows = config.train.accumulation * shards, config.ppo.ptx_rows
    if rows % parts:
        raise UserError(
            f'ppo.ptx_rows={rows} is not divisible by train.accumulation * mesh.data * '
            f'mesh.fsdp = {parts}: use a multiple'
        )


def make_algorithm(
    config: ConfigDict, trained: Trained, policy: PolicyModel, mesh: Mesh
) -> Algorithm:
    """The algorithm, for `train_policy`."""
    settings, section, shared = trained.settings, config.ppo, config.policy
    extra_arrays, identity = None, {}
    if section.ptx:
        check_rows(config, batch_shards(mesh))
        text = open_text(config)
        extra_arrays = make_text_arrays(config, text)
        identity['text'] = text.fingerprint
    options = dict(temperature=shared.temperature, chunk=config.train.loss_chunk)
    language = make_language_loss(settings, config.train)

    def init_arguments():
        run = section.critic_run
        template = config.chat.template
        return read_critic(run, template, trained, mesh) if run else ()

    def forward(own, params, batch, policy_on):
        """(log-probabilities, entropy, values) of the targets, (B, T) each."""
        model = gpt.bind(settings, own)
        hidden = model.hidden(batch['inputs'], batch['segments'], batch['positions'])
        logprobs_BT, entropy_BT = hidden_logprobs(
            model, hidden, batch['targets'], **options
        )
        values_BT = heads.compute_values(settings, params, hidden, batch, policy_on)
        return logprobs_BT, entropy_BT, values_BT

    def score(params, reference, batch):
        own = policy.compute(params, reference)
        logprobs_BT, _, values_BT = forward(own, params, batch, 1.0)
        reference_BT, _ = token_logprobs(settings, reference, batch, **options)
        return dict(old=logprobs_BT, reference=reference_BT, values=values_BT)

    def compute_advantages(batch, scores_B, coefficient):
        mask_BT = batch['weights']
        rewards_BT = advantages.terminal_rewards(scores_B, mask_BT)
        rewards_BT = kl_in_reward(
            rewards_BT, batch['old'], batch['reference'], mask_BT, coefficient
        )
        advantages_BT, returns_BT = advantages.gae(
            rewards_BT, batch['values'], mask_BT, section.gamma, section.lam
        )
        explained = policy_losses.explained_variance(
            batch['values'], returns_BT, mask_BT
        )
        if section.whiten:
            advantages_BT = advantages.whiten(advantages_BT, mask_BT)
        more = dict(
            advantages=np.asarray(advantages_BT), returns=np.asarray(returns_BT)
        )
        return {**batch, **more}, dict(explained_variance=float(explained))

    def loss_fn(params, batch, key, control, reference=None):
        del key  # no dropout: the replies were drawn without
        mask_BT, policy_on = batch['weights'], control['policy']
        own = policy.compute(params, reference)
        logprobs_BT, entropy_BT, values_BT = forward(own, params, batch, policy_on)
        loss_BT, metrics = policy_losses.clipped(
            logprobs_BT,
            batch['old'],
            batch['advantages'],
            mask_BT,
            section.clip_low,
            section.clip_high,
        )
        near_BT = kl_loss(logprobs_BT, batch['reference'], mask_BT)
        if shared.kl_loss:
            loss_BT += control['coefficient'] * near_BT
        loss_BT += policy_losses.entropy_bonus(entropy_BT, mask_BT, shared.entropy)
        value_BT, more = policy_losses.value_loss(
            values_BT, batch['values'], batch['returns'], mask_BT, section.value_clip
        )
        metrics.update(
            more,
            entropy=entropy_BT,
            kl_loss=near_BT,
            value_loss=value_BT,
            value=values_BT,
        )
        total_BT = policy_on * loss_BT + section.value_coefficient * value_BT
        weights_BT, counts_B = reply_tokens.token_weights(mask_BT)
        total, metrics = reply_tokens.sum_losses(
            total_BT, metrics, mask_BT, weights_BT, counts_B
        )
        if section.ptx:
            text, plain = language(own, batch['ptx'], None)
            total += policy_on * section.ptx * text
            metrics['ptx_loss'] = plain['loss']
        return total, metrics

    return Algorithm(
        score=score,
        compute_advantages=compute_advantages,
        loss_fn=loss_fn,
        token_metrics=TOKEN_METRICS,
        extra_arrays=extra_arrays,
        identity=identity,
        init_arguments=init_arguments,
        warm_up=section.warm_up,
    )


def read_critic(run: str, template: str, trained: Trained, mesh: Mesh) -> tuple[dict]:
    """(a reward model's parameters,) for a critic beside the model that is trained.

    Its head gives the reward less its mean, what the model's part of `task.rewards`
    would be with weight 1.

    Args:
        run: of the stage `reward`.
        template: of the chats that the policy reads.
        trained: the model.
        mesh: where both lie.

    Raises:
        UserError: it is no finished run, or reads another template, tokenizer or shape.
    """
    folder = find_reward_run(run, 'ppo.critic_run')
    config, told = run_dir.read_config(folder), f'ppo.critic_run={folder}'
    if config.chat.template != template:
        raise UserError(
            f'{told} reads chats as {config.chat.template}, and the policy as '
            f'{template}: name a reward model that started from a fine-tuned run'
        )
    its = load_reward_model(config, folder, mesh)
    if its.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise UserError(
            f'{told} was trained with another tokenizer than start.run: name a reward '
            'model that started from the same run'
        )
    shapes = lambda params: jax.tree.map(jnp.shape, params)
    model, head = heads.split_heads(its.params)
    if shapes(model) != shapes(trained.params):
        raise UserError(
            f'{told} is a model of another shape than start.run: name a reward model '
            "that started from the same run, or use ppo.critic_run=''"
        )
    head = dict(head[heads.REWARD_HEAD])
    head['bias'] = head['bias'] - read_center(folder)
    return ({**model, heads.REWARD_HEAD: head},)


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
    """Rows of pretraining text beside an update's replies, for PPO-ptx.

    Returns:
        A function from the update's number and its replies to `{'ptx': arrays}`; a
        function of (seed, number). Their weights are such that the step, which
        divides by the replies' tokens, gives the mean over the text's.
    """
    section = config.ppo

    def text_arrays(number, part):
        slots = number * section.ptx_rows + np.arange(section.ptx_rows)
        rows = packed.load(packed.choose_training_rows(config.seed, slots))
        _, counts_B = reply_tokens.token_weights(part['weights'])
        beside_BT = reply_tokens.second_loss_weights(rows['weights'], counts_B)
        return dict(ptx=dict(rows, weights=np.asarray(beside_BT)))

    return text_arrays


COMMAND = Command(
    ppo,
    check_config,
    sections=('ppo', 'policy', 'start', 'task'),
    example='configs/ppo.py',
)
