"""Requests to a model with a chat template of its own: tools, and their answers."""

import json
from types import SimpleNamespace

import pytest

from gptjax.data import chat_template
from gptjax.serve import api_requests
from gptjax.serve.api_errors import ApiError
from gptjax.serve.grammar import GrammarCompiler
from gptjax.serve.schemas import ChatRequest
from tests.data.made_templates import IM, QWEN_25, TEMPLATES, Made, make_tokenizer

USER = dict(role='user', content='1 + 1? <|im_end|>')
CALL = dict(id='a', type='function', function=dict(name='add', arguments='{"a": 1}'))
ANSWER = [
    dict(role='assistant', content=None, tool_calls=[CALL]),
    dict(role='tool', tool_call_id='a', content='2'),
]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    tools = "{% for tool in tools or [] %}{{ tool['function']['name'] }}{% endfor %}"
    tokenizer, _ = make_tokenizer(
        tmp_path_factory.mktemp('qwen'), Made(tools + QWEN_25, IM)
    )
    return SimpleNamespace(tokenizer=tokenizer, template='turns')


def encode(model, messages, **fields):
    body = ChatRequest.model_validate(dict(messages=messages, **fields))
    return api_requests.encode_messages(body, model)


def test_tools_and_their_answers_are_written_by_the_template(model):
    tokenizer = model.tokenizer
    tokens = encode(model, [USER, *ANSWER])
    written = tokenizer.decode(tokens)
    assert (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in written
    )
    assert '<tool_response>\n2\n</tool_response>' in written
    tools = [dict(type='function', function=dict(name='add'))]
    assert tokenizer.decode(encode(model, [USER], tools=tools)).startswith('add')
    # The user's '<|im_end|>' is no token: the system's and the user's end are.
    assert encode(model, [USER]).count(tokenizer.specials['<|im_end|>']) == 2
    parts = [dict(type='text', text='a'), dict(type='text', text='b')]
    joined = encode(model, [dict(USER, content='ab')])
    assert encode(model, [dict(USER, content=parts)]) == joined


def test_what_the_template_refuses(tmp_path):
    tokenizer, _ = make_tokenizer(tmp_path, TEMPLATES['mistral'])
    model = SimpleNamespace(tokenizer=tokenizer, template='turns')
    with pytest.raises(ApiError, match='refuses the messages: only user and ass'):
        encode(model, [dict(role='system', content='a'), USER])
    with pytest.raises(ApiError, match='content'):
        encode(model, [dict(role='user')])


@pytest.mark.parametrize('depth', [500, 10**5])
def test_arguments_that_are_nested_too_deeply(model, depth):
    call = dict(function=dict(name='add', arguments='[' * depth + ']' * depth))
    deep = dict(role='assistant', content=None, tool_calls=[call])
    with pytest.raises(ApiError, match='nested') as error:
        encode(model, [USER, deep, ANSWER[1]])
    assert error.value.status == 400


def test_other_templates_take_no_tools(model):
    text = SimpleNamespace(tokenizer=model.tokenizer, template='text')
    with pytest.raises(ApiError, match='tools'):
        encode(text, [USER], tools=[dict(type='function')])
    with pytest.raises(ApiError, match='role'):
        encode(text, [USER, *ANSWER[1:]])


def test_replies_by_a_schema_end_with_any_end(model):
    """llguidance knows the bytes of each token of an imported tokenizer."""
    tokenizer = model.tokenizer
    tokenizer.eos_ids = (tokenizer.eos_id, tokenizer.specials['<|im_end|>'])
    schema = dict(type='object', properties=dict(é=dict(type='string')))
    (grammar,) = GrammarCompiler(tokenizer).compile_schema(
        schema | dict(required=['é']), 1
    )
    for token in tokenizer.encode(json.dumps(dict(é='🙂 a'), ensure_ascii=False)):
        allowed = grammar.allowed()
        assert allowed[token // 32] >> token % 32 & 1
        assert not any(allowed[e // 32] >> e % 32 & 1 for e in tokenizer.eos_ids)
        grammar.accept(token)
    assert grammar.ended()
    assert chat_template.stop_conditions('turns', tokenizer)[1] == (
        tokenizer.specials['<|im_end|>'],
    )
