"""The server accepts the requests that /openapi.json describes."""

import json

import jsonschema
import pytest
from pydantic import ValidationError

from gptjax.serve import schemas
from gptjax.serve.api_errors import invalid_body

HELLO = dict(role='user', content='a')
REQUIRED = {
    schemas.ChatRequest: dict(messages=[HELLO]),
    schemas.CompletionRequest: dict(prompt='a'),
    schemas.TokenizeRequest: {},
    schemas.DetokenizeRequest: dict(tokens=[1]),
}
VALUES = (
    *(
        None,
        True,
        0,
        1,
        1.0,
        1.5,
        -1,
        2**31,
        2**32,
        10**400,
        '',
        'a',
        'auto',
        'x' * 300,
    ),
    *([], [''], ['a'], [1], [1.0], [[1]], [[]], ['a', 1], ['text'], [None], ['a'] * 70),
    *({}, {'7': 1}, {'7': 1e9}, {'x': 1}, dict(type='text'), dict(include_usage=True)),
    *([HELLO], [dict(HELLO, name=None)], [dict(HELLO, name='b')]),
    *([dict(HELLO, content=[])], [dict(HELLO, role='tool')], [HELLO, 'a']),
    *([dict(HELLO, content=[dict(type=kind, text='a')])] for kind in ('text', 'image')),
    dict(type='json_schema', json_schema=dict(schema={}, strict=True)),
    dict(type='json_schema', json_schema=dict(schema=1)),
)


@pytest.mark.parametrize('model', REQUIRED)
def test_the_published_schema_is_what_is_enforced(model):
    schema = model.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    reference = jsonschema.Draft202012Validator(schema)
    for name in (*schema['properties'], 'unknown'):
        for value in VALUES:
            body = {**REQUIRED[model], name: value}
            content = json.dumps(body).encode()
            try:
                model.model_validate_json(content)
            except ValidationError as error:
                assert not reference.is_valid(body), (body, error)
                wrong = invalid_body(error, content)
                assert wrong.status == 400 and wrong.param.startswith(name), (
                    body,
                    wrong,
                )
                assert wrong.message.startswith(name) and len(wrong.message) < 200
            else:
                assert reference.is_valid(body), body


def test_a_body_with_very_many_wrong_values_is_refused_at_once():
    content = json.dumps(dict.fromkeys(map(str, range(2000)))).encode()
    with pytest.raises(ValidationError) as error:
        schemas.ChatRequest.model_validate_json(content)
    assert '2,001 wrong values' in invalid_body(error.value, content).message
