import json
from functools import partial

import pytest
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.tokenizer import train_tokenizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import read_texts, train_model

WORDS = 'the quick brown fox jumps over the lazy dog and then it sleeps all day long'
TRAIN = [f'{WORDS}\n\n{WORDS[::-1]}\n{i}' for i in range(40)]
KINDS = pytest.mark.parametrize('kind', ['bpe', 'unigram'])


def write_documents(workdir, train_texts, validation_texts=('held out text',)):
    """Writes RUN/documents; returns the path of the training split."""
    for split, texts in {'train': train_texts, 'validation': validation_texts}.items():
        lines = (json.dumps({'text': text}) + '\n' for text in texts)
        storage.write_text(workdir / 'documents' / f'{split}.jsonl', ''.join(lines))
    manifest = {'fingerprint': storage.fingerprint(list(train_texts))}
    storage.write_json(workdir / 'documents' / 'manifest.json', manifest)
    return workdir / 'documents' / 'train.jsonl'


def train(workdir, vocab_size=320):
    fields = dict(kind='bpe', vocab_size=vocab_size, train_characters=1_000_000)
    config = ConfigDict({'tokenizer': fields, 'data': {'augment': ()}})
    return train_tokenizer.train_tokenizer(config, workdir)


def test_trained_once_and_another_config_is_refused(tmp_path):
    write_documents(tmp_path, TRAIN)
    manifest = train(tmp_path)
    model = tmp_path / 'tokenizer' / 'tokenizer.model'
    tokenizer = Tokenizer.load(model)
    assert manifest['sha256'] == tokenizer.fingerprint == storage.sha256_of_file(model)
    assert manifest['vocab_size'] == tokenizer.vocab_size == 320
    assert manifest['train_characters'] == sum(map(len, TRAIN))
    tokens = len(tokenizer.encode('held out text'))
    assert manifest['bytes_per_token'] == len('held out text') / tokens
    written = model.stat().st_mtime_ns
    assert train(tmp_path) == manifest
    assert model.stat().st_mtime_ns == written
    with pytest.raises(UserError, match='vocab_size: 320 there, 310 here.*delete'):
        train(tmp_path, vocab_size=310)
    write_documents(tmp_path, TRAIN[1:])
    with pytest.raises(UserError, match='documents: '):
        train(tmp_path)


def test_learns_from_the_training_split_alone(tmp_path):
    write_documents(tmp_path / 'a', TRAIN, ['zebra zebra zebra'])
    write_documents(tmp_path / 'b', TRAIN, ['xylophone ' * 50])
    assert train(tmp_path / 'a')['sha256'] == train(tmp_path / 'b')['sha256']


@KINDS
def test_the_largest_vocabulary_is_named_and_works_reproducibly(kind):
    with pytest.raises(
        UserError, match='tokenizer.vocab_size=50000 .* at most'
    ) as info:
        train_model(TRAIN, kind, 50_000)
    largest = int(str(info.value).split('at most ')[1].split(',')[0])
    model = train_model(TRAIN, kind, largest)
    assert Tokenizer(model).vocab_size == largest
    assert model == train_model(TRAIN, kind, largest)  # byte for byte
    with pytest.raises(UserError, match='at most'):
        train_model(TRAIN, kind, largest + 1)


@pytest.mark.parametrize('vocab_size', [-1, 0, 100, 270])
def test_the_smallest_vocabulary_is_named_and_works(vocab_size):
    with pytest.raises(UserError, match=f'size={vocab_size} .* at least') as info:
        train_model(TRAIN, 'bpe', vocab_size)
    smallest = int(str(info.value).rsplit(' ', 1)[1])
    assert Tokenizer(train_model(TRAIN, 'bpe', smallest)).vocab_size == smallest


def test_no_documents_and_no_text(tmp_path):
    with pytest.raises(UserError, match='documents is not there: .* `data`'):
        train(tmp_path)
    with pytest.raises(UserError, match='the training text is empty'):
        train_model([], 'bpe', 300)


def test_no_text_is_skipped():
    """Nothing is lost near a NUL or SentencePiece's marks, or in the longest line."""
    texts = [
        'cab cab cab\0 cab cab ▁ abba abba ▅ bebed bebed bebed',
        'abcdefgh' * 12_000 + ' gabfeh gabfeh gabfeh gabfeh',
    ]
    tokenizer = Tokenizer(train_model(texts, 'bpe', 310))
    for word in ('cab', 'abba', 'bebed', 'gabfeh'):
        assert len(tokenizer.encode(f' {word}')) == 1, word


def test_a_large_file_is_read_at_even_places(tmp_path):
    texts = [f'{i:06d} ' + 'x' * 93 for i in range(5000)]
    path = write_documents(tmp_path, texts)
    read = list(read_texts(path, 50_000))
    assert 0.9 * 50_000 <= sum(map(len, read)) <= 50_000
    numbers = [int(text[:6]) for text in read]
    assert numbers == sorted(set(numbers))  # nothing twice
    quarters = [sum(i // 1250 == quarter for i in numbers) for quarter in range(4)]
    assert max(quarters) - min(quarters) <= 0.05 * len(numbers)
    assert list(read_texts(path, 10**9)) == texts


@pytest.mark.parametrize('lengths', [[50_000] * 12, [600_000], [100, 60_000] * 10])
def test_long_documents_are_read_at_even_places_as_well(tmp_path, lengths):
    # Any eight characters are unique, so they show from where a text was read.
    texts = [''.join(f'{n:07d} ' for n in range(size // 8)) for size in lengths]
    texts = [f'{chr(97 + i)}{text}' for i, text in enumerate(texts)]
    read = list(read_texts(write_documents(tmp_path, texts), 200_000))
    assert 0.98 * 200_000 <= sum(map(len, read)) <= 200_000
    joined, place, counts = ''.join(texts), 0, [0] * 10
    for part in read:  # in order, and nothing twice
        place = joined.index(part, place)
        counts[place * 10 // len(joined)] += len(part)
        place += len(part)
    assert max(counts) - min(counts) <= 0.05 * 200_000


def test_a_long_document_after_a_short_one_is_found(tmp_path):
    texts = ['a' * 700, 'b' * 600_000, 'c' * 10_000]
    path = write_documents(tmp_path, texts)
    read = ''.join(read_texts(path, 100_000))
    assert [round(read.count(c) / 100_000, 2) for c in 'abc'] == [0, 0.98, 0.02]
    with open(path, 'rb') as file:
        second = len(file.readline())
        line_start = partial(train_tokenizer._line_start, file)
        for place in (second + 1, second + 300_000, second + 600_000):
            assert line_start(place) == second
        assert line_start(second - 1) == 0


def test_wide_characters_of_a_long_document_are_read_once(tmp_path):
    path = write_documents(tmp_path, ['日' * 100_000])
    assert sum(map(len, read_texts(path, 200_000))) == 100_000
