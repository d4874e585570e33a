"""Metrics of generated replies: BLEU, chrF, ROUGE, F1, equality and variety.

Every metric is a function of sums of per-reply statistics, so the bootstrap does not
read the texts again. With several references, BLEU counts n-grams of all of them, and
the others use the reference with the best score.

    bleu                corpus BLEU by sacreBLEU, 0 to 100 (Papineni et al. 2002)
    chrf                corpus chrF2, 0 to 100 (Popović 2015)
    rouge1 … rougeLsum  F of rouge-score, mean over replies, 0 to 1 (Lin 2004)
    token_f1            F of common words, mean over replies (Rajpurkar et al. 2016)
    exact_match         share of replies that equal a reference after SQuAD's
                        normalisation: no case, punctuation, a, an, the. It is not for
                        numbers: '-3.5' and '35' are equal
    exact               share of replies that equal a reference as written, without the
                        white space around them
    number              share of replies whose last number has the value of a reference
                        that is a number; replies without such a reference do not count
    repetition          share of 4-grams that repeat an earlier one of the same reply
                        (Welleck et al. 2020)
    distinct_1, _2      number of different n-grams / number of n-grams (Li et al. 2016)
    words               words of a reply, mean
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from importlib import metadata

import numpy as np

from gptjax.eval import bootstrap

BLEU_ORDER, CHRF_ORDER = 4, 6
CHRF_BETA = 2
REPETITION_ORDER = 4
ROUGE = ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')


def measure_replies(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Statistics of every answer by name, (N,) float64 each; see `FIGURES`.

    Each answer has one reference or more.
    """
    repetitions = [repetition(answer) for answer in answers]
    return dict(
        items=np.ones(len(answers)),
        **_bleu_statistics(answers, references),
        **_chrf_statistics(answers, references),
        **_rouge_statistics(answers, references),
        token_f1=_best(token_f1, answers, references),
        exact_match=_best(exact_match, answers, references),
        exact=_best(exact, answers, references),
        **_number_statistics(answers, references),
        repetition=np.array([share or 0.0 for share in repetitions], np.float64),
        repetition_items=np.array([r is not None for r in repetitions], np.float64),
        words=np.array([len(answer.split()) for answer in answers], np.float64),
    )


