"""The accuracy of a reward model on held-out pairs, next to simple baselines.

A pair is right if the better conversation has the higher score. The accuracy is that of
all pairs, and that of pairs with about equal lengths, in which the length says nothing.
Pairs share conversations, so the bootstrap draws conversations (for users' preferences,
lines of the file), and the weight of a pair is the product of how often each of its
conversations was drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.data.comparisons import Comparisons, encode_ratings
from gptjax.data.ratings import BEHAVIOUR, SPLITS, RatedConversation, read_ratings
from gptjax.data.splits import assign_split
from gptjax.eval import bootstrap, rating_baselines, results
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.rating_baselines import Pairs, draw_pairs
from gptjax.eval.report.reward_tables import MODEL, print_reward
from gptjax.parallel import multihost
from gptjax.parallel.mesh import make_mesh
from gptjax.post.reward import standardisation
from gptjax.post.reward_model import RESULTS, load_reward_model, make_reward_scorer

MATCHED = 0.1  # lengths differ by at most this share of the longer one
MOST_PAIRS = 50_000
MOST_CENTRED = 2000  # training conversations whose mean reward is `center`
PAIRS_AT_ONCE = 2**22  # pairs times resamples whose weights are in memory


def evaluate_reward(config: ConfigDict, workdir: Path) -> dict:
    """Evaluates the test split: prints a table, writes and returns RUN/results.json."""
    mesh = make_mesh(config.mesh)
    trained = load_reward_model(config, workdir, mesh)
    context, template = config.data.context, config.chat.template
    rated = {split: read_ratings(workdir, split) for split in SPLITS}
    encoded = {
        split: encode_ratings(items, trained.tokenizer, template, context)
        for split, items in rated.items()
    }
    score = make_reward_scorer(trained.settings, trained.tokenizer, context, mesh)
    train, test = encoded['train'], encoded['test']
    random = np.random.default_rng(config.seed)
    centre_rows = random.permutation(len(train.encoded))[:MOST_CENTRED]
    with console.progress_bar('scoring conversations', 0):
        centre_rewards = score(trained.params, [train.encoded[r] for r in centre_rows])
        rewards = score(trained.params, test.encoded)
    with console.progress_bar('fitting baselines', 0):
        scores = {
            MODEL: rewards.astype(np.float64),
            **score_baselines(config, rated, encoded, trained.tokenizer),
        }

    bootstrap_settings = BootstrapSettings.of(config.eval)
    mean, std = standardisation(config, train.values)
    evaluation = dict(
        target='preferences' if config.reward.preferences else config.reward.target,
        loss=config.reward.loss,
        checkpoint_step=trained.step,
        center=float(centre_rewards.mean()),  # the mean training reward
        conversations={split: len(items) for split, items in rated.items()},
        longer_than_context={
            split: sum(e.dropped > 0 or e.cut for e in comparisons.encoded)
            for split, comparisons in encoded.items()
        },
        context=context,
        bootstrap=bootstrap_settings._asdict(),
        **compute_pair_figures(config, rated['test'], test, scores, bootstrap_settings),
        calibration=measure_calibration(
            config, scores[MODEL], (test.values - mean) / std, test.sets
        ),
    )
    if not config.reward.preferences:
        evaluation['spearman'] = {
            name: compute_spearman(scores_N, test.values, bootstrap_settings)
            for name, scores_N in scores.items()
        }
    if multihost.is_first_process():
        results.write_results(workdir / RESULTS, evaluation)
        print_reward(evaluation)
    return evaluation


def score_baselines(
    config: ConfigDict,
    rated: Mapping[str, Sequence[RatedConversation]],
    encoded: Mapping[str, Comparisons],
    tokenizer,
) -> dict[str, np.ndarray]:
    """{baseline: a score for each conversation of the test split}.

    The baselines learn from the other splits. `rated` and `encoded` have the same
    conversations.
    """
    conversations = [item for split in SPLITS for item in rated[split]]
    starts = dict(zip(SPLITS, np.cumsum([0, *map(len, rated.values())]), strict=False))

    def draw_split_pairs(split):
        """Pairs of a split, as indices into `conversations`."""
        values, sets = encoded[split].values, encoded[split].sets
        pairs = draw_pairs(values, sets, rating_baselines.TRAINING_PAIRS, config.seed)
        return Pairs(*(rows + starts[split] for rows in pairs))

    train, validation = map(draw_split_pairs, ('train', 'validation'))
    train_items = range(len(rated['train']))
    whole_texts = [
        '\n\n'.join(m['content'] for m in item.messages) for item in conversations
    ]
    read_texts = [
        tokenizer.decode(e.tokens) for s in SPLITS for e in encoded[s].encoded
    ]
    characters = np.array([item.characters for item in conversations], np.float64)
    scores = {'length': rating_baselines.score_length(characters, train)}
    for name, texts in (
        ('bag of words', whole_texts),
        ('bag of words that the model reads', read_texts),
    ):
        scores[name] = rating_baselines.score_bag_of_words(
            texts, train_items, train, validation
        )
    if not config.reward.preferences and config.reward.target not in BEHAVIOUR:
        scores['who took part'] = rating_baselines.score_people(
            conversations, train_items
        )
    return {name: scores_N[starts['test'] :] for name, scores_N in scores.items()}


# ---- pairs


def compute_pair_figures(
    config: ConfigDict,
    items: Sequence[RatedConversation],
    test: Comparisons,
    scores: Mapping[str, np.ndarray],
    bootstrap_settings: BootstrapSettings,
) -> dict:
    """{'pairs': {group: count}, 'accuracy': {group: {name: figure}}} of test pairs.

    The groups are 'all', 'length-matched' and, for chitchat, 'unread': pairs whose
    conversations were held out from pretraining too. A figure has `value` and
    `interval`. A baseline also has `ahead`, the model's accuracy minus the baseline's.
    """
    pairs = draw_pairs(test.values, test.sets, MOST_PAIRS, config.seed)
    characters = np.array([item.characters for item in items], np.float64)
    first, second = characters[pairs.better], characters[pairs.worse]
    matched = np.abs(first - second) <= MATCHED * np.maximum(first, second)
    groups = {'all': np.ones(len(matched), bool), 'length-matched': matched}
    units = np.arange(len(items))
    if config.reward.preferences:
        _, units = np.unique([item.set for item in items], return_inverse=True)
    else:
        share = config.data.validation_fraction
        unread = np.array([assign_split(i.id, share) == 'validation' for i in items])
        groups['unread'] = unread[pairs.better] & unread[pairs.worse]
    right = {name: pairs.score_right(scores_N) for name, scores_N in scores.items()}
    columns = {}
    for group, chosen in groups.items():
        columns[group, 'pairs'] = chosen
        columns.update({(group, name): x * chosen for name, x in right.items()})
    samples = resample_pairs(columns, pairs, units, bootstrap_settings)
    level = bootstrap_settings.level
    accuracy = {group: {} for group in groups}
    for group in groups:
        count = columns[group, 'pairs'].sum()
        with np.errstate(divide='ignore', invalid='ignore'):
            for name in scores:
                samples[group, name] /= samples[group, 'pairs']
                value = columns[group, name].sum() / count
                figure = bootstrap.make_figure(value, samples[group, name], level)
                if name != MODEL:
                    ahead = samples[group, MODEL] - samples[group, name]
                    model = columns[group, MODEL].sum() / count
                    figure['ahead'] = bootstrap.make_figure(model - value, ahead, level)
                accuracy[group][name] = figure
    counts = {group: int(columns[group, 'pairs'].sum()) for group in groups}
    return dict(pairs=counts, accuracy=accuracy)


def resample_pairs(
    columns: Mapping,
    pairs: Pairs,
    units: np.ndarray,
    bootstrap_settings: BootstrapSettings,
) -> dict:
    """Sums of columns (P,) of pairs over each resample of units, (R,) by name.

    `units` (N,) is what the bootstrap draws for each conversation. A pair within one
    unit counts as often as the unit was drawn.
    """
    better, worse = units[pairs.better], units[pairs.worse]
    table = bootstrap.make_table(columns)
    resamples, _, seed = bootstrap_settings
    sums, rows = [], max(1, PAIRS_AT_ONCE // max(1, len(better)))
    for counts in bootstrap.resample_counts(units.max() + 1, resamples, seed):
        for first in range(0, len(counts), rows):
            drawn = counts[first : first + rows]
            weights = drawn[:, better]
            weights *= np.where(better == worse, 1.0, drawn[:, worse])
            sums.append(weights @ table)
    return dict(zip(columns, np.concatenate(sums).T, strict=True))


# ---- other figures


def compute_spearman(
    scores_N: np.ndarray, values_N: np.ndarray, bootstrap_settings: BootstrapSettings
) -> dict:
    """The rank correlation of scores and values; interval over conversations."""
    resamples, level, seed = bootstrap_settings
    samples = []
    for counts in bootstrap.resample_counts(len(scores_N), resamples, seed):
        drawn = np.stack(
            [np.repeat(np.arange(len(row)), row.astype(int)) for row in counts]
        )
        samples.append(_rank_correlation(scores_N[drawn], values_N[drawn]))
    value = _rank_correlation(scores_N[None], values_N[None])[0]
    return bootstrap.make_figure(value, np.concatenate(samples), level)


def _rank_correlation(left, right):
    """Of each row of two (R, N) arrays; nan if one of the rows is constant."""
    from scipy import stats

    left, right = (stats.rankdata(x, axis=1) for x in (left, right))
    left, right = (x - x.mean(axis=1, keepdims=True) for x in (left, right))
    with np.errstate(divide='ignore', invalid='ignore'):
        return (left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1))


def measure_calibration(config: ConfigDict, scores_N, values_N, sets) -> dict:
    """Compares the model's probabilities with what happened.

    For pairs: sigma(|r_i - r_j|), the probability of the model's choice, and how often
    the choice is right. For the loss 'binary': sigma(r), and how often people did it.
    For regression: the slope of the standardised rating over the score, ideally 1.
    """
    if config.reward.loss == 'regression':
        with np.errstate(divide='ignore', invalid='ignore'):
            slope = np.cov(scores_N, values_N)[0, 1] / np.var(scores_N, ddof=1)
        return dict(slope=bootstrap.finite_or_none(slope))
    if config.reward.loss == 'binary':
        return bin_probabilities(1 / (1 + np.exp(-scores_N)), values_N)
    pairs = draw_pairs(values_N, sets, MOST_PAIRS, config.seed)
    margins = np.abs(scores_N[pairs.better] - scores_N[pairs.worse])
    return bin_probabilities(1 / (1 + np.exp(-margins)), pairs.score_right(scores_N))


def bin_probabilities(predicted_N: np.ndarray, true_N: np.ndarray) -> dict:
    """Ten bins of predicted probabilities, with the share that came true in each.

    The expected calibration error is the mean distance between the two, weighted by the
    counts of the bins (Guo et al. 2017, equation 3).
    """
    bin_N = np.minimum((predicted_N * 10).astype(int), 9)
    rows, error = [], 0.0
    for number in np.unique(bin_N):
        in_bin = bin_N == number
        predicted = float(predicted_N[in_bin].mean())
        true = float(true_N[in_bin].mean())
        rows.append(dict(count=int(in_bin.sum()), said=predicted, true=true))
        error += in_bin.mean() * abs(predicted - true)
    return dict(expected_calibration_error=float(error), bins=rows)
