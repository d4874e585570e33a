"""Metrics of written answers, against their reference libraries and by hand."""

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


def test_sums_of_items_give_the_corpus_scores_of_sacrebleu():
    answers, references = texts(40, 0), references_for(40, 1)
    columns = reply_metrics.measure_replies(answers, references)
    draw = random.Random(2)
    for size in (1, 2, 3, 5, 40, *range(1, 30)):
        chosen = draw.choices(range(40), k=size)
        sums = bootstrap.sum_columns({n: c[chosen] for n, c in columns.items()})
        its = [answers[place] for place in chosen]
        given = streams([references[place] for place in chosen])
        for metric, figure in ((BLEU(), 'bleu'), (CHRF(), 'chrf')):
            expected = metric.corpus_score(its, given).score
            found = reply_metrics.FIGURES[figure](sums)
            assert found == pytest.approx(expected, abs=1e-9)


def test_figures_are_computed_for_many_sums_at_once():
    columns = reply_metrics.measure_replies(texts(12, 3), references_for(12, 4))
    sums = bootstrap.resample_sums(columns, 20, seed=0)
    for name, of in reply_metrics.FIGURES.items():
        rows = [of({n: s[row] for n, s in sums.items()}) for row in range(20)]
        assert of(sums) == pytest.approx(np.array(rows), nan_ok=True), name


def test_one_word_has_no_bleu_and_short_answers_are_smoothed():
    assert figures(['cat'], [['cat']])['bleu'] == 0  # no 4-gram there
    # 1-grams 4/4, 2-grams 3/3, 3-grams 2/2, 4-grams 1/1, five reference words
    found = figures(['the cat sat on'], [['the cat sat on mats']])
    assert found['bleu'] == pytest.approx(100 * np.exp(1 - 5 / 4))
    # matches 3, 1, 0, 0 of 4, 3, 2, 1: the zeros count 1/2 and 1/4
    found = figures(['the cat on mat'], [['the cat sat on']])
    expected = 100 * (3 / 4 * 1 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25
    assert found['bleu'] == pytest.approx(expected)


def test_rouge_by_hand():
    found = figures(['the cat'], [['the cat sat', 'dogs']])
    # precision 2/2, recall 2/3; bigrams 1/1 and 1/2
    assert found['rouge1'] == pytest.approx(2 * (2 / 3) / (1 + 2 / 3))
    assert found['rouge2'] == pytest.approx(2 * (1 / 2) / (1 + 1 / 2))
    assert found['rougeL'] == found['rouge1']


def test_rouge_lsum_compares_sentences():
    answer, reference = 'Dogs bark. Cats sleep.', 'Cats sleep. Dogs bark.'
    assert reply_metrics.sentences('One here. Two there?\n\nThree') == (
        'One here.\nTwo there?\nThree'
    )
    found = figures([answer], [[reference]])
    # In any order every word of a sentence is found; in one sequence only half.
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
        ('the', 'a!', 1, 1),  # nothing is left of either
        ("can't", 'cant', 1, 1),
        ('theatre', 'atre', 0, 0),  # an article is a word of its own
    ],
)
def test_words_in_common_by_hand(answer, reference, f1, exact):
    assert reply_metrics.token_f1(answer, reference) == pytest.approx(f1)
    assert reply_metrics.exact_match(answer, reference) == exact


def test_the_best_reference_counts():
    found = figures(['a cat'], [['dog', 'cat', 'cat sat']])
    assert found['token_f1'] == found['exact_match'] == 1


def test_a_copy_of_the_references_is_perfect():
    references = [[text] for text in texts(30, 5, least=5)]
    found = figures([its[0] for its in references], references)
    for name in ('bleu', 'chrf'):
        assert found[name] == pytest.approx(100)
    for name in (*reply_metrics.ROUGE, 'token_f1', 'exact_match'):
        assert found[name] == pytest.approx(1), name


def test_a_shuffled_copy_is_as_good_as_any_other_text():
    """From one source of random words, another item's reference is a random text."""
    references = [[text] for text in texts(300, 6, least=5)]
    shuffled = [references[place - 1][0] for place in range(300)]
    drawn = texts(300, 7, least=5)
    one, other = (
        reply_metrics.measure_replies(answers, references)
        for answers in (shuffled, drawn)
    )
    for name in ('bleu', 'chrf', 'rouge1', 'rougeL', 'token_f1'):
        p = bootstrap.compute_p_value(one, other, reply_metrics.FIGURES[name], 500, 0)
        assert p > 0.01, name
    assert figures(shuffled, references)['exact_match'] < 0.02
    assert figures(shuffled, references)['bleu'] < 20


def test_repetition_by_hand():
    assert reply_metrics.repetition('one two three') is None
    assert reply_metrics.repetition('a b c d e') == 0
    # a b a b a b: the 4-grams abab, baba, abab
    assert reply_metrics.repetition('A b a b a B') == pytest.approx(1 / 3)
    columns = reply_metrics.measure_replies(['a b', 'a b a b a b'], [['x'], ['x']])
    figure = reply_metrics.FIGURES['repetition'](bootstrap.sum_columns(columns))
    assert figure == pytest.approx(1 / 3)  # the short one says nothing


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
        its = [answers[place] for place in np.repeat(np.arange(10), drawn)]
        assert found[row] == pytest.approx(reply_metrics.distinct(its, 2))
    assert reply_metrics.move_mean(found, 0.5).mean() == pytest.approx(0.5)
    assert reply_metrics.move_mean(found, 0.5).std() == pytest.approx(found.std())
    # With repeated words the share is well below 1: nothing is clipped.
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
