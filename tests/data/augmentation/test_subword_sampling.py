"""Sampled segmentations: their text, their probabilities, and no sampling."""

import itertools
import math
from collections import Counter

import pytest

from gptjax.data.augmentation.random_draws import Draws
from gptjax.data.augmentation.subword_sampling import SubwordSampler
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model

TEXTS = ['the cat sat on the mat, then the rat ate that hat'] * 20
STRANGE = '  the ▁cat\n\nété  日本 aaaa thethethe 12 '


@pytest.fixture(scope='module', params=('bpe', 'unigram'))
def tokenizer(request):
    return Tokenizer(train_model(TEXTS, request.param, 280))


@pytest.mark.parametrize('alpha', (0.1, 0.5, 1.0))
def test_text_stays(tokenizer, alpha):
    sampler = SubwordSampler(tokenizer, alpha)
    for text in (TEXTS[0], STRANGE, ' ', 'x' * 3000):
        draws = Draws(text)
        sampled = {tuple(sampler.encode(text, draws)) for _ in range(3)}
        assert {tokenizer.decode(tokens) for tokens in sampled} == {text}


def test_without_dropped_merges_it_is_the_tokenizer():
    tokenizer = Tokenizer(train_model(TEXTS, 'bpe', 300))
    sampler = SubwordSampler(tokenizer, 0.0)
    for text in (TEXTS[0], STRANGE, 'that hatthat', 'aaa aaaaa'):
        assert sampler.encode(text, Draws(0)) == tokenizer.encode(text)
    characters = SubwordSampler(tokenizer, 1.0).encode('the cat', Draws(0))
    assert len(characters) == 7


def test_merges_are_dropped_anew_in_each_step():
    """The probabilities are those of algorithm 1 of Provilkov et al., enumerated."""
    tokenizer = Tokenizer(train_model(TEXTS, 'bpe', 300))
    pieces, drop, draws = tokenizer.read_pieces(), 0.3, Draws(0)

    def segmentations(parts, probability):
        pairs = [a + b for a, b in itertools.pairwise(parts)]
        places = [n for n, piece in enumerate(pairs) if piece in pieces]
        for n in sorted(places, key=lambda n: -pieces[pairs[n]][1]):  # stable
            merged = (*parts[:n], pairs[n], *parts[n + 2 :])
            yield from segmentations(merged, probability * (1 - drop))
            probability *= drop
        yield parts, probability  # all were dropped

    for words in ((' that',), (' the', ' cat')):
        expected = Counter()
        by_word = [[*segmentations(tuple(word), 1.0)] for word in words]
        for chosen in itertools.product(*by_word):
            tokens = tuple(pieces[p][0] for parts, _ in chosen for p in parts)
            expected[tokens] += math.prod(probability for _, probability in chosen)
        assert len(expected) > 3 and sum(expected.values()) == pytest.approx(1)
        sampler, text = SubwordSampler(tokenizer, drop), ''.join(words)
        counts = Counter(tuple(sampler.encode(text, draws)) for _ in range(4000))
        assert counts.keys() <= expected.keys()
        for tokens, share in expected.items():
            error = 5 * math.sqrt(share * (1 - share) / 4000)
            assert counts[tokens] / 4000 == pytest.approx(share, abs=error)


def test_segmentations_have_their_probabilities():
    tokenizer = Tokenizer(train_model(TEXTS, 'unigram', 280))
    alpha, word, draws = 0.5, ' that', Draws(0)
    pieces = tokenizer.read_pieces()

    def segmentations(rest):
        if not rest:
            yield (), 0.0
        for end in range(1, len(rest) + 1):
            if rest[:end] in pieces:
                token, score = pieces[rest[:end]]
                for tokens, total in segmentations(rest[end:]):
                    yield (token, *tokens), score + total

    weights = {tokens: math.exp(alpha * log) for tokens, log in segmentations(word)}
    assert len(weights) > 3
    sampler, total = SubwordSampler(tokenizer, alpha), sum(weights.values())
    counts = Counter(tuple(sampler.encode(word, draws)) for _ in range(4000))
    for tokens, weight in weights.items():
        expected = weight / total
        error = 5 * math.sqrt(expected * (1 - expected) / 4000)
        assert counts[tokens] / 4000 == pytest.approx(expected, abs=error)
