"""Entropies by hand, sizes compared with the xz program, and the cache."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.eval import baselines


class Halves:
    """A tokenizer of the bytes 'a' and 'b'."""

    vocab_size, pad_id, bos_id, eos_id = 5, 0, 1, 2
    fingerprint = 'halves'

    def encode_batch(self, texts):
        return [[3 + 'ab'.index(letter) for letter in text] for text in texts]


@pytest.fixture
def run(tmp_path):
    """BOS a a b BOS a BOS, in rows of 3 + 1 that overlap by one token."""
    (tmp_path / 'documents').mkdir()
    (tmp_path / 'documents' / 'train.jsonl').write_text(
        '{"id": "mine/0", "text": "aab"}\n{"id": "mine/1", "text": "a"}\n'
    )
    shards = tmp_path / 'prepared' / 'train' / 'mine'
    shards.mkdir(parents=True)
    rows = np.array([[1, 3, 3, 4], [4, 1, 3, 1]], np.uint16)
    np.save(shards / 'tokens-00000.npy', rows)
    return tmp_path


def test_tokens_are_counted_as_targets(run):
    folder = run / 'prepared' / 'train'
    counts = baselines.count_tokens(folder, Halves())
    assert counts.tolist() == [0, 0, 2, 3, 1]  # two ends, three a, one b
    padded = np.array([[1, 3, 3, 1], [1, 0, 0, 0]], np.uint16)
    np.save(folder / 'mine' / 'tokens-00000.npy', padded)
    assert baselines.count_tokens(folder, Halves()).tolist() == [0, 0, 1, 2, 0]


def test_the_figures_of_a_run_are_cached(run, monkeypatch):
    result = baselines.compute_baselines(run, [{'text': 'ab'}], Halves())
    bits = result['bits_per_byte']
    # After adding one to each of five counts: a 4/11, b 2/11, end 3/11.
    assert bits['token_unigram'] == pytest.approx(-math.log2(4 * 2 * 3 / 11**3) / 2)
    # Counts of bytes plus one, of 6 + 256: a 4, b 2, the separator 3.
    assert bits['byte_unigram'] == pytest.approx(-math.log2(4 * 2 * 3 / 262**3) / 2)
    assert bits['xz'] == 8 * result['sizes']['xz'] / 2
    assert result['validation_bytes'] == 2 and result['train_bytes'] == 6
    assert set(bits) == set(result['about'])
    calls = []
    compress = baselines.measure_xz_sizes
    counted = lambda inputs: calls.append(1) or compress(inputs)
    monkeypatch.setattr(baselines, 'measure_xz_sizes', counted)
    assert baselines.compute_baselines(run, [{'text': 'ab'}], Halves()) == result
    assert not calls
    baselines.compute_baselines(run, [{'text': 'ba'}], Halves())
    assert calls
    for content in ('', '{}'):
        (run / 'baselines.json').write_text(content)
        again = baselines.compute_baselines(run, [{'text': 'ab'}], Halves())
        assert again['bits_per_byte'] == bits


def test_training_text_helps_to_compress():
    draw = np.random.default_rng(0)
    train = draw.integers(0, 256, 20_000, np.uint8).tobytes()
    alone, before, after = baselines.measure_xz_sizes(
        [train[:5000], train, train + train[:5000]]
    )
    assert after - before < 500 < 5000 < alone


@pytest.mark.skipif(shutil.which('xz') is None, reason='xz is not installed')
def test_sizes_are_those_of_the_xz_program(tmp_path):
    words = np.random.default_rng(0).integers(0, 200, 100_000)
    text = ' '.join(map(str, words)).encode()
    path = tmp_path / 'text'
    path.write_bytes(text)
    packed = subprocess.run(['xz', '-9e', '-T1', '-c', path], capture_output=True)
    (size,) = baselines.measure_xz_sizes([text])
    # Releases of liblzma differ by a few bytes.
    assert size == pytest.approx(len(packed.stdout), abs=64)


def test_the_last_documents_of_a_long_file(tmp_path):
    path = tmp_path / 'train.jsonl'
    lines = [json.dumps({'id': str(i), 'text': f'{i:0100d}'}) for i in range(1000)]
    path.write_text('\n'.join(lines) + '\n')
    texts = baselines.read_last_texts(path, max_bytes=1050)  # enough for 10.4 texts
    assert texts == [f'{i:0100d}'.encode() for i in range(990, 1000)]
    assert len(baselines.read_last_texts(path, max_bytes=10**6)) == 1000


@pytest.mark.parametrize('missing', ['documents', 'prepared'])
def test_errors_name_what_is_missing(run, missing):
    shutil.rmtree(run / missing)
    with pytest.raises(UserError, match=missing):
        baselines.compute_baselines(run, [{'text': 'ab'}], Halves())
