"""The checker of JSON Schema agrees with a reference, and names the field."""

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.serve import schemas
from gptjax.serve.api_errors import ApiError
from gptjax.serve.schemas import validate

BODIES = (schemas.CHAT, schemas.COMPLETION, schemas.TOKENIZE, schemas.DETOKENIZE)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2000),
    st.sampled_from([0.5, 1.0, -0.5, 1e9, 2**31, 2**32 - 1, 2**32]),
    st.sampled_from([10**400, -(10**400)]),
    st.sampled_from(['', 'a', 'user', 'text', 'auto', 'json_schema', '12', 'x' * 300]),
)
FIELD_VALUES = (None, True, 1, 1.5, -1, 10**400, 'a', [], ['a'], [1], {}, {'7': 1})
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(['role', 'content', 'type', 'text', 'schema', '7', 'name']),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


def fields(schema):
    """Objects with some of the schema's own fields, and now and then another."""
    names = st.sampled_from([*schema['properties'], 'unknown'])
    return st.dictionaries(names, VALUES, max_size=3)


@pytest.mark.parametrize('schema', BODIES, ids=['chat', 'text', 'tokenize', 'back'])
def test_it_agrees_with_the_reference(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    reference = jsonschema.Draft202012Validator(schema)
    need = dict(messages=[dict(role='user', content='a')], prompt='a', tokens=[1])
    need = {name: need[name] for name in schema.get('required', ())}

    @settings(max_examples=200, deadline=None, database=None)
    @given(fields(schema))
    def agree(body):
        for value in (body, {**need, **body}):
            assert fits(value, schema) == reference.is_valid(value)

    agree()
    # And field by field, so that no field goes untried.
    for name in schema['properties']:
        for value in FIELD_VALUES:
            body = {**need, name: value}
            assert fits(body, schema) == reference.is_valid(body), body


def fits(value, schema) -> bool:
    try:
        validate(value, schema)
    except ApiError as error:
        assert error.status == 400 and error.message
        return False
    return True


def test_messages_name_the_place_and_the_fix():
    schema = dict(
        type='object',
        properties=dict(a=dict(type='array', items=dict(type='integer', minimum=2))),
        additionalProperties=False,
    )
    messages = {
        "a[1]='x': use a whole number": dict(a=[2, 'x']),
        'b: this server does not have it: leave it out': dict(b=1),
        "a='aaaa": dict(a='a' * 999),
        'the body is 3: send an object': 3,
    }
    for message, value in messages.items():
        with pytest.raises(ApiError) as error:
            validate(value, schema)
        assert error.value.message.startswith(message)
        assert len(error.value.message) < 200
