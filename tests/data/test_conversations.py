"""Conversations from every source, cleaned, split, and how a source can be wrong."""

import gzip
import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.data import conversations, documents

USER, REPLY = (
    dict(role='user', content='where is the cat?'),
    dict(role='assistant', content='it sat down'),
)
SYSTEM = dict(role='system', content='Be kind.')


def write_chat(path, *conversations):
    lines = [
        json.dumps(one if isinstance(one, dict) else dict(messages=one)) + '\n'
        for one in conversations
    ]
    path.write_text(''.join(lines))
    return path


def config_of(**sources):
    config = common.base()
    config.dialogue = common.dialogue_section(**sources)
    config.data.validation_fraction = 0.3
    return config


def written(tmp_path, **sources):
    """(views by split, manifest of the sources)."""
    folder = tmp_path / 'made'
    folder.mkdir()
    manifest = conversations.write_conversations(config_of(**sources), tmp_path, folder)
    views = {}
    for split in ('train', 'validation'):
        with open(folder / f'{split}.jsonl', encoding='utf-8') as lines:
            views[split] = [json.loads(line) for line in lines]
    return views, manifest


def refuses(words, tmp_path, source):
    with pytest.raises(UserError) as caught:
        written(tmp_path, mine=source)
    message = str(caught.value)
    assert message.startswith('dialogue.sources.mine.') and '\n' not in message
    for word in words:
        assert word in message, message
    assert 'jsonl' not in message.replace('.jsonl', '')  # a kind that it refuses


# ---- users' files


def test_chat_files_are_read_as_they_are(tmp_path):
    (tmp_path / 'in').mkdir()
    again = [USER, dict(role='user', content='well?'), REPLY, dict(REPLY, content='so')]
    write_chat(tmp_path / 'in' / 'a.jsonl', dict(id='x', messages=[SYSTEM, *again]))
    line = json.dumps(dict(messages=[USER, REPLY])).encode()
    (tmp_path / 'in' / 'b.jsonl.gz').write_bytes(gzip.compress(line))
    views, manifest = written(tmp_path, own=common.source('chat', str(tmp_path / 'in')))
    found = {view['id']: view['messages'] for group in views.values() for view in group}
    assert found == {'own/x': [SYSTEM, *again], 'own/b.jsonl.gz#1': [USER, REPLY]}
    assert manifest['own']['read'] == dict(conversations=2, messages=7)
    assert manifest['own']['files'] == 2 and manifest['own']['skipped'] == {}


def test_half_a_surrogate_pair_in_an_id_becomes_a_replacement_character(tmp_path):
    path = tmp_path / 'a.jsonl'
    write_chat(path, dict(id='x\ud83d', messages=[USER, REPLY]))
    views, _ = written(tmp_path, own=common.source('chat', str(path)))
    assert [view['id'] for group in views.values() for view in group] == ['own/x\ufffd']


def test_parts_of_text_are_joined(tmp_path):
    parts = [dict(type='text', text='where is '), dict(type='text', text='the cat?')]
    path = write_chat(tmp_path / 'a.jsonl', [dict(USER, content=parts), REPLY])
    views, _ = written(tmp_path, own=common.source('chat', str(path)))
    assert [v['messages'] for group in views.values() for v in group] == [[USER, REPLY]]


def test_an_id_of_a_view_tells_its_conversation():
    said = [('ann', 'hi'), ('ben', 'hello')]
    several = conversations.Conversation('x', said, ('ann', 'ben'))
    assert [name for name, _ in conversations.make_views(several)] == ['x@0', 'x@1']
    for name in ('x', 'ann@gmail.com', 'ann@1', 'ann@1@2'):
        for assistants in (('ann',), ('ann', 'ben')):
            its = conversations.Conversation(name, said, assistants)
            found = {
                conversations.conversation_id(view)
                for view, _ in conversations.make_views(its)
            }
            assert found == {name}


def test_an_unknown_role_names_file_and_line(tmp_path):
    tool = dict(role='tool', content='42')
    path = write_chat(tmp_path / 'a.jsonl', [USER, REPLY], [USER, tool, REPLY])
    words = ['a.jsonl: line 2', "messages[1].role='tool'", 'system, user, assistant']
    words.append('put what a tool said into a message of the user')
    refuses(words, tmp_path, common.source('chat', str(path)))


