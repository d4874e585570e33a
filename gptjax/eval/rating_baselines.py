"""Baselines of a reward model: length, words, and who took part.

Each baseline gives a score to every conversation. It learns from training pairs only,
and chooses hyperparameters on validation pairs.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gptjax.data.ratings import RatedConversation

WORD = re.compile(r'\w+|[^\w\s]')
MIN_DOCUMENTS = 5  # training texts that contain a word, or the word is ignored
RIDGES = (0.03, 0.1, 0.3)
TRAINING_PAIRS = 20_000


class Pairs(NamedTuple):
    """Pairs of conversations with unequal values: the indices of both, (P,)."""

    better: np.ndarray
    worse: np.ndarray

    def score_right(self, scores_N: np.ndarray) -> np.ndarray:
        """1 if the better one has the higher score, 1/2 if the scores are equal."""
        difference = scores_N[self.better] - scores_N[self.worse]
        return (difference > 0) + 0.5 * (difference == 0)


def draw_pairs(
    values_N: np.ndarray, sets: np.ndarray, max_pairs: int, seed: int
) -> Pairs:
    """The pairs of conversations of one set whose values differ, at most `max_pairs`.

    `sets` is int (sets, K): the indices of conversations to compare with each other,
    and -1 where a set has fewer.
    """
    K, random = sets.shape[1], np.random.default_rng(seed)
    if len(sets) > 1 or K * (K - 1) // 2 <= max_pairs:
        columns = np.array(list(combinations(range(K), 2)))
        first, second = sets[:, columns].reshape(-1, 2).T
    else:
        first, second = sets[0][random.integers(K, size=(2, 4 * max_pairs))]
    unequal = (values_N[first] != values_N[second]) & (first >= 0) & (second >= 0)
    first, second = first[unequal], second[unequal]
    if len(first) > max_pairs:
        kept = np.sort(random.permutation(len(first))[:max_pairs])
        first, second = first[kept], second[kept]
    swapped = values_N[first] < values_N[second]
    return Pairs(np.where(swapped, second, first), np.where(swapped, first, second))


def score_length(characters_N: np.ndarray, train: Pairs) -> np.ndarray:
    """The number of characters, negative if shorter is better in training pairs."""
    sign = 1.0 if train.score_right(characters_N).mean() >= 0.5 else -1.0
    return sign * characters_N


def score_bag_of_words(
    texts: Sequence[str], train_items: Sequence[int], train: Pairs, validation: Pairs
) -> np.ndarray:
    """Scores (N,) by logistic regression on pairs of word counts.

        minimise  mean ln(1 + exp(-w (x_better - x_worse))) + ridge / 2 |w|^2

    x is ln(1 + count) of each word in at least MIN_DOCUMENTS training texts. Longer
    texts have larger x, so this baseline can use the length. The ridge has the best
    accuracy on validation pairs.
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
    minimize = partial(optimize.minimize, objective, start, method='L-BFGS-B', jac=True)
    scores = [counts @ minimize(args=(ridge,)).x for ridge in RIDGES]
    return max(scores, key=lambda scores_N: validation.score_right(scores_N).mean())


def count_words(texts: Sequence[str], train_items: Sequence[int]):
    """ln(1 + count) of each word in each text, a sparse (N, words) matrix."""
    from scipy import sparse

    bags = [Counter(WORD.findall(text.lower())) for text in texts]
    num_texts = Counter(word for item in train_items for word in bags[item])
    words = sorted(word for word, n in num_texts.items() if n >= MIN_DOCUMENTS)
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
    """The mean training value of the people who took part, whatever they said.

    People who are not in the training split have the mean of all. An accuracy above one
    half shows how much a split by conversation leaks about people.
    """
    values_of = defaultdict(list)
    for row in train_items:
        for person in items[row].speakers:
            values_of[person].append(items[row].value)
    overall = float(np.mean([items[row].value for row in train_items]))
    mean_of = {person: np.mean(values) for person, values in values_of.items()}
    means = [[mean_of.get(p, overall) for p in item.speakers] for item in items]
    return np.array([np.mean(own or [overall]) for own in means])
