"""Windows, packing and sums, with known probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.core.console import UserError
from gptjax.eval.perplexity import measure_documents, pack, summarize, windows_of


class Bytes:
    """A tokenizer with one token per byte of UTF-8."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def documents_of(*texts):
    return [dict(text=text) for text in texts]


def evaluate(score_batch, documents, context, *more, **options):
    columns, facts = measure_documents(
        score_batch, documents, Bytes(), context, *more, **options
    )
    return dict(summarize(columns), **facts)


def uniform(batch):
    return np.full(batch['inputs'].shape, -math.log(8), np.float32)


def by_context(batch):
    """A model with ln P = -1 / the number of inputs of the segment so far."""
    return -1 / (1 + batch['positions']).astype(np.float32)


def test_a_uniform_model_by_hand():
    result = evaluate(uniform, documents_of('abü e', 'fg'), context=4, batch_size=2)
    # 7 + 3 predictions of 3 bits, with ends of documents, for 8 bytes and 3 words
    assert (result['tokens'], result['bytes'], result['words']) == (10, 8, 3)
    assert result['loss'] == pytest.approx(math.log(8))
    assert result['token_perplexity'] == pytest.approx(8)
    assert result['bits_per_byte'] == pytest.approx(30 / 8)
    assert result['word_perplexity'] == pytest.approx(8 ** (10 / 3), rel=1e-5)
    assert result['documents'] == 2
    assert (result['context'], result['stride']) == (4, 2)


def test_the_windows_of_the_docstring():
    stream = np.arange(8)  # BOS a b c d e f EOS
    windows = windows_of([stream], context=4, stride=2)
    assert windows == [(0, 0, 0, 4), (0, 2, 4, 6), (0, 4, 6, 7)]
    result = evaluate(by_context, documents_of('abcdef'), 4, stride=2, batch_size=1)
    # positions 0 1 2 3, then 2 3, then 2
    expected = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 3 + 1 / 4 + 1 / 3
    assert result['loss'] * result['tokens'] == pytest.approx(expected)


def test_only_the_beginning_of_a_document_reads_bos():
    batches = []

    def record(batch):
        batches.append(batch)
        return uniform(batch)

    evaluate(record, documents_of('abcdef', 'gh', 'i'), 4, 2, batch_size=3)
    bos = scored_ends = 0
    names = ('inputs', 'targets', 'segments', 'positions', 'weights')
    for batch in batches:
        bos += (batch['inputs'] == Bytes.bos_id).sum()
        scored_ends += batch['weights'][batch['targets'] == Bytes.eos_id].sum()
        assert {n: a.shape for n, a in batch.items()} == dict.fromkeys(names, (3, 4))
        assert (batch['weights'][batch['segments'] == 0] == 0).all()
    assert bos == scored_ends == 3


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text('abcdef', max_size=40), min_size=1, max_size=12),
    context=st.integers(1, 16),
    stride_share=st.floats(0, 1),
    batch_size=st.integers(1, 5),
)
def test_every_token_is_predicted_once_with_its_context(
    texts, context, stride_share, batch_size
):
    stride = max(1, round(stride_share * context))
    streams = [np.array([1, *map(ord, text), 2]) for text in texts]
    rows = pack(windows_of(streams, context, stride), context)
    predicted = [np.zeros(len(stream) - 1, int) for stream in streams]
    for row in rows:
        assert sum(end - start for _, start, _, end in row) <= context
        for number, start, scored, end in row:
            predicted[number][scored:end] += 1
            if start > 0:
                assert scored - start + 1 >= context - stride + 1
    for counts in predicted:
        assert (counts == 1).all()


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.text('abc', min_size=1, max_size=20), min_size=1, max_size=8))
def test_packing_and_batching_change_nothing(texts):
    documents = documents_of(*texts)
    one = evaluate(by_context, documents, 8, 4, batch_size=1)
    many = evaluate(by_context, documents, 8, 4, batch_size=7)
    apart = [evaluate(by_context, [d], 8, 4, batch_size=2) for d in documents]
    assert many['loss'] == pytest.approx(one['loss'], rel=1e-12)
    total = sum(result['loss'] * result['tokens'] for result in apart)
    assert total == pytest.approx(one['loss'] * one['tokens'], rel=1e-6)


def test_short_documents_share_rows():
    result = evaluate(uniform, documents_of(*['abc'] * 64), 16, batch_size=4)
    assert result['rows'] == 16  # with four documents of four inputs each


def test_figures_without_a_finite_value_are_none():
    no_words = evaluate(uniform, documents_of('\n'), 4)
    assert no_words['word_perplexity'] is None and no_words['bytes'] == 1
    bad = evaluate(lambda batch: 1000 * uniform(batch), documents_of('a'), 4)
    assert bad['token_perplexity'] is None and bad['loss'] > 1000


def test_a_long_sum_keeps_its_digits():
    constant = lambda batch: np.full(batch['inputs'].shape, -0.1, np.float32)
    result = evaluate(constant, documents_of('a' * 200_000), 1000, 1000)
    assert result['loss'] == pytest.approx(np.float32(0.1), rel=1e-9)


@pytest.mark.parametrize(
    ('texts', 'stride', 'words'),
    [(['a'], 5, 'eval.stride=5'), (['a'], -1, 'eval.stride=-1'), ([''], 0, 'no text')],
)
def test_bad_input_is_named(texts, stride, words):
    with pytest.raises(UserError, match=words):
        evaluate(uniform, documents_of(*texts), 4, stride)
