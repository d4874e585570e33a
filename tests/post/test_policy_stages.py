"""PPO and GRPO: the updates that their configs make, against the papers in NumPy.

Each test takes two rollouts through the whole stage but the engine: the scores of two
weighted rewards, shaping, log-probabilities, advantages, and the gradient of each
optimizer step. The temperature is not 1, the reference is not the policy, each step
moves the policy away from that of the rollout, and no two coefficients are equal.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.post import grpo, ppo
from tests.post import by_hand
from tests.post.by_hand import TRAINED
from tests.post.rollouts_by_hand import (
    KL_IN_LOSS,
    KL_IN_REWARD,
    LONGEST,
    ROWS,
    Experience,
    G,
    N,
    check_updates,
    forward,
    kl_and_entropy,
    kl_penalty,
    run,
    surrogate,
)

# ---- GRPO and related algorithms


def group_advantages(kind, scores, equal_N):
    """(B,), from the papers; `equal_N` are the groups of equal scores before the KL."""
    scores_NG = scores.reshape(N, G)
    centred = scores_NG - scores_NG.mean(axis=1, keepdims=True)
    if kind == 'grpo':
        std = scores_NG.std(axis=1, keepdims=True)
        equal = equal_N[:, None]
        return np.where(equal, 0, centred / np.where(equal, 1, std)).ravel()
    if kind == 'rloo':  # the mean of the others
        others = (scores_NG.sum(axis=1, keepdims=True) - scores_NG) / (G - 1)
        return (scores_NG - others).ravel()
    return centred.ravel() if kind == 'dr_grpo' else scores - scores.mean()


def normalise(kind, loss_BT, mask_BT):
    """The mean over replies of means, over tokens, or sums over a constant."""
    sums, lengths = np.sum(np.where(mask_BT, loss_BT, 0), axis=1), mask_BT.sum(axis=1)
    sums, lengths = sums[lengths > 0], lengths[lengths > 0]
    if kind == 'sequence':
        return np.mean(sums / lengths)
    if kind == 'token':
        return sums.sum() / lengths.sum()
    return sums.mean() / (LONGEST if kind == 'constant' else 1)


VARIANTS = dict(
    grpo=(KL_IN_LOSS, {}),
    dr_grpo=(
        dict(KL_IN_LOSS, mask_truncated=True),
        dict(advantage='dr_grpo', normaliser='constant'),
    ),
    dapo=(
        dict(KL_IN_LOSS, kl_estimator='k3'),
        dict(normaliser='token', clip_high=0.28, resampling=1),
    ),
    gspo=(KL_IN_LOSS, dict(objective='gspo', clip_low=0.03, clip_high=0.04)),
    rloo=(
        dict(KL_IN_REWARD, epochs=1, kl_estimator='k3'),
        dict(advantage='rloo', objective='reinforce', normaliser='sum'),
    ),
    reinforce=(
        dict(KL_IN_REWARD, epochs=1),
        dict(advantage='reinforce', objective='reinforce', normaliser='sum'),
        dict(lora=dict(rank=2, alpha=6.0)),
    ),
)


@pytest.mark.parametrize('variant', VARIANTS)
def test_grpo(monkeypatch, tmp_path, variant):
    policy, section, *more = VARIANTS[variant]
    train = dict(accumulation=2) if variant in ('grpo', 'dapo') else {}
    if policy['epochs'] == 1:
        train['batch_size'] = N * G
    config, rollouts = run(
        monkeypatch,
        tmp_path,
        grpo.grpo,
        train,
        policy=policy,
        grpo=section,
        **dict(*more),
    )
    section, policy = config.grpo, config.policy

    def loss(found, rows):
        mask, advantages = rows.mask, rows.advantages[:, None]
        log_ratio = np.where(mask, found['logprob'] - rows.old, 0)
        if section.objective == 'gspo':  # the ratio of a reply, equation 7
            log_ratio = log_ratio.sum(axis=1, keepdims=True)
            log_ratio = log_ratio / mask.sum(axis=1, keepdims=True)
        ratio = np.exp(log_ratio) + 0 * mask
        if section.objective == 'reinforce':
            loss_BT, clipped = -advantages * found['logprob'], np.zeros_like(mask)
        else:
            clip = section.clip_low, section.clip_high
            loss_BT, clipped = surrogate(ratio, advantages, *clip)
        more_BT, kl_BT = kl_and_entropy(policy, found, rows)
        return normalise(section.normaliser, loss_BT + more_BT, mask), dict(
            ratio=ratio[mask].mean(),
            clip_fraction=clipped[mask].mean(),
            entropy=found['entropy'][mask].mean(),
            kl_loss=kl_BT[mask].mean(),
        )

    experience = Experience(config)
    for rollout in rollouts:
        rows = experience.of_rollout(rollout)
        scores = rows.scores
        equal_N = np.ptp(scores.reshape(N, G), axis=1) < 1e-6
        scores = scores - kl_penalty(policy, rows).sum(axis=1)
        rows.advantages = group_advantages(section.advantage, scores, equal_N)
        if policy.mask_truncated:  # after the means of the groups
            rows.mask = rows.mask & rows.ended[:, None]
        check_updates(rollout, rows, loss)
    if 'lora' not in config:
        by_hand.assert_equal(rollouts[0].first, TRAINED.params)
    if section.objective != 'reinforce':
        assert 0.05 < rollouts[0].metrics['clip_fraction'] < 0.95
    assert rollouts[0].metrics['groups_drawn'] == (8 if variant == 'dapo' else 4)


# ---- PPO


def estimate_advantages(section, rows):
    """(advantages, returns) (B, T): GAE, equation 16 of Schulman et al. 2016."""
    advantages = np.zeros(rows.mask.shape)
    for row, mask in enumerate(rows.mask):
        reply = np.flatnonzero(mask)
        rewards = -rows.kl_penalty[row, reply]
        rewards[-1] += rows.scores[row]
        values = np.append(rows.values[row, reply], 0)
        deltas = rewards + section.gamma * values[1:] - values[:-1]
        for first, place in enumerate(reply):
            discounts = (section.gamma * section.lam) ** np.arange(len(reply) - first)
            advantages[row, place] = np.sum(discounts * deltas[first:])
    returns = np.where(rows.mask, advantages + rows.values, 0)
    if section.whiten:
        inside = advantages[rows.mask]
        advantages = (advantages - inside.mean()) / inside.std()
    return advantages, returns


TEXT = SimpleNamespace(
    fingerprint='of the text',
    choose_training_rows=lambda seed, slots: int(slots[0]),
    load=lambda first: by_hand.text_rows(first, ROWS),
)
COEFFICIENTS = dict(
    gamma=0.93, lam=0.8, clip_low=0.15, clip_high=0.25, value_coefficient=0.37
)


def ptx_gradient(config, rollout, params, update):
    """PPO-ptx: the mean loss over the tokens of text of each update."""
    section, first = config.ppo, (4 * rollout + update) * ROWS
    text = by_hand.text_rows(first, ROWS)
    loss = lambda found: by_hand.language_loss(found, text['weights'], config.train)
    return forward.gradient(params, text, lambda found: section.ptx * loss(found))


@pytest.mark.parametrize(
    'policy, section',
    [
        (
            dict(KL_IN_REWARD, kl_estimator='k2'),
            dict(critic='head', value_clip=0.3, warm_up=1),
        ),
        (
            dict(KL_IN_LOSS, kl_estimator='k3'),
            dict(critic='network', value_clip=0.2, whiten=False),
        ),
        (KL_IN_LOSS, dict(critic='head', value_clip=0.0, ptx=0.43, ptx_rows=ROWS)),
    ],
    ids=['head', 'network', 'ptx'],
)
def test_ppo(monkeypatch, tmp_path, policy, section):
    monkeypatch.setattr(ppo, 'open_text', lambda config: TEXT)
    train = dict(accumulation=2, z_loss=0.01, label_smoothing=0.15)
    train = train if 'ptx' in section else {}
    config, rollouts = run(
        monkeypatch,
        tmp_path,
        ppo.ppo,
        train,
        policy=policy,
        ppo={**COEFFICIENTS, **section},
    )
    policy, section = config.policy, config.ppo

    def loss(found, rows):
        mask = rows.mask
        ratio = np.exp(found['logprob'] - rows.old)
        clip = section.clip_low, section.clip_high
        loss_BT, clipped = surrogate(ratio, rows.advantages, *clip)
        more_BT, kl_BT = kl_and_entropy(policy, found, rows)
        value = found['value']
        value_BT = (value - rows.returns) ** 2
        if section.value_clip:
            change = np.clip(
                value - rows.values, -section.value_clip, section.value_clip
            )
            near_BT = (rows.values + change - rows.returns) ** 2
            value_BT = np.maximum(value_BT, near_BT)
        value_BT = value_BT / 2
        total_BT = loss_BT + more_BT + section.value_coefficient * value_BT
        return total_BT[mask].mean(), dict(
            ratio=ratio[mask].mean(),
            clip_fraction=clipped[mask].mean(),
            advantage=rows.advantages[mask].mean(),
            entropy=found['entropy'][mask].mean(),
            kl_loss=kl_BT[mask].mean(),
            value=value[mask].mean(),
            value_loss=value_BT[mask].mean(),
        )

    experience = Experience(config)
    for number, rollout in enumerate(rollouts):
        rows = experience.of_rollout(rollout, moves=number >= section.warm_up)
        rows.kl_penalty = kl_penalty(policy, rows)
        rows.advantages, rows.returns = estimate_advantages(section, rows)
        only = 'value_head' if number < section.warm_up else None
        ptx = partial(ptx_gradient, config, number) if section.ptx else None
        check_updates(rollout, rows, loss, only, ptx)
    by_hand.assert_equal(by_hand.model_of(rollouts[0].first), TRAINED.params)
    assert 0.05 < rollouts[1].metrics['clip_fraction'] < 0.95
