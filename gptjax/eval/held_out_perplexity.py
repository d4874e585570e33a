"""The task `perplexity`: documents that the model was not trained on, by source.

Its baselines cost nothing: frequencies of tokens, document by document, so that they
have intervals as the model has; and `xz -9e` given the training text, a total.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptjax.eval import results
from gptjax.eval.baselines import compute_baselines, count_tokens
from gptjax.eval.perplexity import FIGURES, measure_documents, of_source, summarize
from gptjax.eval.results import Bootstrap


def measure(
    logprobs,
    documents: Sequence[dict],
    tokenizer,
    workdir: Path,
    context: int,
    stride: int,
    batch_size: int,
    how: Bootstrap,
    keep_in: Path | None = None,
) -> tuple[dict, dict, dict]:
    """Figures over whole documents, their intervals over documents, and baselines.

    Args:
        logprobs: from a batch to ln P of its targets, see `measure_documents`.
        documents: dicts with `id`, `source` and `text`.
        tokenizer: of the run.
        workdir: RUN, with `documents` and `prepared`.
        context, stride, batch_size: of the windows.
        how: intervals are made.
        keep_in: the run directory that keeps the baselines; None: RUN.

    Returns:
        (the figures as `evaluate_documents` gives them, with `intervals` beside
        each; the baselines of `compute_baselines`; the task's result).
    """
    measured = measure_documents(
        logprobs, documents, tokenizer, context, stride, batch_size
    )
    columns = measured.columns
    sources = np.array([document['source'] for document in documents])
    summary = summarize(measured, sources, context)
    baselines = compute_baselines(workdir, documents, tokenizer, keep_in)
    unigram = dict(columns, nats=token_unigram_nats(workdir, documents, tokenizer))

    figures = _beside_unigram(columns, unigram, how)
    _add_xz(figures, columns, baselines)
    summary['intervals'] = _intervals(figures)
    for source, its in summary['by_source'].items():
        chosen = sources == source
        of_it = _beside_unigram(
            of_source(columns, chosen), of_source(unigram, chosen), how
        )
        its['intervals'] = _intervals(of_it)
        if len(summary['by_source']) > 1:
            figures.update({f'{name}/{source}': f for name, f in of_it.items()})
    task = results.result(
        'perplexity',
        'whole documents of the validation split; intervals over documents',
        figures,
        columns,
        [_named(document) for document in documents],
        how,
        dict(context=context, stride=measured.stride, bos=True, eos_counted=True),
    )
    return summary, baselines, task


def token_unigram_nats(workdir: Path, documents: Sequence[dict], tokenizer):
    """-ln P of each document under the training split's token frequencies plus one."""
    smoothed = count_tokens(workdir / 'prepared' / 'train', tokenizer) + 1.0
    nats = -np.log(smoothed / smoothed.sum())
    tokens = tokenizer.encode_batch([document['text'] for document in documents])
    return np.array([nats[its].sum() + nats[tokenizer.eos_id] for its in tokens])


def _beside_unigram(columns, unigram, how):
    figures = results.figures_of(columns, FIGURES, how)
    beside = results.figures_of(unigram, FIGURES, how)
    results.add_baseline(figures, 'token frequencies', beside)
    return figures


def _add_xz(figures, columns, baselines):
    """xz's bits per byte, told in the unit of every figure."""
    bits = baselines['bits_per_byte']['xz_given_train']
    sums = {name: np.float64(column.sum()) for name, column in columns.items()}
    sums['nats'] = bits * math.log(2) * sums['bytes']
    values = {
        name: dict(value=results.finite(of(sums))) for name, of in FIGURES.items()
    }
    results.add_baseline(figures, 'xz -9e, given training text', values)


def _intervals(figures):
    return {name: figure['interval'] for name, figure in figures.items()}


def _named(document):
    digest = hashlib.sha256(document['text'].encode('utf-8', 'replace')).hexdigest()
    # The document is all there is: no prompt stands before it.
    return dict(
        id=document['id'],
        source=document['source'],
        prompt_sha256=digest,
        item_sha256=digest,
    )
