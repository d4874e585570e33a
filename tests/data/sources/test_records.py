"""Messages, which every reader of users' files and requests reads alike."""

import gzip
import json
from types import SimpleNamespace

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.core.files import list_files
from gptjax.data.preferences import read_preferences
from gptjax.data.sources import file_source
from gptjax.data.sources.records import parse_message
from gptjax.eval.tasks.examples import read_example_file
from gptjax.post.problems.problem_sources import read_problems
from gptjax.serve import api_requests
from gptjax.serve.schemas import ChatRequest

USER = dict(role='user', content='hi')


def read_chat_file(path):
    source = common.source('chat', str(path))
    files = list_files(str(path), ('.jsonl',), 'mine')
    ((_, _, messages, _),) = file_source.read_messages('mine', source, files, print)
    return messages


def read_preference_file(path):
    ((preference,), _) = read_preferences(str(path), 'mine')
    return preference.prompt


def read_problem_file(path):
    ((problem,), _) = read_problems(path)
    return list(problem.messages)


def read_examples(path):
    (example,) = read_example_file(path)
    return example.prompt


READERS = {
    read_chat_file: 'messages',
    read_preference_file: 'prompt',
    read_problem_file: 'messages',
    read_examples: 'prompt',
}
OTHERS = dict(chosen='a', rejected='b', answer='c', references=['d'])


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__)
def read(request, tmp_path):
    """Reads messages by one of the READERS; `fields` are further ones of the record."""

    def read(messages, ending='.jsonl', **fields):
        record = {READERS[request.param]: messages, **OTHERS, **fields}
        content = b'\xef\xbb\xbf' + json.dumps(record).encode() + b'\r\n'
        path = tmp_path / f'a{ending}'
        path.write_bytes(gzip.compress(content) if ending == '.jsonl.gz' else content)
        return request.param(path)

    return read


def parts(*texts):
    return [dict(type='text', text=text) for text in texts]


@pytest.mark.parametrize('ending', ['.jsonl', '.jsonl.gz'])
def test_all_readers_read_the_same(read, ending):
    developer = dict(role='developer', content='Be kind.', name=None, tool_calls=[])
    user = dict(role='user', content=parts('a ', 'b\ud83d'), weight=0, more=1)
    assert read([developer, user], ending) == [
        dict(role='system', content='Be kind.'),
        dict(role='user', content='a b\ufffd'),
    ]


@pytest.mark.parametrize(
    ('messages', 'words'),
    [
        ([], 'has no list "'),
        ({'role': 'user'}, 'but {"role": "user"}'),
        ([dict(USER, name='ann')], '[0] has the field "name", which is not supported'),
        ([dict(USER, images=['a.png'])], '[0] has the field "images"'),
        ([USER, dict(role='assistant', tool_calls=[{}])], '[1] has the field "tool_ca'),
        ([dict(role='tool', content='4', tool_call_id='x')], "[0].role='tool': use s"),
        ([dict(USER, content=[dict(type='image_url')])], "of the type 'image_url'"),
        ([dict(USER, content=None)], 'no "content" that is a string'),
        ([dict(USER, weight=1)], '[0] of the role user has weight 1'),
        ([dict(USER, train=True)], '[0] of the role user has weight 1 or train true'),
        ([dict(role='assistant', content='', weight=0.5)], '[0] has the weight 0.5: u'),
        ([dict(role='assistant', content='', train='no')], 'has the weight "no": use'),
    ],
)
def test_all_readers_refuse_the_same(read, messages, words):
    with pytest.raises(UserError) as caught:
        read(messages)
    message = str(caught.value)
    assert words in message and ': line 1' in message and '\n' not in message


@pytest.mark.parametrize(
    ('read', 'text'),
    [
        *((reader, json.dumps([USER])) for reader in [*READERS][:3]),
        (read_chat_file, 'hi'),
        (read_problem_file, 'hi'),  # of a preference, 'hi' is the prompt
    ],
    indirect=['read'],
)
def test_messages_that_are_a_text(read, text):
    with pytest.raises(UserError, match='but a text: write the list without quotes'):
        read(text)


@pytest.mark.parametrize('name', ['tools', 'system', 'weight'])
def test_fields_of_a_record_are_not_ignored(read, name):
    assert read([USER], **{name: None}) == [USER]
    with pytest.raises(UserError, match=f'line 1 has the field "{name}"'):
        read([USER], **{name: 'Be kind.'})


def test_a_request_is_read_as_files_are(monkeypatch):
    said = []
    encode = lambda messages, *_: said.extend(messages)
    monkeypatch.setattr(api_requests.chat_template, 'encode_prompt', encode)
    developer = dict(role='developer', content='a')
    body = ChatRequest(messages=[developer, dict(USER, content=parts('b', 'c'))])
    model = SimpleNamespace(tokenizer=None, template='text')
    api_requests.encode_messages(body, model)
    assert said == [dict(role='system', content='a'), dict(role='user', content='bc')]


@pytest.mark.parametrize('field', [dict(weight=0), dict(train=False), dict(weight=0.0)])
def test_a_reply_of_weight_0_gives_no_loss(field):
    reply = dict(role='assistant', content='wrong')
    assert parse_message(dict(reply, **field), 'here') == dict(reply, train=False)
    assert parse_message(dict(reply, weight=1, train=True), 'here') == reply
