"""PPO and GRPO: the updates that their configs make, against the papers in NumPy.

Each test takes two rollouts through the whole stage but the engine: the scores of two
weighted rewards, shaping, log-probabilities, advantages, and the gradient of each
optimizer step. The temperature is not 1, the reference is not the policy, each step
moves the policy away from that of the rollout, and no two coefficients are equal.
"""

import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax.infer.request import Reply, Token
from gptjax.post import grpo, policy_gradient, ppo
from gptjax.train import init_from
from tests.post import by_hand
from tests.post.by_hand import END, TRAINED, T

N, G, LONGEST, ROWS, TEMPERATURE = 4, 3, 5, 6, 0.7
POLICY = dict(
    prompts=N,
    replies=G,
    epochs=2,
    max_tokens=LONGEST,
    temperature=TEMPERATURE,
    entropy=0.13,
    reward_scale=0.8,
    reward_running_scale=True,
    reward_clip=1.4,
    overlong_buffer=3,
    missing_eos_penalty=0.35,
    kl_target=2.0,
    kl_horizon=40,
)
KL_IN_REWARD = dict(POLICY, kl_reward=0.21)
KL_IN_LOSS = dict(POLICY, kl_loss=0.21)
REWARDS = {
    name: dict(function=f'{__name__}.{name}_score', weight=weight, run='')
    for name, weight in dict(first=0.75, second=-0.5).items()
}
forward = by_hand.Forward(ROWS)


def first_score(problems, replies):
    return [float(reply.split()[0]) for reply in replies]


def second_score(problems, replies):
    return [float(reply.split()[1]) for reply in replies]


# ---- two rollouts of a stage


