"""How good a reward model is: held-out pairs, beside baselines that read no meaning.

A pair is right where the better conversation has the higher score. All pairs are
counted, and those of about equal length, where length alone tells nothing. Pairs
share conversations, so the bootstrap draws conversations (of users' preferences, the
lines): a pair counts as often as both of its conversations were drawn, multiplied.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.data.comparisons import Comparisons, encode_items
from gptjax.data.documents import split_of
from gptjax.data.ratings import BEHAVIOUR, SPLITS, Rated, read_split
from gptjax.eval import bootstrap, rating_baselines, results
from gptjax.eval.rating_baselines import Pairs, pairs_of
from gptjax.eval.report import rating_table
from gptjax.eval.report.rating_table import MODEL
from gptjax.parallel import multihost
from gptjax.parallel.mesh import make_mesh
from gptjax.post.reward import standardisation
from gptjax.post.reward_model import RESULTS, load_reward_model, make_reward_scorer

MATCHED = 0.1  # lengths differ by at most this share of the longer
MOST_PAIRS = 50_000
MOST_CENTRED = 2000  # training conversations whose mean reward is the center
PAIRS_AT_ONCE = 2**22  # pairs times resamples whose weights are alive


def evaluate_reward(config: ConfigDict, workdir: Path) -> dict:
    """Scores the test split; writes RUN/results.json and prints a table.

    Returns:
        What is written: `center` (the mean training reward), figures with intervals,
        baselines, calibration.

    Raises:
        UserError: the run has no reward model.
    """
    mesh = make_mesh(config.mesh)
    trained = load_reward_model(config, workdir, mesh)
    context, template = config.data.context, config.chat.template
    items = {split: read_split(workdir, split) for split in SPLITS}
    encoded = {
        split: encode_items(its, trained.tokenizer, template, context)
        for split, its in items.items()
    }
    scorer = make_reward_scorer(trained.settings, trained.tokenizer, context, mesh)
    random = np.random.default_rng(config.seed)
    train = encoded['train'].encoded
    centred = random.permutation(len(train))[:MOST_CENTRED]
    with console.progress_bar('scoring conversations', 0):
        center = scorer(trained.params, [train[row] for row in centred]).mean()
        rewards = scorer(trained.params, encoded['test'].encoded)
    with console.progress_bar('fitting baselines', 0):
        scores = baseline_scores(config, items, encoded, trained.tokenizer)
    scores = {MODEL: rewards.astype(np.float64), **scores}

    how = results.Bootstrap(config.eval.resamples, config.eval.level, config.eval.seed)
    test = encoded['test']
    mean, std = standardisation(config, encoded['train'].values)
    found = dict(
        target='preferences' if config.reward.preferences else config.reward.target,
        loss=config.reward.loss,
        checkpoint_step=trained.step,
        center=float(center),
        conversations={split: len(its) for split, its in items.items()},
        longer_than_context={
            split: sum(e.dropped > 0 or e.cut for e in its.encoded)
            for split, its in encoded.items()
        },
        context=context,
        bootstrap=how._asdict(),
        **pair_figures(config, items['test'], test, scores, how),
        calibration=calibration(
            config, scores[MODEL], (test.values - mean) / std, test.sets
        ),
    )
    if not config.reward.preferences:
        found['spearman'] = {
            name: spearman(its, test.values, how) for name, its in scores.items()
        }
    if multihost.is_first_process():
        results.write(workdir / RESULTS, found)
        print(rating_table.table(found))
    return found


def baseline_scores(
    config: ConfigDict,
    items: Mapping[str, Sequence[Rated]],
    encoded: Mapping[str, Comparisons],
    tokenizer,
) -> dict[str, np.ndarray]:
    """{name: a score for each item of the test split}, learned on the others."""
    every = [item for split in SPLITS for item in items[split]]
    begin = dict(zip(SPLITS, np.cumsum([0, *map(len, items.values())]), strict=False))

    def pairs(split):
        its, most = encoded[split], rating_baselines.TRAINING_PAIRS
        found = pairs_of(its.values, its.sets, most, config.seed)
        return Pairs(*(places + begin[split] for places in found))

    train, validation = pairs('train'), pairs('validation')
    train_items = range(len(items['train']))
    whole = ['\n\n'.join(m['content'] for m in item.messages) for item in every]
    read = [tokenizer.decode(e.tokens) for s in SPLITS for e in encoded[s].encoded]
    fit = rating_baselines.bag_of_words
    characters = np.array([item.characters for item in every], np.float64)
    scores = {
        'length': rating_baselines.length_scores(characters, train),
        'bag of words': fit(whole, train_items, train, validation)[0],
        'bag of words that the model reads': fit(read, train_items, train, validation)[
            0
        ],
    }
    if not config.reward.preferences and config.reward.target not in BEHAVIOUR:
        scores['who took part'] = rating_baselines.people_scores(every, train_items)
    return {name: its[begin['test'] :] for name, its in scores.items()}


# ---- pairs


def pair_figures(
    config: ConfigDict,
    items: Sequence[Rated],
    test: Comparisons,
    scores: Mapping[str, np.ndarray],
    how: results.Bootstrap,
) -> dict:
    """{'pairs': …, 'accuracy': {group: {name: figure}}} of groups of test pairs.

    The groups are 'all', 'length-matched' and, of chitchat, 'unread': both
    conversations were held out from pretraining too. A figure has `value` and
    `interval`, and a baseline's also `ahead`: by how much the model is ahead of it.
    """
    pairs = pairs_of(test.values, test.sets, MOST_PAIRS, config.seed)
    characters = np.array([item.characters for item in items], np.float64)
    first, second = characters[pairs.better], characters[pairs.worse]
    matched = np.abs(first - second) <= MATCHED * np.maximum(first, second)
    groups = {'all': np.ones(len(matched), bool), 'length-matched': matched}
    units = np.arange(len(items))
    if config.reward.preferences:
        _, units = np.unique([item.set for item in items], return_inverse=True)
    else:
        share = config.data.validation_fraction
        unread = np.array([split_of(i.id, share) == 'validation' for i in items])
        groups['unread'] = unread[pairs.better] & unread[pairs.worse]
    right = {name: pairs.right(its) for name, its in scores.items()}
    columns = {}
    for group, chosen in groups.items():
        columns[group, 'pairs'] = chosen
        columns.update({(group, n): its * chosen for n, its in right.items()})
    samples = resampled_pairs(columns, pairs, units, how)
    accuracy = {group: {} for group in groups}
    for group in groups:
        count = columns[group, 'pairs'].sum()
        with np.errstate(divide='ignore', invalid='ignore'):
            for name in scores:
                samples[group, name] /= samples[group, 'pairs']
                value = columns[group, name].sum() / count
                figure = results.figure_of(value, samples[group, name], how.level)
                if name != MODEL:
                    ahead = samples[group, MODEL] - samples[group, name]
                    model = columns[group, MODEL].sum() / count
                    figure['ahead'] = results.figure_of(model - value, ahead, how.level)
                accuracy[group][name] = figure
    counts = {group: int(columns[group, 'pairs'].sum()) for group in groups}
    return dict(pairs=counts, accuracy=accuracy)


def resampled_pairs(
    columns: Mapping, pairs: Pairs, units: np.ndarray, how: results.Bootstrap
) -> dict:
    """Sums of columns of pairs over each resample of units, (R,) by name.

    Args:
        columns: (P,) by name.
        pairs: (P,) items.
        units: (N,) the unit of each item; a pair of one unit counts as often as it.
        how: resamples and seed.
    """
    better, worse = units[pairs.better], units[pairs.worse]
    table = np.stack([np.asarray(c, np.float64) for c in columns.values()], axis=1)
    sums, rows = [], max(1, PAIRS_AT_ONCE // max(1, len(better)))
    for counts in bootstrap.resample_counts(units.max() + 1, how.resamples, how.seed):
        for first in range(0, len(counts), rows):
            drawn = counts[first : first + rows]
            weights = drawn[:, better]
            weights *= np.where(better == worse, 1.0, drawn[:, worse])
            sums.append(weights @ table)
    return dict(zip(columns, np.concatenate(sums).T, strict=True))


# ---- other figures


def spearman(
    scores_N: np.ndarray, values_N: np.ndarray, how: results.Bootstrap
) -> dict:
    """The rank correlation of scores and values, with its interval over items."""
    samples = []
    for counts in bootstrap.resample_counts(len(scores_N), how.resamples, how.seed):
        drawn = np.stack(
            [np.repeat(np.arange(len(row)), row.astype(int)) for row in counts]
        )
        samples.append(_rank_correlation(scores_N[drawn], values_N[drawn]))
    value = _rank_correlation(scores_N[None], values_N[None])[0]
    return results.figure_of(value, np.concatenate(samples), how.level)


def _rank_correlation(left, right):
    """Of each row of two (R, N) arrays; nan where one of them is constant."""
    from scipy import stats

    left, right = (stats.rankdata(x, axis=1) for x in (left, right))
    left, right = (x - x.mean(axis=1, keepdims=True) for x in (left, right))
    with np.errstate(divide='ignore', invalid='ignore'):
        return (left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1))


def calibration(config: ConfigDict, scores_N, values_N, sets) -> dict:
    """Whether what the model says comes true.

    Of pairs: how sure it is of its choice, sigma(|r_i - r_j|), beside how often that
    is right. Of what people did: sigma(r) beside how often they did. Of regression:
    the slope of the standardised rating on the score, 1 where it is calibrated.
    """
    if config.reward.loss == 'regression':
        return dict(slope=_slope(scores_N, values_N))
    if config.reward.loss == 'binary':
        return binned(1 / (1 + np.exp(-scores_N)), values_N)
    pairs = pairs_of(values_N, sets, MOST_PAIRS, config.seed)
    sure = np.abs(scores_N[pairs.better] - scores_N[pairs.worse])
    return binned(1 / (1 + np.exp(-sure)), pairs.right(scores_N))


def _slope(scores_N, values_N) -> float | None:
    """By how much the standardised rating grows where the score grows by one."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return results.finite(
            np.cov(scores_N, values_N)[0, 1] / np.var(scores_N, ddof=1)
        )


def binned(said_N: np.ndarray, true_N: np.ndarray, bins: int = 10) -> dict:
    """Probabilities beside shares of what came true, and their mean distance.

    The expected calibration error is that distance weighted by the bins' counts (Guo
    et al. 2017, equation 3).
    """
    bin_N = np.minimum((said_N * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for place in np.unique(bin_N):
        here = bin_N == place
        said, true = float(said_N[here].mean()), float(true_N[here].mean())
        rows.append(dict(count=int(here.sum()), said=said, true=true))
        error += here.mean() * abs(said - true)
    return dict(expected_calibration_error=float(error), bins=rows)
