"""Metrics of replies, compared with the reference libraries and by hand."""

import random

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from gptjax.eval import bootstrap
from gptjax.eval.tasks import reply_metrics

WORDS = (
    "the a cat dog sat on mat , . Hello! how are you doing today? can't naïve größe 3.5"
).split()


def texts(count, seed, least=0):
    draw = random.Random(seed)
    return [
        ' '.join(draw.choices(WORDS, k=draw.randint(least, 14))) for _ in range(count)
    ]


def references_for(count, seed):
    draw = random.Random(seed)
    return [texts(draw.randint(1, 3), 1000 * seed + place, 1) for place in range(count)]


def figures(answers, references):
    sums = bootstrap.sum_columns(reply_metrics.measure_replies(answers, references))
    return {name: float(of(sums)) for name, of in reply_metrics.FIGURES.items()}


def streams(references):
    most = max(map(len, references))
    return [[r[n] if n < len(r) else None for r in references] for n in range(most)]


def test_sums_of_statistics_give_the_corpus_scores_of_sacrebleu():
    answers, references = texts(40, 0), references_for(40, 1)
    columns = reply_metrics.measure_replies(answers, references)
    draw = random.Random(2)
    single = [[index] for index in range(40)]  # some have no 4-gram, so no BLEU
    for chosen in (*single, *(draw.choices(range(40), k=k) for k in (2, 3, 5, 9, 40))):
        sums = bootstrap.sum_columns({n: c[chosen] for n, c in columns.items()})
        chosen_answers = [answers[index] for index in chosen]
        chosen_references = streams([references[index] for index in chosen])
        for metric, figure in ((BLEU(), 'bleu'), (CHRF(), 'chrf')):
            expected = metric.corpus_score(chosen_answers, chosen_references).score
            found = reply_metrics.FIGURES[figure](sums)
            assert found == pytest.approx(expected, abs=1e-9)


def test_figures_are_computed_for_many_sums_at_once():
    columns = reply_metrics.measure_replies(texts(12, 3), references_for(12, 4))
    sums = bootstrap.resample_sums(columns, 20, seed=0)
    for name, of in reply_metrics.FIGURES.items():
        rows = [of({n: s[row] for n, s in sums.items()}) for row in range(20)]
        assert of(sums) == pytest.approx(np.array(rows), nan_ok=True), name


def test_the_best_reference_counts():
    found = figures(['the cat'], [['dogs', 'the cat sat', 'cat']])
    # With the second reference: precision 2/2 and recall 2/3; bigrams 1/1 and 1/2.
    assert found['rouge1'] == found['rougeL'] == pytest.approx(4 / 5)
    assert found['rouge2'] == pytest.approx(2 / 3)
    # The third reference is equal.
    assert found['token_f1'] == found['exact_match'] == 1


def test_rouge_lsum_compares_sentences():
    answer, reference = 'Dogs bark. Cats sleep.', 'Cats sleep. Dogs bark.'
    assert reply_metrics.sentences('One here. Two there?\n\nThree') == (
        'One here.\nTwo there?\nThree'
    )
    found = figures([answer], [[reference]])
    # Lsum finds all words in both sentences; L finds only half of them in sequence.
    assert found['rougeLsum'] == 1 and found['rougeL'] == 0.5
    lines = [text.replace('. ', '.\n') for text in (reference, answer)]
    score = rouge_scorer.RougeScorer(['rougeLsum']).score(*lines)['rougeLsum']
    assert found['rougeLsum'] == score.fmeasure


@pytest.mark.parametrize(
    ('answer', 'reference', 'f1', 'exact'),
    [
        ('The cat sat.', 'a CAT, sat', 1, 1),
        ('the big cat', 'cat', 2 / 3, 0),  # precision 1/2, recall 1
        ('cat cat dog', 'cat bird', 2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2), 0),
        ('dog', 'cat', 0, 0),
        ('', 'cat', 0, 0),
        ('the', 'a!', 1, 1),  # both become empty
        ("can't", 'cant', 1, 1),
        ('theatre', 'atre', 0, 0),  # only whole words are articles
    ],
)
def test_common_words_by_hand(answer, reference, f1, exact):
    assert reply_metrics.token_f1(answer, reference) == pytest.approx(f1)
    assert reply_metrics.exact_match(answer, reference) == exact


