import functools

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gptjax.core.console import UserError
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model

TEXTS = [
    'Hello there, how are you?\n\nFine, thanks. And you?\tHm ☕',
    "I don't know ▁ what <|user|> said.\n<bos><pad><0x41> ▅▅ said",
    '日本語 and ünïcode, e\u0301, 👩‍👩‍👧 are here.\r\n  two  spaces  ',
] * 5

# Texts that break tokenizers
AWKWARD = ['▁', '▅', '\0', '\t', '\n', ' ', '  ', 'e\u0301', '\u0301', '\ufeff']
AWKWARD += ['<|user|>', '<|end|>', '<bos>', '<pad>', '<unk>', '<s>', '<0x41>', '\ufffd']
TEXT = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text())).map(''.join)


@functools.cache
def tokenizer(kind):
    return Tokenizer(train_model(TEXTS, kind, 310))


KINDS = pytest.mark.parametrize('kind', ['bpe', 'unigram'])


@KINDS
@given(text=TEXT)
def test_any_text_is_encoded_decoded_and_streamed(kind, text):
    t = tokenizer(kind)
    tokens = t.encode(text)
    assert t.decode(tokens) == text
    assert b''.join(map(t.bytes_of, tokens)) == text.encode()
    assert all(0 <= token < t.vocab_size for token in tokens)
    assert not set(tokens) & set(t.specials.values())
    stream, streamed = t.stream(), ''
    for token in tokens:
        streamed += stream.push(token)
        assert text.startswith(streamed)
    assert stream.finish() == ''


@KINDS
@given(data=st.data())
def test_stream_is_decode_of_any_tokens(kind, data):
    t = tokenizer(kind)
    tokens = data.draw(st.lists(st.integers(0, t.vocab_size - 1)))
    stream = t.stream()
    parts = [stream.push(token) for token in tokens] + [stream.finish()]
    assert ''.join(parts) == t.decode(tokens)


def test_a_stream_can_name_special_tokens():
    t = tokenizer('bpe')
    first_byte = t.encode('🜁')[0]
    tokens = [*t.encode('a'), t.specials['<|user|>'], first_byte, t.pad_id]
    stream = t.stream(special_tokens=True)
    texts = [stream.push(token) for token in tokens]
    assert texts == ['a', '<|user|>', '', '\ufffd<pad>']
    assert ''.join(map(t.stream().push, tokens)) == 'a'


def test_stream_holds_a_character_back_until_its_last_byte():
    t = tokenizer('bpe')
    stream = t.stream()
    tokens = t.encode('🜁')  # not in the vocabulary: four bytes
    assert [stream.push(token) for token in tokens] == ['', '', '', '🜁']
    assert [stream.push(token) for token in tokens[:2]] == ['', '']
    assert stream.finish() == '\ufffd'


def test_specials_decode_to_nothing():
    t = tokenizer('bpe')
    assert t.specials.keys() == {
        *('<pad>', '<bos>', '<eos>'),
        *('<|system|>', '<|user|>', '<|assistant|>', '<|end|>'),
    }
    assert len(set(t.specials.values())) == 7
    assert (t.pad_id, t.bos_id, t.eos_id) == (0, 1, 2)
    assert t.decode([t.bos_id, *t.encode('a'), t.specials['<|end|>']]) == 'a'
    assert t.decode(t.encode('a\ud800b')) == 'a?b'  # a lone surrogate


@given(texts=st.lists(TEXT))
def test_a_batch_is_each_text_alone(texts):
    t = tokenizer('bpe')
    alone = [t.encode(text) for text in texts]
    assert t.encode_batch(texts) == alone
    assert [a.tolist() for a in t.encode_arrays(texts, num_threads=3)] == alone


def test_newlines_tabs_and_words_are_tokens():
    texts = ['so it goes.\n\nwell, so it goes.\n\n\tand so on'] * 20
    t = Tokenizer(train_model(texts, 'bpe', 294))
    vocabulary = {t.bytes_of(token) for token in range(t.vocab_size)}
    assert {b'.\n\n', b' so', b'\t'} <= vocabulary


@KINDS
@pytest.mark.parametrize('text', ['日本語' * 3000 + ' ', 'nospace\n' * 100])
def test_a_space_is_kept_where_it_is_rare(kind, text):
    with pytest.raises(UserError, match='at most') as info:
        train_model([text], kind, 1000)
    largest = int(str(info.value).split('at most ')[1].split(',')[0])
    t = Tokenizer(train_model([text], kind, largest))
    for other in (' ', 'a b', '▁ ▁', text):
        assert t.decode(t.encode(other)) == other


def test_load(tmp_path):
    path = tmp_path / 'tokenizer.model'
    with pytest.raises(UserError, match='no such file: make it with the stage'):
        Tokenizer.load(path)
    path.write_bytes(b'not a model')
    with pytest.raises(UserError, match='not a tokenizer of this project'):
        Tokenizer.load(path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / 'other'),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match='no token <pad>'):
        Tokenizer.load(tmp_path / 'other.model')
    path.write_bytes(train_model(TEXTS, 'bpe', 310))
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == tokenizer('bpe').fingerprint
    assert Tokenizer(train_model(TEXTS, 'bpe', 330)).fingerprint != loaded.fingerprint
