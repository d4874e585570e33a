"""A run's validation documents, and the task `perplexity` on them.

Its baselines need no model. The frequencies of tokens give a value for each document,
so they have intervals as the model has. `xz -9e` of the training text and the documents
gives only a total.
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
from gptjax.eval.baselines import compute_baselines, compute_token_unigram_nats
from gptjax.eval.perplexity import FIGURES, measure_documents, summarize
from gptjax.eval.tasks.predictor import Predictor

VALIDATION = Path('documents', 'validation.jsonl')  # in a run directory

# ---- documents


def read_held_out_documents(
    config: ConfigDict, workdir: Path, count: int
) -> tuple[list[dict], Path]:
    """(`count` validation documents, the run that has them); 0: all documents."""
    run = find_run_of_documents(config, workdir)
    return choose_documents(list(storage.read_jsonl(run / VALIDATION)), count), run


def read_held_out_texts(config: ConfigDict, workdir: Path, count: int) -> list[str]:
    """The texts of `count` validation documents; see `find_run_of_documents`."""
    documents, _ = read_held_out_documents(config, workdir, count)
    if not documents:
        raise UserError(f'{workdir} has no validation documents: use another run')
    return [document['text'] for document in documents]


def choose_documents(documents: list[dict], count: int) -> list[dict]:
    """`count` of the documents, in their order; 0: all.

    A hash of the ids chooses them, so that all sources are represented: the first lines
    of a file all come from its first source.
    """
    if not count:
        return documents
    key = lambda index: storage.fingerprint(['eval', documents[index]['id']])
    chosen = sorted(range(len(documents)), key=key)[:count]
    return [documents[index] for index in sorted(chosen)]


def has_documents(workdir: Path) -> bool:
    """Whether RUN/documents exists and is complete."""
    path = workdir / VALIDATION
    return path.exists() and not artifact.is_unfinished(path.parent)


def find_run_of_documents(config: ConfigDict, workdir: Path) -> Path:
    """The first run with documents: RUN, the run that it started from, and so on.

    Whether a conversation is held out depends on its id alone, so all runs agree.
    """
    folder = workdir
    while not has_documents(folder):
        start = config.get('start', {}).get('run', '')
        if not start or not (Path(start) / 'config.json').exists():
            raise UserError(
                f'{workdir}: neither this run nor the runs that it started from have '
                'validation documents: run the stage data first'
            )
        folder = Path(start)
        config = run_dir.read_config(folder)
    return folder


# ---- the task


def evaluate_perplexity(
    predictor: Predictor,
    documents: Sequence[dict],
    documents_run: Path,
    baselines_run: Path | None = None,
) -> tuple[dict, dict, dict]:
    """Figures over whole documents, with baselines, and intervals over documents.

    Args:
        documents: dicts with `id`, `source` and `text`, of the run `documents_run`.
        baselines_run: the run directory that caches the baselines; None:
            `documents_run`.

    Returns:
        The summary: what `perplexity.summarize` returns and `intervals`, of all
        documents, and of those of each source in `by_source`; what `compute_baselines`
        returns; the task's result.
    """
    settings, context = predictor.settings, predictor.context
    bootstrap_settings = predictor.bootstrap_settings
    compute_figures = partial(
        bootstrap.compute_figures, figures=FIGURES, settings=bootstrap_settings
    )
    columns, facts = measure_documents(
        lambda batch: predictor.score_batch(batch)[0],
        documents,
        predictor.tokenizer,
        context,
        settings.stride,
        settings.batch_size,
    )
    baselines = compute_baselines(
        documents_run, documents, predictor.tokenizer, baselines_run
    )
    unigram_nats = compute_token_unigram_nats(
        documents_run, documents, predictor.tokenizer
    )
    unigram_columns = dict(columns, nats=unigram_nats)

    def compute_part(chosen):
        """(summary, figures) of the documents where `chosen` is true."""
        part, unigram = (
            {name: column[chosen] for name, column in table.items()}
            for table in (columns, unigram_columns)
        )
        figures = compute_figures(part)
        results.add_baseline(figures, 'token frequencies', compute_figures(unigram))
        intervals = {name: figure['interval'] for name, figure in figures.items()}
        return dict(summarize(part), intervals=intervals), figures

    summary, figures = compute_part(np.ones(len(documents), bool))
    # xz's bits per byte, in the unit of every figure
    sums = bootstrap.sum_columns(columns)
    bits_per_byte = baselines['bits_per_byte']['xz_given_train']
    sums['nats'] = bits_per_byte * math.log(2) * sums['bytes']
    xz = {
        name: dict(value=bootstrap.finite_or_none(figure(sums)))
        for name, figure in FIGURES.items()
    }
    results.add_baseline(figures, 'xz -9e, given training text', xz)
    sources = np.array([document['source'] for document in documents])
    by_source = {str(s): compute_part(sources == s) for s in np.unique(sources)}
    summary['by_source'] = {source: part for source, (part, _) in by_source.items()}
    if len(by_source) > 1:
        for source, (_, part_figures) in by_source.items():
            figures.update({f'{n}/{source}': f for n, f in part_figures.items()})
    examples = []
    for document in documents:
        digest = hashlib.sha256(document['text'].encode('utf-8', 'replace')).hexdigest()
        # There is no prompt: the document is the whole example.
        identity = dict(prompt_sha256=digest, item_sha256=digest)
        examples.append(dict(id=document['id'], source=document['source'], **identity))
    result = results.make_result(
        'perplexity',
        'whole documents of the validation split; intervals over documents',
        figures,
        columns,
        examples,
        bootstrap_settings,
        dict(context=context, stride=facts['stride'], bos=True, eos_counted=True),
    )
    return dict(summary, **facts), baselines, result
