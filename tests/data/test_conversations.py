"""Conversations from every source: cleaning, splits, and errors of a source."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import conversations, documents, splits
from gptjax.data.sources import open_source

USER, REPLY = (
    dict(role='user', content='where is the cat?'),
    dict(role='assistant', content='it sat down'),
)
CLEAN = ('data.clean',)
SYSTEM = dict(role='system', content='Be kind.')


def write_chat(path, *conversations):
    lines = [
        json.dumps(one if isinstance(one, dict) else dict(messages=one)) + '\n'
        for one in conversations
    ]
    path.write_text(''.join(lines))
    return path


def write(tmp_path, **sources):
    """(views by split, manifest of the sources)."""
    folder = tmp_path / 'made'
    folder.mkdir(exist_ok=True)
    config = common.base()
    config.dialogue = common.dialogue_section(**sources)
    config.data.validation_fraction = 0.3
    manifest = conversations.write_conversations(config, tmp_path, folder)
    views = {
        split: list(storage.read_jsonl(folder / f'{split}.jsonl'))
        for split in ('train', 'validation')
    }
    return views, manifest


def write_own(tmp_path, *lines, **fields):
    """(messages by id, manifest of the source) of a chat file."""
    path = write_chat(tmp_path / 'a.jsonl', *lines)
    source = common.source('chat', str(path), **fields)
    views, manifest = write(tmp_path, own=source)
    every = views['train'] + views['validation']
    return {view['id']: view['messages'] for view in every}, manifest['own']


# ---- Users' files


def test_chat_files_are_read_as_they_are(tmp_path):
    (tmp_path / 'in').mkdir()
    again = [USER, dict(role='user', content='well?'), REPLY, dict(REPLY, content='so')]
    write_chat(tmp_path / 'in' / 'a.jsonl', dict(id='x', messages=[SYSTEM, *again]))
    line = json.dumps(dict(messages=[USER, REPLY])).encode()
    (tmp_path / 'in' / 'b.jsonl.gz').write_bytes(gzip.compress(line))
    views, manifest = write(tmp_path, own=common.source('chat', str(tmp_path / 'in')))
    found = {view['id']: view['messages'] for group in views.values() for view in group}
    assert found == {'own/x': [SYSTEM, *again], 'own/b.jsonl.gz#1': [USER, REPLY]}
    assert manifest['own']['read'] == dict(conversations=2, messages=7)
    assert manifest['own']['files'] == 2 and manifest['own']['skipped'] == {}


def test_users_messages_stay_as_written(tmp_path):
    code = '    @app.route("/")\n<h1>&lt;a  b</h1> \x1b[1m 0123456789 ann@example.org\n'
    messages = [dict(USER, content='ok'), dict(REPLY, content=code)]
    views, manifest = write_own(tmp_path, messages, messages)
    assert list(views.values()) == [messages] * 2 and manifest['skipped'] == {}
    with pytest.raises(
        UserError, match=r"dialogue\.sources\.own\.clean: no step .*'x'"
    ):
        write_own(tmp_path, messages, clean=('x',))


def test_messages_are_cleaned(tmp_path):
    parts = [dict(type='text', text='where is '), dict(type='text', text='the cat?')]
    hidden = dict(role='user', content='write to  ann@example.org \u200b')
    messages = [dict(USER, content=parts), hidden, dict(USER, content=' \u200b\n')]
    half = 'x\ud83d'  # half a surrogate pair
    views, manifest = write_own(
        tmp_path, dict(id=half, messages=[*messages, REPLY]), clean=CLEAN
    )
    masked = dict(role='user', content='write to [email]')
    assert views == {'own/x\ufffd': [USER, masked, REPLY]}
    assert manifest['steps']['mask_emails']['documents_changed'] == 1


def test_the_id_of_a_view_names_its_conversation():
    said = [('ann', 'hi'), ('ben', 'hello')]
    several = conversations.Conversation('x', said, ('ann', 'ben'))
    assert [name for name, _ in conversations.make_views(several)] == ['x@0', 'x@1']
    for name in ('x', 'ann@gmail.com', 'ann@1', 'ann@1@2'):
        for assistants in (('ann',), ('ann', 'ben')):
            conversation = conversations.Conversation(name, said, assistants)
            views = conversations.make_views(conversation)
            assert {conversations.conversation_id(view) for view, _ in views} == {name}


def test_a_conversation_without_replies_is_skipped_and_counted(tmp_path):
    views, manifest = write_own(tmp_path, [USER, REPLY], [USER], [REPLY])
    assert len(views) == 1
    assert manifest['skipped'] == {'no assistant turn': 1, 'one speaker': 1}


def test_replies_of_weight_0_stay_without_loss(tmp_path):
    wrong, right = dict(REPLY, weight=0), dict(REPLY, weight=1)
    lines = [[USER, wrong, USER, right], [USER, dict(REPLY, train=False)]]
    views, manifest = write_own(tmp_path, *lines)
    (messages,) = views.values()
    assert messages == [USER, dict(REPLY, train=False), USER, REPLY]
    assert manifest['skipped'] == {'no assistant turn': 1}
    views = [dict(id=f'{n}', messages=messages) for n in range(20)]
    chosen = conversations.choose_replies(views, 0, 0)
    assert [prompt for _, prompt, _ in chosen] == [messages[:3]] * 20
    source = common.source('chat', str(tmp_path / 'a.jsonl'))
    opened = open_source.open_source('mine', source, tmp_path)
    with pytest.raises(UserError, match='line 1 has a reply of weight 0'):
        list(opened.read(lambda size: None))


@pytest.mark.parametrize(
    'line, words',
    [
        ('{"text": "a"}', ['line 1', 'has no list "messages"']),
        ('{"conversations": []}', ['line 1', '"conversations" is neither a text']),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}',
            ['line 1', 'messages[1]', '"content"'],
        ),
        ('{"messages": [{"content": "a"}]}', ['line 1', 'messages[0]', '"role"']),
        (
            '{"messages": [{"role": "assistant", "content": null, "tool_calls": [0]}]}',
            ['messages[0] has the field "tool_calls"', 'the line out'],
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            ["of the type 'image_url'", 'only text', 'leave out the part'],
        ),
        (
            '\n{"messages": [{"role": "tool", "content": "42"}]}',
            [
                'a.jsonl: line 2',
                "messages[0].role='tool': use system, user, assistant",
                'put what a tool said into a message of the user',
            ],
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            ['a.jsonl', 'none of its 1 conversations', 'assistant'],
        ),
        (None, ['no such file']),
        ('', ['kind=text: conversations are']),
    ],
)
def test_a_source_that_cannot_be_used(tmp_path, line, words):
    path = tmp_path / 'a.jsonl'
    if line:
        path.write_text(line + '\n')
    kind = 'chat' if line != '' else 'text'
    with pytest.raises(UserError) as caught:
        write(tmp_path, mine=common.source(kind, str(path)))
    message = str(caught.value)
    assert message.startswith('dialogue.sources.mine.') and '\n' not in message
    for word in words:
        assert word in message, message
    assert 'jsonl' not in message.replace('.jsonl', '')  # this kind is refused


# ---- Splits


def sums(count):
    for number in range(count):
        question = dict(role='user', content=f'what is {number} plus {number}?')
        answer = dict(role='assistant', content=f'{2 * number}, I think it is')
        yield dict(id=f'c{number}', messages=[question, answer])


def test_what_pretraining_held_out_is_held_out(tmp_path):
    short = [USER | {'content': 'a'}, REPLY | {'content': 'b'}]
    twice = [dict(one, id=one['id'] + 'again') for one in sums(3)]
    lines = *sums(60), dict(id='short', messages=short), *twice
    path = write_chat(tmp_path / 'a.jsonl', *lines)
    source = common.source('chat', str(path), clean=CLEAN)
    config = common.base()
    config.data.validation_fraction = 0.3
    config.data.sources = dict(own=source)
    documents.build_documents(config, tmp_path)
    views, manifest = write(tmp_path, own=source)
    for split in ('train', 'validation'):
        lines = storage.read_jsonl(tmp_path / 'documents' / f'{split}.jsonl')
        pretrained = [line['id'] for line in lines]
        assert [view['id'] for view in views[split]] == pretrained
        assert len(pretrained) > 10
    assert manifest['own']['skipped'] == dict(drop_short=1, drop_duplicates=3)


# ---- Datasets of TFDS


def test_messages_of_a_dataset_are_read_as_those_of_files(monkeypatch):
    columns = dict(
        role=np.array([b'developer', b'user', b'assistant'], object),
        content=np.array([b'Be kind.', b'caf\xe9', b'no'], object),
        weight=np.array([0, 0, 0.0], np.float32),
        name=[b'', b'', b''],
    )
    rows = [('x', 'example 0', columns, '')]
    monkeypatch.setattr(conversations, 'read_feature', lambda *_: iter(rows))
    builder = SimpleNamespace(info=SimpleNamespace(features=dict(messages=columns)))
    source = common.source('tfds', 'mine')
    read = conversations._make_tfds_reader('mine', source, builder)
    ((_, said, *_),) = read(None)
    assert said == [
        *(('system', 'Be kind.'), ('user', 'caf\ufffd')),
        (conversations.UNTRAINED, 'no'),
    ]
    columns['name'] = [b'', b'ann', b'']
    with pytest.raises(UserError, match='messages.1. has the field "name"'):
        list(read(None))


@pytest.mark.slow
def test_each_of_two_people_is_the_assistant_once(tmp_path):
    views, manifest = write(
        tmp_path,
        chitchat=common.source('tfds', 'chitchat', limit=40),
        chatterbot=common.source('tfds', 'chatterbot/english', limit=40),
    )
    every = views['train'] + views['validation']
    found = {view['id']: view['messages'] for view in every}
    assert len(found) == len(every)
    pairs = 0
    for identity, messages in found.items():
        roles = [message['role'] for message in messages]
        assert all(one != other for one, other in zip(roles, roles[1:], strict=False))
        if identity.startswith('chitchat/'):
            name, number = identity.split('@')
            other = found[f'{name}@{1 - int(number)}']
            assert [m['content'] for m in other] == [m['content'] for m in messages]
            assert all(
                {a['role'], b['role']} == {'user', 'assistant'}
                for a, b in zip(messages, other, strict=True)
            )
            # In view 0, the first speaker is the assistant.
            assert (roles[0] == 'assistant') == (number == '0')
            pairs += 1
        else:
            assert roles[0] == 'user' and 'assistant' in roles
    assert pairs > 20
    for split, group in views.items():
        for view in group:
            name = view['id'].partition('/')[2].split('@')[0]
            assert splits.assign_split(name, 0.3) == split
    assert manifest['chitchat']['licence'] == 'MIT'
    assert manifest['chatterbot']['licence']
    assert manifest['chitchat']['skipped']['one speaker'] > 0