def signatures(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """How each metric is computed, as sacreBLEU's signatures state it."""
    from sacrebleu import metrics

    # The signature has the number of references; None: an example has fewer.
    streams = [
        ['a' if n < len(own) else None for own in references]
        for n in range(max(map(len, references)))
    ]
    by_sacrebleu = {}
    for name, metric in (('bleu', metrics.BLEU()), ('chrf', metrics.CHRF())):
        metric.corpus_score(['a'] * len(references), streams)
        by_sacrebleu[name] = str(metric.get_signature())
    words = 'words:lower-case, no punctuation, no a/an/the|multi:best'
    version = metadata.version('rouge-score')
    return dict(
        **by_sacrebleu,
        rouge=f'rouge-score:{version}|stemmer:no|F1|multi:best|Lsum:sentencex-en',
        token_f1=words,
        exact_match=f'SQuAD|{words}',
        exact='as written, stripped|multi:best',
        number='last number, by value|comma:thousands|multi:best',
        distinct='words:white space, lower-case',
        repetition=f'words:white space, lower-case|n:{REPETITION_ORDER}',
    )


# ---- BLEU


def _bleu_statistics(answers, references):
    """The n-grams of each order, those that match, and both lengths; by sacreBLEU."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    rows = []
    for answer, own in zip(answers, references, strict=True):
        score = metric.corpus_score([answer], [[reference] for reference in own])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    table = np.array(rows, np.float64).reshape(len(rows), 2 * BLEU_ORDER + 2)
    return dict(zip(BLEU_COLUMNS, table.T, strict=True))


BLEU_COLUMNS = (
    *(f'bleu_matches_{n}' for n in range(1, BLEU_ORDER + 1)),
    *(f'bleu_ngrams_{n}' for n in range(1, BLEU_ORDER + 1)),
    'bleu_length',
    'bleu_reference_length',
)


def bleu(sums) -> np.ndarray:
    """Corpus BLEU of summed statistics, as sacreBLEU's default has it.

    The first order without a match counts 1/2 match, the next such order 1/4, and so
    on (the 'exp' smoothing of mteval-v13a). Without any match BLEU is 0.
    """
    matches = np.stack([sums[f'bleu_matches_{n}'] for n in range(1, 5)])
    ngrams = np.stack([sums[f'bleu_ngrams_{n}'] for n in range(1, 5)])
    length, wanted = sums['bleu_length'], sums['bleu_reference_length']
    smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=0))
    with np.errstate(divide='ignore', invalid='ignore'):
        log_precision = np.log(smoothed / ngrams).mean(axis=0)
        brevity = np.where(length < wanted, 1 - wanted / length, 0.0)
        score = 100 * np.exp(log_precision + brevity)
    defined = matches.any(axis=0) & (ngrams > 0).all(axis=0)
    return np.where(defined, score, 0.0)


# ---- chrF


def _chrf_statistics(answers, references):
    """Those of the reference with the highest chrF."""
    rows = []
    for answer, own in zip(answers, references, strict=True):
        counts = [_count_chrf_ngrams(answer, reference) for reference in own]
        rows.append(max(counts, key=lambda row: float(_chrf(row))))
    table = np.array(rows, np.float64).reshape(len(rows), 3 * CHRF_ORDER)
    return dict(zip(CHRF_COLUMNS, table.T, strict=True))


CHRF_COLUMNS = tuple(
    f'chrf_{what}_{n}'
    for n in range(1, CHRF_ORDER + 1)
    for what in ('ngrams', 'reference_ngrams', 'matches')
)


def _count_chrf_ngrams(answer: str, reference: str) -> np.ndarray:
    """(answer's, reference's, common) character n-grams of each order, flat."""
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counts = []
    for ours, theirs in zip(
        extract_all_char_ngrams(answer, CHRF_ORDER),
        extract_all_char_ngrams(reference, CHRF_ORDER),
        strict=True,
    ):
        # chrF leaves out an order for which the reference is too short.
        counts.append(ours.total() if theirs else 0)
        counts += [theirs.total(), (ours & theirs).total()]
    return np.array(counts, np.float64)


def _chrf(counts) -> np.ndarray:
    """chrF of counts (3 orders, …): F of the mean precision and the mean recall."""
    counts = np.asarray(counts).reshape(CHRF_ORDER, 3, *np.shape(counts)[1:])
    ours, theirs, common = counts[:, 0], counts[:, 1], counts[:, 2]
    counted = (ours > 0) & (theirs > 0)
    orders = np.maximum(counted.sum(axis=0), 1)
    with np.errstate(divide='ignore', invalid='ignore'):
        precision = np.where(counted, common / ours, 0.0).sum(axis=0) / orders
        recall = np.where(counted, common / theirs, 0.0).sum(axis=0) / orders
        weight = CHRF_BETA**2
        score = (1 + weight) * precision * recall / (weight * precision + recall)
    return np.where(precision + recall > 0, 100 * score, 0.0)


def chrf(sums) -> np.ndarray:
    """Corpus chrF2 of summed statistics."""
    return _chrf(np.stack([sums[name] for name in CHRF_COLUMNS]))


# ---- ROUGE


def _rouge_statistics(answers, references):
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=False)
    scores = [
        scorer.score_multi([sentences(reference) for reference in own], sentences(text))
        for text, own in zip(answers, references, strict=True)
    ]
    return {n: np.array([s[n].fmeasure for s in scores], np.float64) for n in ROUGE}


def sentences(text: str) -> str:
    """The text with one sentence on each line, as ROUGE-Lsum expects it."""
    import sentencex

    lines = (line for line in text.splitlines() if line.strip())
    return '\n'.join(
        sentence.strip() for line in lines for sentence in sentencex.segment('en', line)
    )


# ---- common words


def normalized_words(text: str) -> list[str]:
    """Words as SQuAD compares them: 'The cat, sat.' → ['cat', 'sat']."""
    text = text.lower().translate(str.maketrans('', '', string.punctuation))
    return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def token_f1(answer: str, reference: str) -> float:
    """F of the common words; 1 for two empty texts."""
    ours, theirs = normalized_words(answer), normalized_words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def exact_match(answer: str, reference: str) -> float:
    """1 if the normalised words are the same, else 0: exact match of SQuAD.

    An empty reply is a question without an answer, which SQuAD's script scores 0. As
    words it would equal 'A', of which nothing is left.
    """
    if reference and not answer.strip():
        return 0.0
    return float(normalized_words(answer) == normalized_words(reference))


def _best(score, answers, references):
    pairs = zip(answers, references, strict=True)
    return np.array([max(score(a, r) for r in own) for a, own in pairs], np.float64)


# ---- as written, and numbers


def exact(answer: str, reference: str) -> float:
    """1 if the texts are the same without the white space around them, else 0."""
    return float(answer.strip() == reference.strip())


# A minus after a letter, a digit or a bracket is not a sign: '5-3' has the numbers 5
# and 3. Commas between groups of three digits are left out: '1,234' is 1234, and '1,5'
# has the numbers 1 and 5. Digits in words, fractions (1/2) or versions (1.2.3) do not
# count.
NUMBER = re.compile(
    r"""(?<![\w.)\]/])[-+]?[$€£]?
    (?>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
    (?:[eE][-+]?\d{1,3}(?!\d))?(?!/\d|\.\d)""",
    re.VERBOSE,
)


def find_numbers(text: str) -> list[Decimal]:
    """The numbers of a text: 'from -3.50 to 1,234.' → [-3.5, 1234]."""
    matches = NUMBER.findall(text.replace('\N{MINUS SIGN}', '-'))
    return [Decimal(re.sub('[,$€£]', '', match)) for match in matches]


def read_number(text: str) -> Decimal | None:
    """The value of a text that is a number and nothing else, or None."""
    text = text.strip().replace('\N{MINUS SIGN}', '-')
    return find_numbers(text)[0] if NUMBER.fullmatch(text) else None


def _number_statistics(answers, references):
    rows = []
    for answer, own in zip(answers, references, strict=True):
        wanted = {read_number(reference) for reference in own} - {None}
        rows.append((bool(wanted), not wanted.isdisjoint(find_numbers(answer)[-1:])))
    items, right = np.array(rows, np.float64).reshape(-1, 2).T
    return dict(number=right, number_items=items)


# ---- variety


def repetition(text: str) -> float | None:
    """1 - different 4-grams / 4-grams of one text; None if it has no 4-gram."""
    grams = list(_word_grams(text, REPETITION_ORDER))
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[str], n: int) -> float:
    """Different word n-grams of all texts / their word n-grams; nan without any."""
    grams = [gram for text in texts for gram in _word_grams(text, n)]
    return len(set(grams)) / len(grams) if grams else float('nan')


def resample_distinct(
    texts: Sequence[str], n: int, resamples: int, seed: int
) -> np.ndarray:
    """`distinct` of every resample, shifted so that the mean is that of the texts.

    A text that is drawn twice adds no new n-gram, so resamples have a lower share than
    the texts. Their spread is right, their mean is not.
    """
    ((present, lengths),) = count_ngrams([texts], n)
    samples = [
        distinct_of_counts(counts, present, lengths)
        for counts in bootstrap.resample_counts(len(texts), resamples, seed)
    ]
    # The shift may move a few samples beyond the range of a share.
    return np.clip(move_mean(np.concatenate(samples), distinct(texts, n)), 0, 1)


def move_mean(samples: np.ndarray, value: float) -> np.ndarray:
    """The samples, shifted so that the mean of those that are not nan is `value`."""
    known = samples[~np.isnan(samples)]
    return samples - known.mean() + value if len(known) else samples


def count_ngrams(systems: Sequence[Sequence[str]], n: int) -> list[tuple]:
    """(which n-grams each text has, how many n-grams it has) for each system.

    The first is a sparse (texts, n-grams) matrix, with the same columns for all
    systems; the second has shape (texts,).
    """
    from scipy import sparse

    systems = [[list(_word_grams(text, n)) for text in texts] for texts in systems]
    every_gram = (gram for texts in systems for grams in texts for gram in grams)
    column_of = {gram: c for c, gram in enumerate(dict.fromkeys(every_gram))}
    counted = []
    for texts in systems:
        lengths = np.array([len(grams) for grams in texts])
        rows = np.repeat(np.arange(len(texts)), lengths)
        columns = [column_of[gram] for grams in texts for gram in grams]
        shape = (len(texts), max(len(column_of), 1))
        present = sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape)
        counted.append((present, lengths.astype(np.float64)))
    return counted


def distinct_of_counts(counts: np.ndarray, present, lengths: np.ndarray) -> np.ndarray:
    """distinct-n of resamples with these counts of each text: (R, texts) → (R,)."""
    from scipy import sparse

    drawn = sparse.csr_array(counts) @ present
    with np.errstate(invalid='ignore'):
        return np.diff(drawn.indptr) / (counts @ lengths)  # n-grams that are not zero


def compare_distinct(
    first: Sequence[str], second: Sequence[str], n: int, resamples: int, seed: int
) -> tuple[np.ndarray, float]:
    """(bootstrap samples of the second's `distinct` minus the first's, p-value)."""
    from scipy import sparse

    counted = count_ngrams([first, second], n)
    observed = distinct(second, n) - distinct(first, n)
    samples = []
    for counts in bootstrap.resample_counts(len(first), resamples, seed):
        shares = [distinct_of_counts(counts, *system) for system in counted]
        samples.append(shares[1] - shares[0])

    random = np.random.default_rng(seed)
    swapped = random.integers(2, size=(resamples, len(first))).astype(float)
    presents, lengths = zip(*counted, strict=True)
    both = sparse.vstack(presents), np.concatenate(lengths)
    permuted = distinct_of_counts(np.hstack([swapped, 1 - swapped]), *both)
    permuted -= distinct_of_counts(np.hstack([1 - swapped, swapped]), *both)
    p = bootstrap.share_as_large(permuted, observed)
    return move_mean(np.concatenate(samples), observed), p


def _word_grams(text: str, n: int):
    words = text.lower().split()
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


MEANS = (*ROUGE, 'token_f1', 'exact_match', 'exact')
FIGURES = dict(
    bleu=bleu,
    chrf=chrf,
    **{name: bootstrap.mean_figure(name) for name in MEANS},
    number=bootstrap.mean_figure('number', 'number_items'),
    repetition=bootstrap.mean_figure('repetition', 'repetition_items'),
    words=bootstrap.mean_figure('words'),
)
# Columns, and figures of the same names, that evaluations of older versions lack.
LATER_COLUMNS = ('exact', 'number', 'number_items')
DISTINCT = {'distinct_1': 1, 'distinct_2': 2}  # not functions of sums: {name: n}
