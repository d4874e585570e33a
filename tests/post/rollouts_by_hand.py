"""Two rollouts of PPO or GRPO with an engine of fixed replies, and the same in NumPy.

`run` makes the updates of a config, `Experience` has what they should be made of, and
`check_updates` compares the gradients. See `by_hand`.
"""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax.infer.request import Reply, Token
from gptjax.post import policy_gradient
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


def run(monkeypatch, folder, stage, train, **sections):
    """(config, what happened in each of two rollouts); `train` changes its section."""
    letters = [chr(97 + n % 26) * (1 + n // 26) for n in range(60)]
    lines = [json.dumps(dict(prompt=text, answer='')) for text in letters]
    (folder / 'problems.jsonl').write_text('\n'.join(lines))
    sampler = FakeSampler()
    monkeypatch.setattr(policy_gradient, 'make_sampler', lambda *_: sampler)
    monkeypatch.setattr(init_from, 'load_start', lambda config, mesh: TRAINED)
    config = by_hand.make_config(
        train={**dict(num_steps=8, batch_size=ROWS), **train},
        task=dict(path=str(folder / 'problems.jsonl')),
        **sections,
    )
    config.task.rewards = REWARDS
    config, found = by_hand.capture(monkeypatch, policy_gradient, stage, config, folder)
    init, *arguments = found.init()
    first = by_hand.host(init(*arguments))
    state, training, steps = by_hand.start(config, found, by_hand.moved(first, seed=2))
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
        self.compute = forward
        if 'lora' in config:
            base, scale = TRAINED.params, config.lora.alpha / config.lora.rank
            whole = lambda params: by_hand.adapt(params, base, scale)
            self.compute = by_hand.Forward(ROWS, whole=whole)
        self.config, self.policy, self.seen = config, config.policy, np.zeros(0)
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
        old = self.compute(rollout.params, tokens, temperature=TEMPERATURE)
        reference = forward(TRAINED.params, tokens, temperature=TEMPERATURE)['logprob']
        found = SimpleNamespace(
            compute=self.compute,
            epochs=policy.epochs,
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
        if 'lora' not in self.config:
            weights = by_hand.model_of(rollout.params)
            by_hand.assert_equal(rollout.generated_with, weights)
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
        gradient = rows.compute.gradient(
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
        found = rows.compute(step.params, rows.tokens, temperature=TEMPERATURE)
        metrics.append(loss(found, rows)[1])
    assert len(drawn) == experience.epochs * N * G
    for epoch in np.split(np.array(drawn), experience.epochs):
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
        coefficient, name = rows.coefficient, policy.kl_estimator or name
    kl_BT = estimate_kl(name, found['logprob'] - rows.reference)
    return coefficient * kl_BT - policy.entropy * found['entropy'], kl_BT


def kl_penalty(policy, rows):
    """What the KL takes from the reward of each token; 0 outside the replies."""
    coefficient = rows.coefficient if policy.kl_reward else 0
    kl_BT = estimate_kl(policy.kl_estimator or 'k1', rows.old - rows.reference)
    return np.where(rows.mask, coefficient * kl_BT, 0)
