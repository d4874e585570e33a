"""Replies sampled with a grammar fit its schema."""

import json

import jsonschema
import numpy as np
import pytest

from gptjax.serve.api_errors import ApiError
from gptjax.serve.grammar import GrammarCompiler, JsonGrammar, schema_of_format
from gptjax.serve.schemas import ResponseFormat
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests.servers import TEXTS

SCHEMAS = (
    dict(type='integer', minimum=-3, maximum=1200),
    dict(enum=['yes', 'no', 'čaj', None]),
    dict(type='string', pattern='^[a-f]{2,5}$'),
    dict(type='array', items=dict(type='boolean'), minItems=1, maxItems=3),
    dict(
        type='object',
        properties=dict(
            name=dict(type='string', maxLength=6),
            kind={'$ref': '#/$defs/kind'},
            more=dict(anyOf=[dict(type='null'), dict(type='number')]),
        ),
        required=['name', 'kind'],
        additionalProperties=False,
        **{'$defs': dict(kind=dict(enum=['a', 'b']))},
    ),
)


@pytest.fixture(scope='module')
def tokenizer():
    return Tokenizer(train_model(TEXTS, 'bpe', 400))


@pytest.fixture(scope='module')
def grammars(tokenizer):
    return GrammarCompiler(tokenizer)


def draw(grammar, tokenizer, rng, most=300):
    """Samples random tokens among the allowed ones until the value ends."""
    tokens = []
    while not grammar.ended():
        mask = grammar.allowed()
        assert mask.dtype == np.uint32 and mask.shape == (-(-400 // 32),)
        bits = np.unpackbits(mask.view(np.uint8), bitorder='little')
        allowed = np.flatnonzero(bits)
        assert allowed.size and allowed[-1] < 400
        token = int(rng.choice(allowed))
        if token == tokenizer.eos_id:
            break
        assert tokenizer.bytes_of(token)  # no other special token is allowed
        grammar.accept(token)
        tokens.append(token)
        assert len(tokens) < most
    return tokenizer.decode(tokens)


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: str(schema)[:20])
def test_replies_fit_their_schema(grammars, tokenizer, schema):
    rng = np.random.default_rng(0)
    texts = [draw(g, tokenizer, rng) for g in grammars.compile_schema(schema, 12)]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
        assert '\n' not in text
    assert len(set(texts)) > 1


def test_copies_do_not_share_their_place(grammars, tokenizer):
    one, two = grammars.compile_schema(dict(enum=['yes', 'no']), 2)
    before = two.allowed().copy()
    draw(one, tokenizer, np.random.default_rng(1))
    assert one.ended() and not two.ended()
    assert np.array_equal(two.allowed(), before)


BAD = {
    'Invalid type: strange': dict(type='strange'),
    'properties must be an object': dict(type='object', properties=3),
    'regex parse error': dict(type='string', pattern='(('),
    'does not exist': {'$ref': '#/nothing'},
    'does not fetch': {'$ref': 'http://localhost/schema'},
    'greater than maximum': dict(type='integer', minimum=3, maximum=2),
    'Unimplemented keys: ["not"]': {'not': dict(type='string')},
    'not JSON compliant': dict(maximum=float('inf')),
}


@pytest.mark.parametrize('reason', BAD)
def test_bad_schemas_are_refused(grammars, reason):
    with pytest.raises(ApiError) as error:
        grammars.compile_schema(BAD[reason], 1)
    assert error.value.status == 400 and reason in error.value.message
    assert error.value.param == 'response_format.json_schema.schema'


def test_a_grammar_that_fails_ends_its_reply_and_nothing_else(tokenizer):
    class Broken:
        def is_error(self):
            return True

        def get_error(self):
            return 'too\ncomplex'

        def is_stopped(self):
            return True

    grammar = JsonGrammar(Broken(), 400, tokenizer.eos_ids)
    bits = np.unpackbits(grammar.allowed().view(np.uint8), bitorder='little')
    assert np.flatnonzero(bits).tolist() == [tokenizer.eos_id]
    assert grammar.ended() and grammar.failure == 'too complex'


def test_a_token_that_is_not_allowed_is_a_failure(grammars):
    [grammar] = grammars.compile_schema(dict(enum=['yes']), 1)
    assert grammar.failure is None
    grammar.accept(5)
    assert grammar.failure and grammar.ended()


def test_schemas_of_formats():
    def schema_of(**fields):
        return schema_of_format(ResponseFormat(**fields))

    given = dict(schema=dict(type='null'))
    assert schema_of_format(None) is schema_of(type='text') is None
    assert schema_of(type='json_object') == dict(type='object')
    assert schema_of(type='json_schema', json_schema=given) == dict(type='null')
    for wrong in (dict(type='json_schema'), dict(type='text', json_schema=given)):
        with pytest.raises(ApiError):
            schema_of(**wrong)
