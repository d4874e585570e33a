"""Baselines of a reward model."""

import numpy as np
import pytest

from gptjax.data.ratings import RatedConversation
from gptjax.eval import rating_baselines
from gptjax.eval.rating_baselines import Pairs, draw_pairs, score_bag_of_words


def test_pairs_are_those_of_unequal_values_within_a_set():
    values = np.array([2.0, 1.0, 2.0, 3.0])
    pairs = draw_pairs(values, np.arange(4)[None], max_pairs=10, seed=0)
    found = sorted(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))
    assert found == [(0, 1), (2, 1), (3, 0), (3, 1), (3, 2)]
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    pairs = draw_pairs(values, np.arange(6).reshape(3, 2), max_pairs=10, seed=0)
    assert pairs.better.tolist() == [0, 3] and pairs.worse.tolist() == [1, 2]


def test_too_many_pairs_are_sampled_by_the_seed():
    values = np.arange(100.0)
    pairs, again = (
        draw_pairs(values, np.arange(100)[None], max_pairs=50, seed=0) for _ in range(2)
    )
    assert len(pairs.better) == len(pairs.worse) == 50
    assert (values[pairs.better] > values[pairs.worse]).all()
    np.testing.assert_array_equal(pairs.better, again.better)


def test_a_tie_counts_one_half():
    pairs = Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]))
    assert pairs.score_right(np.array([1.0, 2.0, 1.0])).tolist() == [0, 0.5, 1]


def test_the_sign_of_the_length_comes_from_training_pairs():
    characters = np.array([10.0, 20.0, 30.0])
    for better, worse, sign in ((0, 1, -1), (1, 0, 1)):
        train = Pairs(np.array([better]), np.array([worse]))
        scores = rating_baselines.score_length(characters, train)
        assert scores.tolist() == [10 * sign, 20 * sign, 30 * sign]


def test_bag_of_words_learns_a_word_and_ranks_unseen_texts():
    rng = np.random.default_rng(0)
    words = 'a b c d e'.split()
    values = np.arange(80) % 2
    texts = [
        ' '.join(rng.choice(words, 6)) + (' good' if value else ' bad')
        for value in values
    ]
    train = draw_pairs(values[:40], np.arange(40)[None], 1000, 0)
    held = draw_pairs(values[40:], np.arange(40)[None], 1000, 0)
    held = Pairs(held.better + 40, held.worse + 40)
    scores = score_bag_of_words(texts, range(40), train, held)
    assert held.score_right(scores).mean() == 1
    # Without the last words there is nothing to learn.
    blind = [text.rsplit(' ', 1)[0] for text in texts]
    scores = score_bag_of_words(blind, range(40), train, held)
    assert 0.3 < held.score_right(scores).mean() < 0.7


def test_bag_of_words_is_at_the_minimum_of_its_objective(monkeypatch):
    monkeypatch.setattr(rating_baselines, 'RIDGES', (0.1,))
    texts = ['x y'] * 5 + ['y'] * 5
    values = np.array([1.0] * 5 + [0.0] * 5)
    pairs = draw_pairs(values, np.arange(10)[None], 100, 0)
    scores = score_bag_of_words(texts, range(10), pairs, pairs)
    # The only feature is ln 2, and the derivative with respect to its weight is zero.
    difference = scores[0] - scores[9]
    weight = difference / np.log(2)
    slope = 0.1 * weight - np.log(2) / (1 + np.exp(difference))
    assert slope == pytest.approx(0, abs=1e-4)


def test_rare_words_and_words_of_the_test_split_are_ignored():
    texts = ['often'] * 5 + ['rare'] * 4 + ['test'] * 9
    counts = rating_baselines.count_words(texts, range(9))
    assert counts.shape == (18, 1)
    np.testing.assert_allclose(counts.toarray()[:5], np.log(2))


def test_people_are_known_by_their_training_values():
    def item(name, value, *people):
        return RatedConversation(name, '', [], value, 0, list(people))

    items = [
        item('a', 10, 'x', 'y'), item('b', 20, 'y', 'z'), item('c', 0, 'x', 'new'),
        item('d', 0, 'new', 'newer'),
    ]  # fmt: skip
    scores = rating_baselines.score_people(items, range(2))
    # x: 10, y: 15, z: 20, new people: 15.
    assert scores.tolist() == [12.5, 17.5, 12.5, 15]
