"""GRPO and related algorithms: a reply is compared with others to the same prompt.

GRPO is from Shao et al. 2024 (DeepSeekMath), section 4.1. With the scores s of the G
replies to a prompt, each token of reply g has the advantage A[g]. The policy maximises
PPO's clipped objective; there is no critic. The algorithms differ in three fields of
the section `grpo`:

                advantage           objective          normaliser
    GRPO        (s - mean) / std    clipped            each reply the same
    Dr. GRPO    s - mean            clipped            constant
    DAPO        (s - mean) / std    clipped higher     every token the same
    GSPO        (s - mean) / std    ratio of replies   each reply the same
    RLOO        s - mean of others  -A ln p            the sum over a reply
    REINFORCE   s - mean of all     -A ln p            the sum over a reply

The papers are Liu et al. 2025 (Dr. GRPO), Yu et al. 2025 (DAPO), Zheng et al. 2025
(GSPO), Ahmadian et al. 2024 (RLOO) and Williams 1992 (REINFORCE). DAPO also replaces
groups with equal scores (`grpo.resampling`) and penalises replies near the length limit
(`policy.overlong_buffer`); before that, it left truncated replies out of the loss
(`policy.mask_truncated`).

Where groups of equal scores are not replaced, their advantages are 0, but their replies
count in the normaliser, and in the terms of KL and entropy. With resampling, a group
that only fills the rollout is in no term and does not count: an update is the mean over
its mixed groups, as strong with one as with many, and without any it changes nothing.
"""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.post.experience import Algorithm, kl_estimator
from gptjax.post.objectives import advantages, policy_losses, reply_tokens
from gptjax.post.objectives.kl import kl_in_score
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.policy_gradient import train_policy, updates_per_rollout
from gptjax.post.policy_model import PolicyModel
from gptjax.train import config_checks
from gptjax.train.load_model import Trained
from gptjax.train.loop import Command

ADVANTAGES = dict(
    grpo=advantages.grpo,
    dr_grpo=advantages.dr_grpo,
    rloo=advantages.rloo,
    reinforce=advantages.reinforce,
)
TOKEN_METRICS = (
    *('ratio', 'clip_fraction', 'approx_kl', 'advantage', 'entropy', 'kl_loss'),
)


def grpo(config: ConfigDict, workdir: Path) -> dict:
    """Trains RUN by the algorithm of `config.grpo`; see `train_policy`."""
    check_config(config)
    return train_policy(config, workdir, make_algorithm)


def check_config(config: ConfigDict) -> None:
    """Refuses fields of the section `grpo` that do not fit each other."""
    section = config.grpo
    config_checks.check_unused(config, 'grpo')
    if section.advantage != 'reinforce' and config.policy.replies < 2:
        raise UserError(
            f'policy.replies={config.policy.replies}: replies to a prompt are compared '
            "with each other: use 2 or more, or grpo.advantage='reinforce'"
        )
    if section.objective == 'reinforce' and updates_per_rollout(config) > 1:
        raise UserError(
            f"grpo.objective='reinforce' makes one update a rollout: use "
            'policy.epochs=1 and train.batch_size=policy.prompts * policy.replies = '
            f'{config.policy.prompts * config.policy.replies}, or another objective'
        )


def make_algorithm(
    config: ConfigDict, trained: Trained, policy: PolicyModel, mesh: Mesh
) -> Algorithm:
    """The algorithm, for `train_policy`."""
    settings, section, shared = trained.settings, config.grpo, config.policy
    compute_logprobs = partial(
        token_logprobs,
        settings,
        temperature=shared.temperature,
        chunk=config.train.loss_chunk,
    )
    objective = {
        'clipped': partial(
            policy_losses.clipped, low=section.clip_low, high=section.clip_high
        ),
        'gspo': partial(
            policy_losses.gspo, low=section.clip_low, high=section.clip_high
        ),
        'reinforce': policy_losses.reinforce,
    }[section.objective]
    normalise = {
        'sequence': reply_tokens.sequence_weights,
        'token': reply_tokens.token_weights,
        'constant': partial(reply_tokens.constant_weights, length=shared.max_tokens),
        'sum': partial(reply_tokens.constant_weights, length=1),
    }[section.normaliser]

    in_reward, in_loss = (kl_estimator(shared, at) for at in ('kl_reward', 'kl_loss'))

    def score_tokens(params, reference, batch):
        logprobs_BT, _ = compute_logprobs(policy.compute(params, reference), batch)
        return dict(old=logprobs_BT, reference=compute_logprobs(reference, batch)[0])

    def compute_advantages(batch, scores_B, coefficient):
        mask_BT = batch['weights']
        groups = (-1, shared.replies)
        informative_N = advantages.informative(jnp.reshape(scores_B, groups))
        if coefficient:
            logprobs = (batch['old'], batch['reference'])
            scores_B = kl_in_score(scores_B, *logprobs, mask_BT, coefficient, in_reward)
        advantages_NG = ADVANTAGES[section.advantage](jnp.reshape(scores_B, groups))
        if section.advantage == 'grpo':
            # If scores differ only by their KL, the std is noise: use no advantage.
            advantages_NG = jnp.where(informative_N[:, None], advantages_NG, 0.0)
        advantages_BT = np.reshape(advantages_NG, (-1, 1)) * mask_BT
        return dict(batch, advantages=advantages_BT), {}

    def loss_fn(params, batch, key, control, reference=None):
        del key  # no dropout, as in the engine
        mask_BT = batch['weights']
        logprobs_BT, entropy_BT = compute_logprobs(
            policy.compute(params, reference), batch
        )
        loss_BT, metrics = objective(
            logprobs_BT, batch['old'], batch['advantages'], mask_BT
        )
        loss_BT, kl_metrics = policy_losses.add_kl_and_entropy(
            loss_BT,
            logprobs_BT,
            batch['reference'],
            entropy_BT,
            mask_BT,
            shared.entropy,
            control['coefficient'] if shared.kl_loss else None,
            in_loss,
        )
        return reply_tokens.sum_losses(
            loss_BT, {**metrics, **kl_metrics}, mask_BT, *normalise(mask_BT)
        )

    return Algorithm(
        score_tokens=score_tokens,
        compute_advantages=compute_advantages,
        loss_fn=loss_fn,
        token_metrics=TOKEN_METRICS,
        resampling=section.resampling,
    )


COMMAND = Command(
    grpo,
    check_config,
    sections=('grpo', 'policy', 'start', 'task'),
    example='configs/grpo.py',
)
