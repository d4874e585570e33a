"""Held-out documents by source, with intervals and baselines."""

import math

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.eval import results
from gptjax.eval.held_out_documents import (
    VALIDATION,
    choose_documents,
    evaluate_perplexity,
)
from gptjax.eval.tasks.predictor import Predictor
from gptjax.tokenizer.tokenizer import Tokenizer
from tests import runs


def measure(workdir, documents):
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    config = common.base()
    config.eval.update(batch_size=8, resamples=200)

    def uniform(batch):
        return np.full(batch['inputs'].shape, -math.log(512), np.float32), None

    predictor = Predictor(tokenizer, 'text', 64, uniform, None, config.eval)
    return evaluate_perplexity(predictor, documents, workdir)


def test_chosen_documents_are_of_every_source_and_depend_on_their_ids_alone():
    documents = [
        dict(id=f'{source}/{n}', source=source) for source in 'ab' for n in range(50)
    ]
    assert choose_documents(documents, 0) == documents
    chosen = choose_documents(documents, 10)
    assert len(chosen) == 10
    assert {document['source'] for document in chosen} == {'a', 'b'}
    assert [d for d in documents if d in chosen] == chosen
    assert all(d in chosen for d in choose_documents(documents, 4))
    assert sorted(choose_documents(documents[::-1], 10), key=documents.index) == chosen


@pytest.fixture(scope='module')
def workdir(prepared_run, tmp_path_factory):
    return runs.copy(prepared_run, tmp_path_factory.mktemp('heldout') / 'run')


@pytest.fixture(scope='module')
def documents(workdir):
    read = [*storage.read_jsonl(workdir / VALIDATION)][:8]
    return [dict(d, source='web' if n < 3 else 'chat') for n, d in enumerate(read)]


def test_every_source_has_figures_intervals_and_a_baseline(workdir, documents):
    summary, baselines, task = measure(workdir, documents)
    assert baselines['bits_per_byte']['xz'] > 0
    assert list(summary['by_source']) == ['chat', 'web']
    for count in ('tokens', 'bytes', 'words', 'documents'):
        parts = [part[count] for part in summary['by_source'].values()]
        assert sum(parts) == summary[count] and all(parts)
    for source, part in summary['by_source'].items():
        for name in ('bits_per_byte', 'token_perplexity', 'word_perplexity', 'loss'):
            figure = task['figures'][f'{name}/{source}']
            assert figure['value'] == pytest.approx(part[name])
            assert figure['interval'] == part['intervals'][name]
            assert 'token frequencies' in figure['baselines']
    # A uniform model has the same loss everywhere, so the interval is a point.
    assert summary['loss'] == pytest.approx(math.log(512), rel=1e-6)
    assert summary['intervals']['loss'] == pytest.approx([math.log(512)] * 2, rel=1e-6)
    low, high = summary['intervals']['bits_per_byte']
    assert low < summary['bits_per_byte'] < high
    columns = results.read_columns(task)
    bits = columns['nats'].sum() / math.log(2) / columns['bytes'].sum()
    assert bits == pytest.approx(summary['bits_per_byte'])
    # The units of a baseline agree with each other.
    bits_per_nat = summary['tokens'] / math.log(2) / summary['bytes']
    for label, name in (
        ('token frequencies', 'token_unigram'),
        ('xz -9e, given training text', 'xz_given_train'),
    ):
        loss = task['figures']['loss']['baselines'][label]['value']
        assert loss * bits_per_nat == pytest.approx(baselines['bits_per_byte'][name])


def test_a_single_source_has_no_figures_of_its_own(workdir, documents):
    one = [dict(document, source='chat') for document in documents]
    _, _, task = measure(workdir, one)
    assert set(task['figures']) == {
        *('loss', 'token_perplexity', 'bits_per_byte', 'word_perplexity')
    }
    assert {item['source'] for item in task['items']} == {'chat'}
    assert len({item['item_sha256'] for item in task['items']}) == len(documents)