class FakeSampler:
    """Random replies; the text of a reply is its two scores. Keeps all arguments."""

    def __init__(self):
        self.weights, self.draws = [], []

    def update_weights(self, params, name):
        self.weights.append(by_hand.host(params))

    def complete(self, prompts, parameters):
        assert {each.temperature for each in parameters} == {TEMPERATURE}
        rng = np.random.default_rng(len(self.draws))
        scores = rng.integers(-4, 5, (len(prompts), 2)) / 2
        if not self.draws:  # one group has equal scores
            scores[G : 2 * G] = 1, -0.5
        replies = []
        for number, (first, second) in enumerate(scores):
            ids = rng.integers(7, by_hand.VOCAB, 1 + number % LONGEST).tolist()
            ended = len(ids) < LONGEST
            replies.append(
                Reply(
                    f'{first} {second}',
                    tuple(Token(id, -1.0) for id in ids),
                    None,
                    'stop' if ended else 'length',
                    None,
                    Token(END, -1.0) if ended else None,
                )
            )
        self.draws.append((prompts, replies))
        return replies

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(stage, …)`: (config, what happened in each of two rollouts)."""
    letters = [chr(97 + n % 26) * (1 + n // 26) for n in range(60)]
    lines = [json.dumps(dict(prompt=text, answer='')) for text in letters]
    (tmp_path / 'problems.jsonl').write_text('\n'.join(lines))
    sampler = FakeSampler()
    monkeypatch.setattr(policy_gradient, 'make_sampler', lambda *_: sampler)
    monkeypatch.setattr(init_from, 'load_start', lambda config, mesh: TRAINED)

    def run(stage, train=None, **sections):
        train = {**dict(num_steps=8, batch_size=ROWS), **(train or {})}
        task = dict(path=str(tmp_path / 'problems.jsonl'))
        config = by_hand.make_config(train=train, task=task, **sections)
        config.task.rewards = REWARDS
        config, found = by_hand.capture(
            monkeypatch, policy_gradient, stage, config, tmp_path
        )
        init, *arguments = found.init()
        first = by_hand.host(init(*arguments))
        state, training, steps = by_hand.start(
            config, found, by_hand.moved(first, seed=2)
        )
        record, rollouts = dict(found.record), []
        for number in range(2):
            params, draws = by_hand.host(state.params), len(sampler.draws)
            step = number * training.steps_per_update
            state, metrics = training.update(state, step, record)
            rollouts.append(
                SimpleNamespace(
                    first=first,
                    params=params,
                    draws=sampler.draws[draws:],
                    generated_with=sampler.weights[-1],
                    steps=steps[step:],
                    metrics=metrics,
                )
            )
        return config, rollouts

    return run


# ---- the same in NumPy


def make_rows(prompts, replies):
    """(arrays (B, T) for the model, mask (B, T)) of prompts and replies."""
    names = 'inputs', 'targets', 'segments', 'positions'
    tokens = {name: np.zeros((len(replies), T), np.int32) for name in names}
    mask = np.zeros((len(replies), T), bool)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        ids = [*prompt, *(token.id for token in reply.tokens)]
        ids += [END] * (reply.ending is not None)
        end = len(ids) - 1
        columns = ids[:-1], ids[1:], 1, range(end)
        for name, column in zip(names, columns, strict=True):
            tokens[name][row, :end] = column
        mask[row, len(prompt) - 1 : end] = True
    return tokens, mask


def raw_scores(replies):
    first, second = np.array([reply.text.split() for reply in replies], float).T
    return 0.75 * first - 0.5 * second


class Experience:
    """What the config makes of replies; keeps the statistics between rollouts."""

    def __init__(self, config):
        self.policy, self.seen = config.policy, np.zeros(0)
        self.coefficient = config.policy.kl_reward or config.policy.kl_loss

    def of_rollout(self, rollout, moves=True):
        """Rows with scores, log-probabilities and values; `moves`: after warm-up."""
        policy = self.policy
        prompts = [prompt for prompts, _ in rollout.draws for prompt in prompts]
        replies = [reply for _, replies in rollout.draws for reply in replies]
        if len(replies) > N * G:  # DAPO: groups that differ, in the order drawn
            groups = raw_scores(replies).reshape(-1, G)
            kept = np.flatnonzero(np.ptp(groups, axis=1))[:N]
            kept = (kept[:, None] * G + np.arange(G)).ravel()
            prompts, replies = [prompts[n] for n in kept], [replies[n] for n in kept]
        tokens, mask = make_rows(prompts, replies)
        raw = raw_scores(replies)
        ended = np.array([reply.ending is not None for reply in replies])
        self.seen = np.append(self.seen, raw)
        scores = raw / (policy.reward_scale * self.seen.std())
        scores = np.clip(scores, -policy.reward_clip, policy.reward_clip)
        free = LONGEST - policy.overlong_buffer  # DAPO, equation 13
        scores -= np.clip((mask.sum(axis=1) - free) / policy.overlong_buffer, 0, 1)
        scores -= policy.missing_eos_penalty * ~ended
        old = forward(rollout.params, tokens, temperature=TEMPERATURE)
        reference = forward(TRAINED.params, tokens, temperature=TEMPERATURE)['logprob']
        found = SimpleNamespace(
            tokens=tokens,
            mask=mask,
            ended=ended,
            scores=scores,
            old=old['logprob'],
            reference=reference,
            values=old.get('value'),
            coefficient=self.coefficient,
        )
        kl = np.sum((found.old - reference)[mask]) / len(replies)
        expected = dict(kl=kl, kl_coefficient=self.coefficient, score=scores.mean())
        for name, value in expected.items():
            assert rollout.metrics[name] == pytest.approx(value, rel=1e-4), name
        by_hand.assert_equal(rollout.generated_with, by_hand.model_of(rollout.params))
        if moves:
            error = np.clip(kl / policy.kl_target - 1, -0.2, 0.2)
            self.coefficient *= 1 + error * min(len(replies) / policy.kl_horizon, 1)
        return found


def check_updates(rollout, experience, loss, only=None, more=None):
    """Compares the gradient of each update, and the means of its metrics.

    Args:
        loss: (found, rows) -> (the NumPy loss of an update, metrics).
        only: the entry of the parameters that is trained; None: all.
        more: (parameters, update number) -> a gradient to add.
    """
    drawn, metrics = [], []
    for number, step in enumerate(rollout.steps):
        chosen = find_rows(step.batch, experience)
        drawn += chosen.tolist()
        rows = take_rows(experience, chosen)
        gradient = forward.gradient(
            step.params,
            rows.tokens,
            lambda found, rows=rows: loss(found, rows)[0],
            temperature=TEMPERATURE,
        )
        if more:
            gradient = jax.tree.map(np.add, gradient, more(step.params, number))
        if only:
            zeros = by_hand.zeros_like(gradient)
            gradient = {**zeros, only: gradient[only]}
        by_hand.assert_gradient(step.gradient, gradient)
        found = forward(step.params, rows.tokens, temperature=TEMPERATURE)
        metrics.append(loss(found, rows)[1])
    for epoch in np.split(np.array(drawn), len(drawn) // (N * G)):
        assert sorted(epoch) == list(range(N * G))
    for name in metrics[0]:
        mean = np.mean([values[name] for values in metrics])
        assert rollout.metrics[name] == pytest.approx(mean, rel=1e-4, abs=1e-5), name


def find_rows(batch, experience):
    """The rows of a rollout that a batch has, found by their tokens."""
    rows = np.concatenate([batch['inputs'], batch['targets']], axis=1)
    tokens = experience.tokens
    all_rows = np.concatenate([tokens['inputs'], tokens['targets']], axis=1)
    same = np.all(rows[:, None] == all_rows, axis=-1)
    assert np.all(same.sum(axis=1) == 1)
    return same.argmax(axis=1)


def take_rows(experience, chosen):
    take = lambda x: x[chosen] if isinstance(x, np.ndarray) else x
    rows = {name: take(value) for name, value in vars(experience).items()}
    rows['tokens'] = {name: take(x) for name, x in experience.tokens.items()}
    return SimpleNamespace(**rows)


def surrogate(ratio, advantages, low, high):
    """(PPO's equation 7 to be minimised, where it is clipped)."""
    free, clipped = ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages
    return -np.minimum(free, clipped), clipped < free


def estimate_kl(name, difference):
    """An estimator of Schulman 2020 of ln p - ln q."""
    if name == 'k1':
        return difference
    return difference**2 / 2 if name == 'k2' else np.expm1(-difference) + difference


def kl_and_entropy(policy, found, rows):
    """(the terms of the loss for each token, the KL)."""
    coefficient, name = 0, 'k2'
    if policy.kl_loss:
        coefficient, name = rows.coefficient, policy.get('kl_estimator') or name
    kl_BT = estimate_kl(name, found['logprob'] - rows.reference)
    return coefficient * kl_BT - policy.entropy * found['entropy'], kl_BT


def kl_penalty(policy, rows):
    """What the KL takes from the reward of each token; 0 outside the replies."""
    coefficient = rows.coefficient if policy.kl_reward else 0
    kl_BT = estimate_kl(policy.get('kl_estimator') or 'k1', rows.old - rows.reference)
    return np.where(rows.mask, coefficient * kl_BT, 0)


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
    dapo=(KL_IN_LOSS, dict(normaliser='token', clip_high=0.28, resampling=1)),
    gspo=(KL_IN_LOSS, dict(objective='gspo', clip_low=0.03, clip_high=0.04)),
    rloo=(
        dict(KL_IN_REWARD, epochs=1),
        dict(advantage='rloo', objective='reinforce', normaliser='sum'),
    ),
    reinforce=(
        dict(KL_IN_REWARD, epochs=1),
        dict(advantage='reinforce', objective='reinforce', normaliser='sum'),
    ),
)


@pytest.mark.parametrize('variant', VARIANTS)
def test_grpo(run, variant):
    policy, section = VARIANTS[variant]
    train = dict(accumulation=2) if variant in ('grpo', 'dapo') else {}
    if policy['epochs'] == 1:
        train['batch_size'] = N * G
    config, rollouts = run(grpo.grpo, train, policy=policy, grpo=section)
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
        (KL_IN_REWARD, dict(critic='head', value_clip=0.3, warm_up=1)),
        (KL_IN_LOSS, dict(critic='network', value_clip=0.2, whiten=False)),
        (KL_IN_LOSS, dict(critic='head', value_clip=0.0, ptx=0.43, ptx_rows=ROWS)),
    ],
    ids=['head', 'network', 'ptx'],
)
def test_ppo(run, monkeypatch, policy, section):
    monkeypatch.setattr(ppo, 'open_text', lambda config: TEXT)
    train = dict(accumulation=2, z_loss=0.01, label_smoothing=0.15)
    train = train if 'ptx' in section else {}
    config, rollouts = run(
        ppo.ppo, train, policy=policy, ppo={**COEFFICIENTS, **section}
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