def test_a_conversation_without_replies_is_a_counted_skip(tmp_path):
    path = write_chat(tmp_path / 'a.jsonl', [USER, REPLY], [USER], [REPLY])
    views, manifest = written(tmp_path, own=common.source('chat', str(path)))
    assert sum(map(len, views.values())) == 1
    assert manifest['own']['skipped'] == {'no assistant turn': 1, 'one speaker': 1}


def test_a_file_without_any_reply_is_refused(tmp_path):
    nothing = write_chat(tmp_path / 'b.jsonl', [USER], [USER, USER])
    refuses(
        ['b.jsonl', 'none of its 2 conversations', 'assistant'],
        tmp_path,
        common.source('chat', str(nothing)),
    )


@pytest.mark.parametrize(
    'line, words',
    [
        ('{"text": "a"}', ['line 1', 'has no list "messages"']),
        ('{"conversations": []}', ["it has 'conversations'", 'convert', '"role"']),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}',
            ['line 1', 'messages[1]', '"content"'],
        ),
        ('{"messages": [{"content": "a"}]}', ['line 1', 'messages[0]', '"role"']),
        (
            '{"messages": [{"role": "assistant", "content": null, "tool_calls": []}]}',
            ['messages[0] calls a tool', 'leave this line out'],
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            ["of the type 'image_url'", 'only text', 'leave out the part'],
        ),
    ],
)
def test_a_line_that_is_no_conversation(tmp_path, line, words):
    (tmp_path / 'a.jsonl').write_text(line + '\n')
    refuses(words, tmp_path, common.source('chat', str(tmp_path / 'a.jsonl')))


@pytest.mark.parametrize(
    'kind, pattern',
    [('text', 'kind=text: conversations are'), ('chat', 'no such file')],
)
def test_sources_that_are_none(tmp_path, kind, pattern):
    refuses([pattern], tmp_path, common.source(kind, 'nowhere.txt'))


# ---- cleaning and splits


def test_every_message_is_masked_and_empty_ones_go(tmp_path):
    hidden = dict(role='user', content='write to  ann@example.org \u200b')
    path = write_chat(
        tmp_path / 'a.jsonl', [hidden, dict(USER, content=' \u200b\n'), REPLY]
    )
    views, manifest = written(tmp_path, own=common.source('chat', str(path)))
    (view,) = views['train'] + views['validation']
    assert view['messages'] == [dict(role='user', content='write to [email]'), REPLY]
    assert manifest['own']['steps']['mask_emails']['documents_changed'] == 1


def sums(count):
    for number in range(count):
        question = dict(role='user', content=f'what is {number} plus {number}?')
        answer = dict(role='assistant', content=f'{2 * number}, I think it is')
        yield dict(id=f'c{number}', messages=[question, answer])


def test_what_pretraining_held_out_is_held_out(tmp_path):
    short = dict(
        id='short', messages=[USER | {'content': 'a'}, REPLY | {'content': 'b'}]
    )
    twice = [dict(its, id=its['id'] + 'again') for its in sums(3)]
    path = write_chat(tmp_path / 'a.jsonl', *sums(60), short, *twice)
    config = config_of(own=common.source('chat', str(path)))
    config.data.sources = dict(own=common.source('chat', str(path)))
    documents.build_documents(config, tmp_path)
    views, manifest = written(tmp_path, own=common.source('chat', str(path)))
    for split in ('train', 'validation'):
        with open(tmp_path / 'documents' / f'{split}.jsonl') as lines:
            pretrained = [json.loads(line)['id'] for line in lines]
        assert [view['id'] for view in views[split]] == pretrained
        assert len(pretrained) > 10
    assert manifest['own']['skipped'] == dict(drop_short=1, drop_duplicates=3)


# ---- our own datasets


@pytest.mark.slow
def test_two_people_are_the_assistant_in_turn(tmp_path):
    views, manifest = written(
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
            # Who speaks first is the assistant of the view 0.
            assert (roles[0] == 'assistant') == (number == '0')
            pairs += 1
        else:
            assert roles[0] == 'user' and 'assistant' in roles
    assert pairs > 20
    for split, its in views.items():
        for view in its:
            name = view['id'].partition('/')[2].split('@')[0]
            assert documents.assign_split(name, 0.3) == split
    assert (
        manifest['chitchat']['licence'] == 'MIT' and manifest['chatterbot']['licence']
    )
    assert manifest['chitchat']['skipped']['one speaker'] > 0
