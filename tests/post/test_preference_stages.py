"""DPO and the reward model: the updates that their configs make, in plain NumPy.

The policy is not the reference, and no two coefficients are equal.
"""

import json

import jax
import numpy as np
import pytest

from gptjax.core import artifact
from gptjax.data import preference_pairs, ratings
from gptjax.data.comparisons import encode_end
from gptjax.post import dpo, reward
from gptjax.train import init_from
from tests.post import by_hand
from tests.post.by_hand import SETTINGS, TOKENIZER, TRAINED, T, sigmoid

PAIRS_PER_STEP = 3


@pytest.fixture(autouse=True)
def without_files(monkeypatch, tmp_path):
    monkeypatch.setattr(artifact, 'require', lambda *_: dict(fingerprint='of the data'))
    monkeypatch.setattr(init_from, 'load_start', lambda config, mesh: TRAINED)
    (tmp_path / 'pairs').mkdir()
    (tmp_path / 'pairs' / 'manifest.json').write_text(json.dumps({}))


# ---- pairs


def make_pairs(count, seed):
    """Pairs of random tokens with replies of different lengths."""
    rng, pairs = np.random.default_rng(seed), []
    draw = lambda n: rng.integers(7, by_hand.VOCAB, n).astype(np.int32)
    for number in range(count):
        prompt = draw(3 + number % 3)
        rows = [
            preference_pairs.Row(np.concatenate([prompt, draw(n)]), len(prompt))
            for n in (2 + number, 7 - number)
        ]
        pairs.append(preference_pairs.Pair(str(number), *rows))
    return pairs


PAIRS = dict(train=make_pairs(2 * PAIRS_PER_STEP, 0), validation=make_pairs(5, 1))
forward = by_hand.Forward(PAIRS_PER_STEP)
adapted = by_hand.Forward(
    PAIRS_PER_STEP, whole=lambda params, base: by_hand.adapt(params, base, 6 / 2)
)


def arrays_of(rows):
    """(arrays (B, T) for the model, mask of the replies)."""
    names = 'inputs', 'targets', 'segments', 'positions'
    tokens = {name: np.zeros((len(rows), T), np.int32) for name in names}
    mask = np.zeros((len(rows), T), bool)
    for number, (ids, prompt_length) in enumerate(rows):
        end = len(ids) - 1
        columns = ids[:-1], ids[1:], 1, range(end)
        for name, column in zip(names, columns, strict=True):
            tokens[name][number, :end] = column
        mask[number, prompt_length - 1 : end] = True
    return tokens, mask


def arrays_of_pairs(pairs):
    return arrays_of([row for pair in pairs for row in pair.rows])


def log_sigmoid(x):
    return np.log(sigmoid(x))


def pair_loss(section, logprobs_BT, mask, reference_BT, baseline=0.0):
    """(loss of each pair, metrics), from the equations of the papers."""
    sums = lambda x: np.sum(np.where(mask, x, 0), axis=1).reshape(-1, 2).T
    chosen, rejected = sums(logprobs_BT)
    lengths = mask.sum(axis=1).reshape(-1, 2).T
    mean_chosen, mean_rejected = sums(logprobs_BT) / lengths
    beta = section.beta
    # ln(p / q) of Rafailov et al. 2023
    better, worse = sums(logprobs_BT) - sums(reference_BT)
    h = better - worse
    rewards = beta * better, beta * worse
    match section.loss:
        case 'dpo':  # cDPO, Mitchell 2023
            share = section.label_smoothing
            loss = -(1 - share) * log_sigmoid(beta * h)
            loss = loss - share * log_sigmoid(-beta * h)
        case 'ipo':  # Azar et al. 2024, equation 17
            loss = (h - 1 / (2 * beta)) ** 2
        case 'kto':  # Ethayarajh et al. 2024, equation 8
            gain = section.desirable_weight * (1 - sigmoid(beta * (better - baseline)))
            pain = section.undesirable_weight * (1 - sigmoid(beta * (baseline - worse)))
            loss = (gain + pain) / 2
        case 'orpo':  # Hong et al. 2024, equation 6
            log_odds = lambda x: x - np.log(1 - np.exp(x))
            difference = log_odds(mean_chosen) - log_odds(mean_rejected)
            loss = -mean_chosen - section.odds_weight * log_sigmoid(difference)
            rewards = mean_chosen, mean_rejected
        case 'simpo':  # Meng et al. 2024, equation 6
            rewards = beta * mean_chosen, beta * mean_rejected
            loss = -log_sigmoid(rewards[0] - rewards[1] - section.margin)
    loss = loss - section.nll * mean_chosen  # Pang et al. 2024, equation 1
    return loss, dict(
        loss=loss,
        nll=-mean_chosen,
        chosen_reward=rewards[0],
        rejected_reward=rewards[1],
        margin=rewards[0] - rewards[1],
        accuracy=rewards[0] > rewards[1],
        chosen_logprob=chosen,
        rejected_logprob=rejected,
    )