@pytest.mark.parametrize(
    ('answer', 'reference', 'squad', 'exact', 'number'),
    [
        (' -3.50\n', '-3.5', 0, 0, 1),
        ('3', '-3', 1, 0, 0),  # SQuAD removes the sign
        ('35', '3.5', 1, 0, 0),
        ('\N{MINUS SIGN}3', '-3', 0, 0, 1),
        ('1,234', '1234', 1, 0, 1),
        ('1,23', '123', 1, 0, 0),
        ('It is $1,234.50.', '1234.5', 0, 0, 1),
        ('-$2', '-2', 1, 0, 1),
        ('7 - 3 = 4.', '4', 0, 0, 1),
        ('7-3', '-3', 0, 0, 0),
        ('4 or 5', '4', 0, 0, 0),  # the last one counts
        ('1/2', '2', 0, 0, 0),
        ('5e-1', '.5', 0, 0, 1),
        ('', '0', 0, 0, 0),
        (' 5 km', '5 km ', 1, 1, None),
        ('paris', 'Paris', 1, 0, None),
        ('', 'A', 0, 0, None),  # no answer, though 'A' has no word that counts
    ],
)
def test_equality_by_hand(answer, reference, squad, exact, number):
    found = figures([answer], [[reference]])
    assert (found['exact_match'], found['exact']) == (squad, exact)
    assert found['number'] == pytest.approx(number or 0) or number is None
    assert np.isnan(found['number']) == (number is None)


def test_only_replies_with_a_number_as_reference_count_as_numbers():
    references = [['3'], ['none'], ['no', '4.0']]
    assert figures(['3', '3', '5'], references)['number'] == 1 / 2
    assert figures(['3', '3', '4'], references)['number'] == 1


def test_repetition_by_hand():
    assert reply_metrics.repetition('one two three') is None
    assert reply_metrics.repetition('a b c d e') == 0
    # a b a b a b: the 4-grams abab, baba, abab
    assert reply_metrics.repetition('A b a b a B') == pytest.approx(1 / 3)
    columns = reply_metrics.measure_replies(['a b', 'a b a b a b'], [['x'], ['x']])
    figure = reply_metrics.FIGURES['repetition'](bootstrap.sum_columns(columns))
    assert figure == pytest.approx(1 / 3)  # the short reply has no 4-gram


def test_distinct_by_hand():
    assert reply_metrics.distinct(['a b a', 'B c'], 1) == 3 / 5
    assert reply_metrics.distinct(['a b a', 'b c'], 2) == 3 / 3
    assert np.isnan(reply_metrics.distinct(['a', ''], 2))


def test_distinct_of_resamples_is_that_of_their_texts():
    answers = texts(10, 8)
    ((present, lengths),) = reply_metrics.count_ngrams([answers], 2)
    counts = np.concatenate(list(bootstrap.resample_counts(10, 30, seed=0)))
    found = reply_metrics.distinct_of_counts(counts, present, lengths)
    for row, drawn in enumerate(counts.astype(int)):
        resample = [answers[index] for index in np.repeat(np.arange(10), drawn)]
        assert found[row] == pytest.approx(reply_metrics.distinct(resample, 2))
    assert reply_metrics.move_mean(found, 0.5).mean() == pytest.approx(0.5)
    assert reply_metrics.move_mean(found, 0.5).std() == pytest.approx(found.std())
    # With repeated words, the share is far below 1, so nothing is clipped.
    dull = [f'{text} {text} {text}' for text in texts(40, 9, least=6)]
    samples = reply_metrics.resample_distinct(dull, 1, 200, seed=0)
    assert samples.mean() == pytest.approx(reply_metrics.distinct(dull, 1))
    samples = reply_metrics.resample_distinct(['a b', 'c d e'], 1, 200, seed=0)
    low, high = bootstrap.compute_interval(samples, 0.95)
    assert 0 < low < high == 1


def test_signatures_say_how_many_references_there_were():
    one = reply_metrics.signatures([['a'], ['b']])
    assert one['bleu'].startswith('nrefs:1|') and 'tok:13a' in one['bleu']
    assert one['chrf'].startswith('nrefs:1|') and 'nc:6' in one['chrf']
    two = reply_metrics.signatures([['a', 'c'], ['b']])
    assert two['bleu'].startswith('nrefs:var|')
