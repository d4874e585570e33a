"""Tokens in the API: parts of characters, special tokens, two tokens of one text."""

import pytest

from gptjax.infer.request import Token
from gptjax.serve.responses import describe_chat_token, describe_text_tokens, token_text
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model


@pytest.fixture(scope='module')
def tokenizer():
    return Tokenizer(train_model(['a plain text of few words'] * 9, 'bpe', 285))


def test_spelling(tokenizer):
    for name, token in tokenizer.specials.items():
        assert token_text(tokenizer, token) == name
    cat = tokenizer.encode('🐈')
    assert len(cat) == 4
    assert [token_text(tokenizer, token) for token in cat] == [
        'bytes:\\xf0', 'bytes:\\x9f', 'bytes:\\x90', 'bytes:\\x88'
    ]  # fmt: skip
    word = tokenizer.encode('a plain')
    assert ''.join(token_text(tokenizer, token) for token in word) == 'a plain'


def test_chat_entries(tokenizer):
    cat = tokenizer.encode('🐈')[0]
    token = Token(cat, -0.5, ((tokenizer.eos_id, -0.25), (cat, -0.5)))
    assert describe_chat_token(tokenizer, token).model_dump(exclude_unset=True) == dict(
        token='bytes:\\xf0',
        logprob=-0.5,
        bytes=[0xF0],
        top_logprobs=[
            dict(token='<eos>', logprob=-0.25, bytes=None),
            dict(token='bytes:\\xf0', logprob=-0.5, bytes=[0xF0]),
        ],
    )


def test_completion_entries(tokenizer):
    """Offsets count characters; an incomplete character does not count yet."""
    ids = [tokenizer.bos_id, *tokenizer.encode('🐈a')]
    tokens = [
        Token(ids[0]),
        *(Token(token, -1.0, ((ids[1], -0.5),)) for token in ids[1:]),
    ]
    entries = describe_text_tokens(tokenizer, tuple(tokens), 10)
    assert entries.text_offset == [10, 10, 10, 10, 10, 11]
    assert entries.token_logprobs == [None, *[-1.0] * 5]
    assert entries.top_logprobs[0] is None
    assert entries.top_logprobs[2] == {'bytes:\\xf0': -0.5, 'bytes:\\x9f': -1.0}


def test_of_two_tokens_with_one_text_the_likelier_is_shown(tokenizer):
    [letter] = tokenizer.encode('a')
    byte = next(
        token
        for token in range(tokenizer.vocab_size)
        if token != letter and tokenizer.bytes_of(token) == b'a'
    )
    token = Token(byte, -2.0, ((letter, -0.5),))
    assert describe_text_tokens(tokenizer, (token,)).top_logprobs == [{'a': -0.5}]


def test_what_is_no_json_number_is_very_small(tokenizer):
    token = Token(5, float('-inf'), ((6, float('-inf')),))
    assert describe_chat_token(tokenizer, token).logprob == -9999.0
    assert describe_text_tokens(tokenizer, (token,)).token_logprobs == [-9999.0]
