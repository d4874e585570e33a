"""Held-out documents by source, with intervals and baselines."""

import math

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.eval.held_out_documents import VALIDATION, evaluate_perplexity
from gptjax.eval.tasks.predictor import Predictor
from gptjax.tokenizer.tokenizer import Tokenizer
from tests import runs


@pytest.fixture(scope='module')
def workdir(prepared_run, tmp_path_factory):
    return runs.copy(prepared_run, tmp_path_factory.mktemp('heldout') / 'run')


def measure(workdir, documents):
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    config = common.base()
    config.eval.update(batch_size=8, resamples=200)

    def uniform(batch):
        return np.full(batch['inputs'].shape, -math.log(512), np.float32), None

    predictor = Predictor(tokenizer, 'text', 64, uniform, None, config.eval)
    return evaluate_perplexity(predictor, documents, workdir)


@pytest.fixture(scope='module')
def documents(workdir):
    read = [*storage.read_jsonl(workdir / VALIDATION)][:8]
    return [dict(d, source='web' if n < 3 else 'chat') for n, d in enumerate(read)]


def test_every_source_has_figures_intervals_and_a_baseline(workdir, documents):
    summary, baselines, task = measure(workdir, documents)
    assert baselines['bits_per_byte']['xz'] > 0
    assert list(summary['by_source']) == ['chat', 'web']
    for source, its in summary['by_source'].items():
        for name in ('bits_per_byte', 'token_perplexity', 'word_perplexity', 'loss'):
            figure = task['figures'][f'{name}/{source}']
            assert figure['value'] == pytest.approx(its[name])
            assert figure['interval'] == its['intervals'][name]
            assert 'token frequencies' in figure['baselines']
    # A model that draws evenly: the same loss everywhere, and no doubt about it.
    assert summary['loss'] == pytest.approx(math.log(512), rel=1e-6)
    assert summary['intervals']['loss'] == pytest.approx([math.log(512)] * 2, rel=1e-6)
    low, high = summary['intervals']['bits_per_byte']
    assert low < summary['bits_per_byte'] < high


def test_baselines_are_the_same_in_every_unit(workdir, documents):
    summary, baselines, task = measure(workdir, documents)
    of_loss = task['figures']['loss']['baselines']
    unigram = of_loss['token frequencies']['value'] * summary['tokens']
    bits = unigram / math.log(2) / summary['bytes']
    assert bits == pytest.approx(baselines['bits_per_byte']['token_unigram'])
    xz = of_loss['xz -9e, given training text']['value'] * summary['tokens']
    bits = xz / math.log(2) / summary['bytes']
    assert bits == pytest.approx(baselines['bits_per_byte']['xz_given_train'])


def test_one_source_is_not_told_twice(workdir, documents):
    one = [dict(document, source='chat') for document in documents]
    _, _, task = measure(workdir, one)
    assert set(task['figures']) == {
        *('loss', 'token_perplexity', 'bits_per_byte', 'word_perplexity')
    }
    assert {item['source'] for item in task['items']} == {'chat'}
    assert len({item['item_sha256'] for item in task['items']}) == len(documents)
