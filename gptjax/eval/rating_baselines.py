"""Baselines of a reward model: length, words, and who took part.

Each gives a score to every item; only training pairs are learned from, and the
validation pairs choose what is to be chosen.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gptjax.data.ratings import RatedConversation

WORD = re.compile(r'\w+|[^\w\s]')
MIN_DOCUMENTS = 5  # of the training split that a word must be in
RIDGES = (0.03, 0.1, 0.3)
TRAINING_PAIRS = 20_000


class Pairs(NamedTuple):
    """Pairs of items of unequal value: numbers of the better and the worse, (P,)."""

    better: np.ndarray
    worse: np.ndarray

    def score_right(self, scores_N: np.ndarray) -> np.ndarray:
        """1 where the better one has the higher score, 1/2 where they are equal."""
        difference = scores_N[self.better] - scores_N[self.worse]
        return (difference > 0) + 0.5 * (difference == 0)


def draw_pairs(values_N: np.ndarray, sets: np.ndarray, most: int, seed: int) -> Pairs:
    """The pairs of unequal value within the sets; at most `most`, drawn by the seed.

    `sets` is int (sets, K): the items that are compared with each other.
    """
    items, random = sets.shape[1], np.random.default_rng(seed)
    if len(sets) > 1 or items * (items - 1) // 2 <= most:
        places = np.array(list(combinations(range(items), 2)))
        first, second = sets[:, places].reshape(-1, 2).T
    else:
        first, second = sets[0][random.integers(items, size=(2, 4 * most))]
    unequal = values_N[first] != values_N[second]
    first, second = first[unequal], second[unequal]
    if len(first) > most:
        kept = np.sort(random.permutation(len(first))[:most])
        first, second = first[kept], second[kept]
    swapped = values_N[first] < values_N[second]
    return Pairs(np.where(swapped, second, first), np.where(swapped, first, second))


def score_length(characters_N: np.ndarray, train: Pairs) -> np.ndarray:
    """Characters, or their negative where the shorter is the better in training."""
    sign = 1.0 if train.score_right(characters_N).mean() >= 0.5 else -1.0
    return sign * characters_N


def score_bag_of_words(
    texts: Sequence[str], train_items: Sequence[int], train: Pairs, validation: Pairs
) -> tuple[np.ndarray, float]:
    """(scores (N,), the ridge) of a logistic regression on pairs of word counts.

        minimise  mean ln(1 + exp(-w (x_better - x_worse))) + ridge / 2 |w|^2

    x are ln(1 + count) of the words of at least MIN_DOCUMENTS training texts: long
    texts have larger ones, so length is known to it. The ridge is the one with the
    best accuracy on validation pairs.
    """
    from scipy import optimize

    counts = count_words(texts, train_items)
    difference = counts[train.better] - counts[train.worse]

    def objective(weights, ridge):
        margin = difference @ weights
        wrong = 1 / (1 + np.exp(np.clip(margin, -500, 500)))
        loss = np.logaddexp(0, -margin).mean() + ridge / 2 * weights @ weights
        return loss, ridge * weights - difference.T @ wrong / len(margin)

    start = np.zeros(counts.shape[1])
    fits = []
    for ridge in RIDGES:
        fit = optimize.minimize(objective, start, (ridge,), method='L-BFGS-B', jac=True)
        fits.append((counts @ fit.x, ridge))
    return max(fits, key=lambda fit: validation.score_right(fit[0]).mean())


def count_words(texts: Sequence[str], train_items: Sequence[int]):
    """ln(1 + count) of each word in each text, sparse (N, words)."""
    from scipy import sparse

    bags = [Counter(WORD.findall(text.lower())) for text in texts]
    documents = Counter(word for item in train_items for word in bags[item])
    words = sorted(word for word, n in documents.items() if n >= MIN_DOCUMENTS)
    column_of = {word: column for column, word in enumerate(words)}
    cells = [
        (row, column_of[word], np.log1p(count))
        for row, bag in enumerate(bags)
        for word, count in bag.items()
        if word in column_of
    ]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    return sparse.csr_matrix((values, (rows, columns)), (len(texts), len(words)))


def score_people(
    items: Sequence[RatedConversation], train_items: Sequence[int]
) -> np.ndarray:
    """The mean training value of the people who took part, whatever was said.

    Whom training does not know counts as the mean of all. What this gets right above
    one half is what a split by conversation leaks about people.
    """
    values_of = defaultdict(list)
    for row in train_items:
        for person in items[row].speakers:
            values_of[person].append(items[row].value)
    overall = float(np.mean([items[row].value for row in train_items]))
    mean_of = {person: np.mean(values) for person, values in values_of.items()}
    scores = []
    for item in items:
        means = [mean_of.get(person, overall) for person in item.speakers]
        scores.append(np.mean(means) if means else overall)
    return np.array(scores)
