import json

import pytest
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.tokenizer import train_tokenizer
from gptjax.tokenizer.tokenizer import Tokenizer

WORDS = 'the quick brown fox jumps over the lazy dog and then it sleeps all day long'
TRAIN = [f'{WORDS}\n\n{WORDS[::-1]}\n{i}' for i in range(40)]


def write_documents(workdir, train_texts, validation_texts=('held out text',)):
    for split, texts in {'train': train_texts, 'validation': validation_texts}.items():
        lines = [
            json.dumps({'id': f's/{i}', 'source': 's', 'text': text}) + '\n'
            for i, text in enumerate(texts)
        ]
        storage.write_text(workdir / 'documents' / f'{split}.jsonl', ''.join(lines))
    manifest = {'fingerprint': storage.fingerprint(list(train_texts))}
    storage.write_json(workdir / 'documents' / 'manifest.json', manifest)


def config(**fields):
    fields = {
        'kind': 'bpe',
        'vocab_size': 320,
        'train_characters': 1_000_000,
        **fields,
    }
    return ConfigDict({'tokenizer': fields})


def test_trains_and_then_returns_what_is_there(tmp_path):
    write_documents(tmp_path, TRAIN)
    manifest = train_tokenizer.train_tokenizer(config(), tmp_path)
    model = tmp_path / 'tokenizer' / 'tokenizer.model'
    tokenizer = Tokenizer.load(model)
    assert manifest['sha256'] == tokenizer.fingerprint == storage.sha256_of_file(model)
    assert manifest['vocab_size'] == tokenizer.vocab_size == 320
    assert manifest['train_characters'] == sum(map(len, TRAIN))
    tokens = len(tokenizer.encode('held out text'))
    assert manifest['bytes_per_token'] == len('held out text') / tokens
    written = model.stat().st_mtime_ns
    assert train_tokenizer.train_tokenizer(config(), tmp_path) == manifest
    assert model.stat().st_mtime_ns == written


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_the_same_text_gives_the_same_bytes(kind):
    assert train_tokenizer.train_model(TRAIN, kind, 312) == train_tokenizer.train_model(
        TRAIN, kind, 312
    )


def test_learns_from_the_training_split_alone(tmp_path):
    write_documents(tmp_path / 'a', TRAIN, ['zebra zebra zebra'])
    write_documents(tmp_path / 'b', TRAIN, ['xylophone ' * 50])
    a = train_tokenizer.train_tokenizer(config(), tmp_path / 'a')
    b = train_tokenizer.train_tokenizer(config(), tmp_path / 'b')
    assert a['sha256'] == b['sha256']


def test_another_config_is_refused_by_field(tmp_path):
    write_documents(tmp_path, TRAIN)
    train_tokenizer.train_tokenizer(config(), tmp_path)
    with pytest.raises(
        UserError, match='tokenizer.vocab_size: 320 there, 310 here.*delete'
    ):
        train_tokenizer.train_tokenizer(config(vocab_size=310), tmp_path)
    write_documents(tmp_path, TRAIN[1:])
    with pytest.raises(UserError, match='documents: '):
        train_tokenizer.train_tokenizer(config(), tmp_path)


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_too_large_a_vocabulary_names_the_largest_and_that_one_works(kind):
    with pytest.raises(
        UserError, match='tokenizer.vocab_size=50000 .* at most'
    ) as info:
        train_tokenizer.train_model(TRAIN, kind, 50_000)
    largest = int(str(info.value).split('at most ')[1].split(',')[0])
    assert (
        Tokenizer(train_tokenizer.train_model(TRAIN, kind, largest)).vocab_size
        == largest
    )
    with pytest.raises(UserError, match='at most'):
        train_tokenizer.train_model(TRAIN, kind, largest + 1)


@pytest.mark.parametrize('vocab_size', [-1, 0, 100, 270])
def test_too_small_a_vocabulary_names_the_smallest_and_that_one_works(vocab_size):
    with pytest.raises(UserError, match=f'size={vocab_size} .* at least') as info:
        train_tokenizer.train_model(TRAIN, 'bpe', vocab_size)
    smallest = int(str(info.value).rsplit(' ', 1)[1])
    assert (
        Tokenizer(train_tokenizer.train_model(TRAIN, 'bpe', smallest)).vocab_size
        == smallest
    )


