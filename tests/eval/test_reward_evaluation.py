"""Results of a reward model: accuracy, intervals, correlation, calibration, table."""

import numpy as np
import pytest

from configs import common
from gptjax.data.comparisons import Comparisons
from gptjax.data.ratings import RatedConversation
from gptjax.eval.bootstrap import BootstrapSettings, resample_counts
from gptjax.eval.rating_baselines import Pairs, draw_pairs
from gptjax.eval.report import reward_tables
from gptjax.eval.report.reward_tables import MODEL
from gptjax.eval.reward_evaluation import (
    bin_probabilities,
    compute_pair_figures,
    compute_spearman,
    measure_calibration,
    resample_pairs,
)

BOOTSTRAP = BootstrapSettings(200, 0.95, 0)


def make_config(**reward):
    config = common.base()
    config.reward = common.reward_section()
    config.reward.update(reward)
    return config


def make_items(values, characters, sets=None):
    """(conversations, comparisons within their sets)."""
    sets = sets or [''] * len(values)
    items = [
        RatedConversation(f'c{n}', set_name, [], value, length, [])
        for n, (value, length, set_name) in enumerate(
            zip(values, characters, sets, strict=True)
        )
    ]
    indices = [np.flatnonzero(np.array(sets) == name) for name in dict.fromkeys(sets)]
    return items, Comparisons([], np.array(values, np.float32), np.stack(indices))


def test_accuracy_of_all_and_of_matched_pairs():
    items, test = make_items([3, 2, 1], [100, 95, 50])
    scores = {MODEL: np.array([1.0, 2.0, 0.0]), 'length': np.array([100.0, 95.0, 50.0])}
    found = compute_pair_figures(make_config(), items, test, scores, BOOTSTRAP)
    assert found['pairs'] == {'all': 3, 'length-matched': 1, 'unread': 0}
    accuracy = found['accuracy']
    assert accuracy['all'][MODEL]['value'] == pytest.approx(2 / 3)
    assert accuracy['all']['length']['value'] == 1
    assert accuracy['all']['length']['ahead']['value'] == pytest.approx(-1 / 3)
    assert accuracy['length-matched'][MODEL]['value'] == 0
    assert accuracy['unread'][MODEL] == dict(value=None, interval=[None, None])


def test_a_resample_counts_pairs_by_both_conversations():
    pairs = Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]))
    columns = dict(first=np.array([1, 0, 0]), pairs=np.ones(3))
    sums = resample_pairs(columns, pairs, np.arange(3), BOOTSTRAP)
    a, b, c = np.concatenate([*resample_counts(3, 200, 0)]).T
    np.testing.assert_array_equal(sums['first'], a * b)
    np.testing.assert_array_equal(sums['pairs'], a * b + a * c + b * c)


def test_a_pair_of_one_line_counts_as_often_as_the_line():
    pairs = Pairs(np.array([0, 2]), np.array([1, 3]))
    columns = dict(first=np.array([1, 0]), pairs=np.ones(2))
    sums = resample_pairs(columns, pairs, np.array([0, 0, 1, 1]), BOOTSTRAP)
    counts = np.concatenate([*resample_counts(2, 200, 0)])
    np.testing.assert_array_equal(sums['first'], counts[:, 0])
    np.testing.assert_array_equal(sums['pairs'], 2)


def test_intervals_over_conversations_are_wider_than_over_pairs():
    # Forty conversations have 780 pairs. If these were independent, the standard
    # deviation would be sqrt(.25 / 780) = 0.018, and the interval 0.07 wide.
    rng = np.random.default_rng(0)
    values, scores = rng.permutation(40), rng.normal(size=40)
    items, test = make_items(values, np.arange(40))
    found = compute_pair_figures(make_config(), items, test, {MODEL: scores}, BOOTSTRAP)
    low, high = found['accuracy']['all'][MODEL]['interval']
    assert high - low > 0.14


def test_preferences_are_compared_within_lines():
    items, test = make_items([1, 0, 1, 0], [5, 9, 9, 9], ['a', 'a', 'b', 'b'])
    config = make_config(preferences='mine.jsonl')
    scores = {MODEL: np.array([1.0, 2.0, 0.5, 0.2])}
    found = compute_pair_figures(config, items, test, scores, BOOTSTRAP)
    assert found['pairs'] == {'all': 2, 'length-matched': 1}
    assert found['accuracy']['all'][MODEL]['value'] == 0.5
    assert found['accuracy']['length-matched'][MODEL]['value'] == 1


def test_spearman():
    values = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    # Ranks 1 2 3 4 5 and 2 1 3 5 4: 1 - 6 * 4 / (5 * 24).
    swapped = np.array([2.0, 1.0, 3.0, 5.0, 4.0])
    for scores, expected in ((values**3, 1), (-values, -1), (swapped, 0.8)):
        assert compute_spearman(scores, values, BOOTSTRAP)['value'] == pytest.approx(
            expected
        )
    assert compute_spearman(np.ones(5), values, BOOTSTRAP)['value'] is None


def test_calibration_in_bins():
    predicted = np.array([0.25, 0.25, 0.25, 0.25, 0.9, 1.0])
    found = bin_probabilities(predicted, np.array([0, 0, 0, 1, 1, 1]))
    assert [row['count'] for row in found['bins']] == [4, 2]
    assert found['bins'][0] == dict(count=4, said=0.25, true=0.25)
    assert found['expected_calibration_error'] == pytest.approx(0.05 * 2 / 6)


def test_calibration_of_pairs_of_people_and_of_regression():
    scores, values = np.array([0.0, 2.0]), np.array([0.0, 1.0])
    one = np.arange(2)[None]
    (row,) = measure_calibration(make_config(), scores, values, one)['bins']
    assert row == dict(count=1, said=pytest.approx(1 / (1 + np.exp(-2))), true=1)
    of_people = make_config(loss='binary', target='replied')
    rows = measure_calibration(of_people, scores, values, one)['bins']
    assert [row['said'] for row in rows] == [0.5, pytest.approx(1 / (1 + np.exp(-2)))]
    regression = make_config(loss='regression')
    assert measure_calibration(regression, scores, values, one) == dict(slope=0.5)


def make_evaluation(model, length):
    """Evaluates these scores as those of the model and of the baseline 'length'."""
    values = np.arange(len(model))
    items, test = make_items(values, np.full(len(model), 9))
    scores = {MODEL: np.asarray(model, float), 'length': np.asarray(length, float)}
    figures = compute_pair_figures(make_config(), items, test, scores, BOOTSTRAP)
    pairs = draw_pairs(values, test.sets, 10_000, 0)
    figures.update(target='sum', checkpoint_step=7, bootstrap=BOOTSTRAP._asdict())
    figures.update(conversations=dict(test=len(model)), calibration=dict(slope=1.25))
    return figures, pairs


def test_the_table_and_its_verdict(capsys):
    rng = np.random.default_rng(0)
    found, pairs = make_evaluation(np.arange(30), rng.permutation(30))
    reward_tables.print_reward(found)
    text = capsys.readouterr().out
    assert f'all ({len(pairs.better):,})' in text
    assert 'reward model  1.000 (1.000 … 1.000)' in text
    assert 'better than length' in text and 'grow by 1.250' in text
    found, _ = make_evaluation(rng.permutation(30), np.arange(30))
    assert 'worse than length' in reward_tables.verdict(found)
    found, _ = make_evaluation(np.arange(30), np.arange(30))
    assert 'not clearly different from length' in reward_tables.verdict(found)
