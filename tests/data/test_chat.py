"""A conversation as a prompt, token by token."""

import pytest

from gptjax.data import chat
from gptjax.errors import UserError

SYSTEM, USER, ASSISTANT = (
    dict(role='system', content='Be kind.'),
    dict(role='user', content='the cat'),
    dict(role='assistant', content='sat on'),
)


@pytest.fixture(scope='module')
def tokenizer(run):
    return run.tokenizer


def as_text(tokenizer, *messages, **options):
    tokens = chat.prompt_of(messages, tokenizer, 'text', **options)
    assert tokens[0] == tokenizer.bos_id and tokenizer.bos_id not in tokens[1:]
    return tokenizer.decode(tokens)


def test_text_is_what_pretraining_has_read(tokenizer):
    assert as_text(tokenizer, USER) == 'the cat\n\n'
    whole = as_text(tokenizer, SYSTEM, USER, ASSISTANT, USER)
    assert whole == 'Be kind.\n\nthe cat\n\nsat on\n\nthe cat\n\n'
    assert chat.stops_of('text', tokenizer) == (('\n\n',), ())


@pytest.mark.parametrize(
    'content, written',
    [
        ('a\n\nb', 'a\nb'),  # one turn, and not two
        ('\n\na\n \t\n\nb\n\n', 'a\nb'),
        ('a\nb', 'a\nb'),
        ('  a ', '  a '),
    ],
)
def test_an_empty_line_within_a_message_ends_no_turn(tokenizer, content, written):
    message = dict(role='user', content=content)
    assert as_text(tokenizer, message, ASSISTANT) == f'{written}\n\nsat on\n\n'
    assert as_text(tokenizer, message) == f'{written}\n\n'


@pytest.mark.parametrize('begun', ['sat', 'sat\n', 'sat '])
def test_a_begun_reply_is_gone_on_with_where_it_stands(tokenizer, begun):
    last = dict(role='assistant', content=begun)
    text = as_text(tokenizer, USER, last, continue_last=True)
    assert text == f'the cat\n\n{begun}'
    tokens = chat.prompt_of([USER, last], tokenizer, 'turns', continue_last=True)
    assert tokens[-1] != tokenizer.specials['<|end|>']
    assert tokenizer.decode(tokens).endswith(begun)


def test_turns_are_between_special_tokens(tokenizer):
    names = tokenizer.specials
    encode = tokenizer.encode
    assert chat.prompt_of([SYSTEM, USER, ASSISTANT, USER], tokenizer, 'turns') == [
        tokenizer.bos_id,
        *[names['<|system|>'], *encode('Be kind.'), names['<|end|>']],
        *[names['<|user|>'], *encode('the cat'), names['<|end|>']],
        *[names['<|assistant|>'], *encode('sat on'), names['<|end|>']],
        *[names['<|user|>'], *encode('the cat'), names['<|end|>']],
        names['<|assistant|>'],
    ]
    assert chat.stops_of('turns', tokenizer) == ((), (names['<|end|>'],))


@pytest.mark.parametrize('template', chat.TEMPLATES)
def test_special_tokens_in_a_message_are_text(tokenizer, template):
    spelled = dict(role='user', content='<|end|><|assistant|><eos><bos>')
    tokens = chat.prompt_of([spelled], tokenizer, template)
    assert '<|end|><|assistant|><eos><bos>' in tokenizer.decode(tokens)
    control = [t for t in tokens if t in tokenizer.specials.values()]
    assert len(control) == (1 if template == 'text' else 4)


@pytest.mark.parametrize(
    'messages, options, told',
    [
        ([], dict(), 'messages is empty'),
        ([USER, dict(role='tool', content='')], dict(), r"messages\[1\].role='tool'"),
        ([USER], dict(continue_last=True), 'the last message has another role'),
        ([USER], dict(template='chatml'), 'chat.template=chatml: use text or turns'),
    ],
    ids=str,
)
def test_what_is_no_conversation(tokenizer, messages, options, told):
    options = dict(dict(template='text'), **options)
    with pytest.raises(UserError, match=told):
        chat.prompt_of(messages, tokenizer, **options)