LOSSES = dict(
    dpo=dict(loss='dpo', beta=0.4, label_smoothing=0.17),
    lora=dict(loss='dpo', beta=0.4, label_smoothing=0.17),
    ipo=dict(loss='ipo', beta=0.4),
    kto=dict(loss='kto', beta=0.4, desirable_weight=1.3, undesirable_weight=0.7),
    orpo=dict(loss='orpo', odds_weight=0.6),
    simpo=dict(loss='simpo', beta=1.7, margin=0.8),
)


@pytest.mark.parametrize('variant', LOSSES)
def test_dpo(variant, tmp_path, monkeypatch):
    lora = dict(lora=dict(rank=2, alpha=6.0)) if variant == 'lora' else {}
    config = by_hand.make_config(
        train=dict(batch_size=PAIRS_PER_STEP, num_steps=2),
        preference=dict(nll=0.23, epochs=0, **LOSSES[variant]),
        **lora,
    )
    config, stage = by_hand.capture(
        monkeypatch,
        dpo,
        dpo.train_on_pairs,
        config,
        tmp_path,
        read_pairs=lambda workdir, split: PAIRS[split],
        load_run_tokenizer=lambda config, workdir: (TOKENIZER, SETTINGS),
        load_base=lambda config, mesh: TRAINED if lora else None,
        load_start=lambda config, mesh: TRAINED,
    )
    section = config.preference
    compute, frozen = (adapted, (TRAINED.params,)) if lora else (forward, ())
    init, *arguments = stage.init()
    first = by_hand.host(init(*arguments))
    if not lora:
        by_hand.assert_equal(first, TRAINED.params)
    state, training, steps = by_hand.start(config, stage, by_hand.moved(first, 11))
    reference = lambda tokens: forward(TRAINED.params, tokens)['logprob']

    def expected_baseline(params, pairs):
        """KTO: the KL of the replies after other prompts, at least 0."""
        if section.loss != 'kto':
            return 0.0
        every = preference_pairs.mismatch_replies(PAIRS['train'], T)
        tokens, mask = arrays_of([every[int(pair.id)] for pair in pairs])
        log_ratios = forward(params, tokens)['logprob'] - reference(tokens)
        return max(0, np.mean(np.sum(log_ratios * mask, axis=1)))

    drawn, baselines = [], []
    for number in range(2):
        params = by_hand.host(state.params)
        state, metrics = training.update(state, number, {})
        step = steps[number]
        pairs = [find_pair(tokens) for tokens in step.batch['targets']]
        drawn += [pair.id for pair in pairs]
        tokens, mask = arrays_of_pairs(pairs)
        baseline = expected_baseline(params, pairs)
        if section.loss == 'kto':
            baselines.append(baseline)
            assert float(metrics['kto_baseline']) == pytest.approx(baseline, rel=1e-4)
        rest = section, mask, reference(tokens), baseline
        loss = lambda found, rest=rest: pair_loss(rest[0], found['logprob'], *rest[1:])
        gradient = compute.gradient(
            step.params,
            tokens,
            lambda found, loss=loss: np.mean(loss(found)[0]),
            *frozen,
        )
        by_hand.assert_gradient(step.gradient, gradient)
        expected = loss(compute(step.params, tokens, *frozen))[1]
        for name, values_N in expected.items():
            assert metrics[name] == pytest.approx(np.mean(values_N), rel=1e-4), name
    assert sorted(drawn) == [pair.id for pair in PAIRS['train']]
    if baselines:
        assert max(baselines) > 0.3  # at 0 its sign would not matter

    if variant == 'dpo':  # five pairs in batches of three
        tokens, mask = arrays_of_pairs(PAIRS['validation'] + PAIRS['validation'][:1])
        logprobs = forward(by_hand.host(state.params), tokens)['logprob']
        losses = pair_loss(section, logprobs, mask, reference(tokens))[0][:5]
        found = training.validate(state, 2)['loss']
        assert found == pytest.approx(np.mean(losses), rel=1e-4)


def find_pair(targets_2T):
    """The training pair of these targets."""
    for pair in PAIRS['train']:
        if np.array_equal(arrays_of_pairs([pair])[0]['targets'], targets_2T):
            return pair
    raise AssertionError('a batch has other pairs')


# ---- the reward model