def test_no_documents_and_no_text(tmp_path):
    with pytest.raises(UserError, match='documents is not there: .* `data`'):
        train_tokenizer.train_tokenizer(config(), tmp_path)
    with pytest.raises(UserError, match='the training text is empty'):
        train_tokenizer.train_model([], 'bpe', 300)


def test_no_text_is_skipped():
    """Not beside a NUL or SentencePiece's own marks, nor in the longest line."""
    texts = [
        'cab cab cab\0 cab cab ▁ abba abba ▅ bebed bebed bebed',
        'abcdefgh' * 12_000 + ' gabfeh gabfeh gabfeh gabfeh',
    ]
    tokenizer = Tokenizer(train_tokenizer.train_model(texts, 'bpe', 310))
    for word in ('cab', 'abba', 'bebed', 'gabfeh'):
        assert len(tokenizer.encode(f' {word}')) == 1, word


def test_a_large_file_is_read_at_even_places(tmp_path):
    texts = [f'{i:06d} ' + 'x' * 93 for i in range(5000)]
    write_documents(tmp_path, texts)
    path = tmp_path / 'documents' / 'train.jsonl'
    read = list(train_tokenizer.read_texts(path, 50_000))
    assert 0.9 * 50_000 <= sum(map(len, read)) <= 50_000
    numbers = [int(text[:6]) for text in read]
    assert numbers == sorted(set(numbers))  # nothing twice
    quarters = [sum(i // 1250 == quarter for i in numbers) for quarter in range(4)]
    assert max(quarters) - min(quarters) <= 0.05 * len(numbers)
    assert list(train_tokenizer.read_texts(path, 10**9)) == texts


@pytest.mark.parametrize('lengths', [[50_000] * 12, [600_000], [100, 60_000] * 10])
def test_long_documents_are_read_at_even_places_as_well(tmp_path, lengths):
    # Eight digits say where in the text they stand, so all that is read can be found.
    texts = [''.join(f'{n:07d} ' for n in range(size // 8)) for size in lengths]
    texts = [f'{chr(97 + i)}{text}' for i, text in enumerate(texts)]
    write_documents(tmp_path, texts)
    path = tmp_path / 'documents' / 'train.jsonl'
    read = list(train_tokenizer.read_texts(path, 200_000))
    assert 0.98 * 200_000 <= sum(map(len, read)) <= 200_000
    assert list(train_tokenizer.read_texts(path, 200_000)) == read
    joined, place, counts = ''.join(texts), 0, [0] * 10
    for piece in read:  # in order, and nothing twice
        place = joined.index(piece, place)
        counts[place * 10 // len(joined)] += len(piece)
        place += len(piece)
    assert max(counts) - min(counts) <= 0.05 * 200_000


def test_a_long_document_that_was_passed_over_is_found(tmp_path):
    """A slab's characters are had before the line in it that the next ones are in."""
    texts = ['a' * 700, 'b' * 600_000, 'c' * 10_000]
    write_documents(tmp_path, texts)
    read = ''.join(
        train_tokenizer.read_texts(tmp_path / 'documents' / 'train.jsonl', 100_000)
    )
    assert [round(read.count(c) / 100_000, 2) for c in 'abc'] == [0, 0.98, 0.02]
    path = tmp_path / 'documents' / 'train.jsonl'
    with open(path, 'rb') as file:
        second = len(file.readline())
        for place in (second + 1, second + 300_000, second + 600_000):
            assert train_tokenizer._line_start(file, place) == second
        assert train_tokenizer._line_start(file, second - 1) == 0


def test_wide_characters_of_a_long_document_are_read_once(tmp_path):
    write_documents(tmp_path, ['日' * 100_000])
    path = tmp_path / 'documents' / 'train.jsonl'
    assert sum(map(len, train_tokenizer.read_texts(path, 200_000))) == 100_000
