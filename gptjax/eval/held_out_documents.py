"""A run's validation documents, and the task `perplexity` that predicts them.

Its baselines cost nothing: frequencies of tokens, document by document, so that they
have intervals as the model has; and `xz -9e` given the training text, a total.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import bootstrap, results
from gptjax.eval.baselines import compute_baselines, count_tokens
from gptjax.eval.perplexity import (
    FIGURES,
    measure_documents,
    select_documents,
    summarize,
)
from gptjax.eval.tasks.predictor import Predictor

# ---- documents


def read_documents(path: Path) -> list[dict]:
    """The documents of a split, as the stage `data` wrote them."""
    return list(storage.read_jsonl(path))


def choose_documents(documents: list[dict], number: int) -> list[dict]:
    """So many of the documents, in their order; 0: all.

    Which ones is decided by a hash of their ids: a file is in the order of its
    sources, and its first lines stand for the first source alone.
    """
    if not number:
        return documents
    key = lambda index: storage.fingerprint(['eval', documents[index]['id']])
    chosen = sorted(range(len(documents)), key=key)[:number]
    return [documents[index] for index in sorted(chosen)]


def read_held_out_documents(
    config: ConfigDict, workdir: Path, number: int
) -> tuple[list[dict], Path]:
    """So many validation documents, and the run of `find_run_of_documents`; 0: all."""
    run = find_run_of_documents(config, workdir)
    return choose_documents(read_documents(validation_path(run)), number), run


def read_held_out_texts(config: ConfigDict, workdir: Path, number: int) -> list[str]:
    """The texts of so many validation documents; see `find_run_of_documents`."""
    documents, _ = read_held_out_documents(config, workdir, number)
    if not documents:
        raise UserError(f'{workdir}: no validation documents to measure on')
    return [document['text'] for document in documents]


def validation_path(workdir: Path) -> Path:
    """Where RUN's validation documents are, if it has any."""
    return workdir / 'documents' / 'validation.jsonl'


def has_documents(workdir: Path) -> bool:
    """Whether RUN/documents is there, and whole."""
    path = validation_path(workdir)
    return path.exists() and not artifact.is_unfinished(path.parent)


def find_run_of_documents(config: ConfigDict, workdir: Path) -> Path:
    """RUN, or the run it started from, and so on: the first that has documents.

    A conversation's id decides whether it is held out, in all of them alike.
    """
    folder = workdir
    while not has_documents(folder):
        start = config.get('start', {}).get('run', '')
        if not start or not (Path(start) / 'config.json').exists():
            raise UserError(
                f'{workdir}: no validation documents, in it or in the runs that it '
                'started from: run the stage data first'
            )
        folder = Path(start)
        config = run_dir.read_config(folder)
    return folder


# ---- the task


def evaluate_perplexity(
    predictor: Predictor,
    documents: Sequence[dict],
    documents_run: Path,
    keep_in: Path | None = None,
) -> tuple[dict, dict, dict]:
    """Figures over whole documents, their intervals over documents, and baselines.

    The documents are dicts with `id`, `source` and `text`, of the run `documents_run`;
    the baselines are kept in the run directory `keep_in`, or else in that one.

    Returns (the summary of `perplexity.summarize`, with `intervals` of each figure; the
    baselines of `compute_baselines`; the task's result).
    """
    settings, context = predictor.settings, predictor.context
    bootstrap_settings = predictor.bootstrap_settings
    compute_figures = partial(
        bootstrap.compute_figures, figures=FIGURES, settings=bootstrap_settings
    )
    measured = measure_documents(
        lambda batch: predictor.score_batch(batch)[0],
        documents,
        predictor.tokenizer,
        context,
        settings.stride,
        settings.batch_size,
    )
    columns = measured.columns
    sources = np.array([document['source'] for document in documents])
    summary = summarize(measured, sources, context)
    baselines = compute_baselines(
        documents_run, documents, predictor.tokenizer, keep_in
    )
    unigram_nats = token_unigram_nats(documents_run, documents, predictor.tokenizer)
    unigram_columns = dict(columns, nats=unigram_nats)

    everything = ('', summary, np.ones(len(documents), bool))
    by_source = [
        (f'/{source}', part, sources == source)
        for source, part in summary['by_source'].items()
    ]
    figures = {}
    for suffix, part, chosen in (everything, *by_source):
        part_figures = compute_figures(select_documents(columns, chosen))
        unigram_figures = compute_figures(select_documents(unigram_columns, chosen))
        results.add_baseline(part_figures, 'token frequencies', unigram_figures)
        part['intervals'] = {n: f['interval'] for n, f in part_figures.items()}
        if not suffix:
            # bits per byte of xz, in the unit of every figure
            sums = bootstrap.sum_columns(columns)
            bits_per_byte = baselines['bits_per_byte']['xz_given_train']
            sums['nats'] = bits_per_byte * math.log(2) * sums['bytes']
            xz = {
                name: dict(value=bootstrap.finite_or_none(figure(sums)))
                for name, figure in FIGURES.items()
            }
            results.add_baseline(part_figures, 'xz -9e, given training text', xz)
        if not suffix or len(by_source) > 1:
            figures.update({f'{n}{suffix}': f for n, f in part_figures.items()})
    examples = []
    for document in documents:
        digest = hashlib.sha256(document['text'].encode('utf-8', 'replace')).hexdigest()
        # The document is all there is: no prompt stands before it.
        identity = dict(prompt_sha256=digest, item_sha256=digest)
        examples.append(dict(id=document['id'], source=document['source'], **identity))
    result = results.make_result(
        'perplexity',
        'whole documents of the validation split; intervals over documents',
        figures,
        columns,
        examples,
        bootstrap_settings,
        dict(context=context, stride=measured.stride, bos=True, eos_counted=True),
    )
    return summary, baselines, result


def token_unigram_nats(workdir: Path, documents: Sequence[dict], tokenizer):
    """-ln P of each document under the training split's token frequencies plus one."""
    smoothed = count_tokens(workdir / 'prepared' / 'train', tokenizer) + 1.0
    nats = -np.log(smoothed / smoothed.sum())
    texts = tokenizer.encode_batch([document['text'] for document in documents])
    return np.array([nats[tokens].sum() + nats[tokenizer.eos_id] for tokens in texts])