ROWS, GROUP = 6, 3
VALUES = dict(
    sum=[3.0, 9.0, 4.0, 3.0, 7.0, 3.0, 9.0, 1.0, 2.0, 7.0, 7.0, 5.0],
    replied=[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
)
scores = by_hand.Forward(ROWS)


def rated(target):
    """Conversations of one set, no two of them equal."""
    return [
        ratings.RatedConversation(
            id=str(number),
            set='',
            messages=[
                dict(role='user', content=chr(97 + number)),
                dict(role='assistant', content='yes' * (1 + number % 3)),
            ],
            value=value,
            characters=0,
            speakers=(),
        )
        for number, value in enumerate(VALUES[target])
    ]


def reward_loss(section, scores_BG, values_BG):
    """(loss, its part without centring, mean difference) of a batch."""
    if section.loss == 'regression':
        loss = np.mean((scores_BG - values_BG) ** 2) / 2
        return loss, loss
    if section.loss == 'binary':
        right = np.where(values_BG == 1, sigmoid(scores_BG), 1 - sigmoid(scores_BG))
        return -np.mean(np.log(right)), -np.mean(np.log(right))
    losses, squares = [], []
    for scores_G, values_G in zip(scores_BG, values_BG, strict=True):
        for better in range(len(scores_G)):
            for worse in range(len(scores_G)):
                gap = values_G[better] - values_G[worse]
                if gap > 0:  # Touvron et al. 2023, equation 2
                    difference = scores_G[better] - scores_G[worse]
                    losses.append(-log_sigmoid(difference - section.margin * gap))
                    squares.append((scores_G[better] + scores_G[worse]) ** 2)
    return np.mean(losses) + section.centring * np.mean(squares), np.mean(losses)


@pytest.mark.parametrize(
    'target, section',
    [
        ('sum', dict(loss='pairwise', margin=0.4, centring=0.07)),
        ('sum', dict(loss='regression')),
        ('replied', dict(loss='binary')),
    ],
    ids=['pairwise', 'regression', 'binary'],
)
def test_reward(target, section, tmp_path, monkeypatch):
    config = by_hand.make_config(
        train=dict(batch_size=ROWS, num_steps=2),
        reward=dict(target=target, group=GROUP, **section),
    )
    conversations = rated(target)
    config, stage = by_hand.capture(
        monkeypatch,
        reward,
        reward.train_reward,
        config,
        tmp_path,
        read_ratings=lambda workdir, split: conversations,
        load_run_tokenizer=lambda config, workdir: (TOKENIZER, SETTINGS),
    )
    init, *arguments = stage.init()
    first = by_hand.host(init(*arguments))
    by_hand.assert_equal(by_hand.model_of(first), TRAINED.params)
    state, training, steps = by_hand.start(config, stage, by_hand.moved(first, 2))
    values = np.array(VALUES[target])
    if target == 'sum':
        values = (values - values.mean()) / values.std()
    ends = [encode_end(c.messages, TOKENIZER, 'turns', T).tokens for c in conversations]
    padded = np.array([np.pad(tokens, (0, T - len(tokens))) for tokens in ends])
    lasts = np.array([len(tokens) - 1 for tokens in ends])

    def loss(found, rows):
        """The reward is the number at the last token."""
        scores_N = found['value'][np.arange(len(rows)), lasts[rows]]
        shape = -1, GROUP
        return reward_loss(
            config.reward, scores_N.reshape(shape), values[rows].reshape(shape)
        )

    def tokens_of(rows):
        segments = (np.arange(T) <= lasts[rows][:, None]).astype(np.int32)
        positions = np.broadcast_to(np.arange(T, dtype=np.int32), segments.shape)
        inputs = padded[rows].astype(np.int32)
        return dict(
            inputs=inputs, targets=inputs, segments=segments, positions=positions
        )

    drawn = []
    for number in range(2):
        state, metrics = training.update(state, number, {})
        step = steps[number]
        same = step.batch['inputs'].reshape(ROWS, 1, T) == padded
        rows = np.all(same, axis=-1).argmax(axis=1)
        drawn += rows.tolist()
        key = jax.random.fold_in(jax.random.key(config.seed), number)  # of dropout
        both = step.params, tokens_of(rows)
        gradient = scores.gradient(
            *both, lambda found, rows=rows: loss(found, rows)[0], key=key
        )
        by_hand.assert_gradient(step.gradient, gradient)
        plain = loss(scores(*both, key=key), rows)[1]
        assert metrics['loss'] == pytest.approx(plain, rel=1e-4)
    assert sorted(drawn) == list(range(12))
    # Validation has no dropout, and compares all conversations.
    rows = np.arange(12)
    found = scores(by_hand.host(state.params), tokens_of(rows))['value'][rows, lasts]
    expected = reward_loss(config.reward, found[None], values[None])[1]
    assert training.validate(state, 2)['loss'] == pytest.approx(expected, rel=1e-4)
