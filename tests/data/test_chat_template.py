"""A conversation as a prompt and as training tokens, token by token."""

import random

import pytest

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.data.chat_template import encode_conversation, encode_prompt

SYSTEM, USER, ASSISTANT = (
    dict(role='system', content='Be kind.'),
    dict(role='user', content='the cat'),
    dict(role='assistant', content='sat on'),
)
TEMPLATE = pytest.mark.parametrize('template', chat_template.TEMPLATES)


@pytest.fixture(scope='module')
def tokenizer(run):
    return run.tokenizer


def as_text(tokenizer, *messages, **options):
    tokens = encode_prompt(messages, tokenizer, 'text', **options)
    assert tokens[0] == tokenizer.bos_id and tokenizer.bos_id not in tokens[1:]
    return tokenizer.decode(tokens)


def test_text_separates_turns_by_empty_lines(tokenizer):
    assert as_text(tokenizer, USER) == 'the cat\n\n'
    whole = as_text(tokenizer, SYSTEM, USER, ASSISTANT, USER)
    assert whole == 'Be kind.\n\nthe cat\n\nsat on\n\nthe cat\n\n'
    assert chat_template.stop_conditions('text', tokenizer) == (('\n\n',), ())
    tokens, trained = encode_conversation([USER, ASSISTANT], tokenizer, 'text')
    said = [
        token for token, is_trained in zip(tokens, trained, strict=True) if is_trained
    ]
    assert tokenizer.decode(said) == 'sat on\n\n'


def test_turns_are_between_special_tokens(tokenizer):
    special, encode = tokenizer.specials, tokenizer.encode
    messages = [SYSTEM, USER, ASSISTANT, USER]
    tokens, trained = encode_conversation(messages, tokenizer, 'turns')
    parts = [
        ([tokenizer.bos_id], 0),
        ([special['<|system|>'], *encode('Be kind.'), special['<|end|>']], 0),
        ([special['<|user|>'], *encode('the cat'), special['<|end|>']], 0),
        ([special['<|assistant|>']], 0),
        ([*encode('sat on'), special['<|end|>']], 1),
        ([special['<|user|>'], *encode('the cat'), special['<|end|>']], 0),
    ]
    assert tokens == [token for part, _ in parts for token in part]
    assert trained == [bool(is_trained) for part, is_trained in parts for _ in part]
    messages[2] = dict(ASSISTANT, train=False)
    without_loss = encode_conversation(messages, tokenizer, 'turns')
    assert without_loss == (tokens, [False] * len(tokens))
    prompt = encode_prompt(messages, tokenizer, 'turns')
    assert prompt == [*tokens, special['<|assistant|>']]
    stops = chat_template.stop_conditions('turns', tokenizer)
    assert stops == ((), (special['<|end|>'],))


@pytest.mark.parametrize(
    'content, written',
    [
        ('a\n\nb', 'a\nb'),
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
def test_a_begun_reply_is_continued(tokenizer, begun):
    last = dict(role='assistant', content=begun)
    text = as_text(tokenizer, USER, last, continue_last=True)
    assert text == f'the cat\n\n{begun}'
    tokens = encode_prompt([USER, last], tokenizer, 'turns', continue_last=True)
    assert tokens[-1] != tokenizer.specials['<|end|>']
    assert tokenizer.decode(tokens).endswith(begun)


@pytest.mark.parametrize(
    'messages, options, pattern',
    [
        ([], dict(), 'messages is empty'),
        ([USER, dict(role='tool', content='')], dict(), r"messages\[1\].role='tool'"),
        ([USER], dict(continue_last=True), 'the last message has another role'),
        ([USER], dict(template='chatml'), 'chat.template=chatml: use text or turns'),
    ],
    ids=str,
)
def test_errors(tokenizer, messages, options, pattern):
    options = dict(dict(template='text'), **options)
    with pytest.raises(UserError, match=pattern):
        encode_prompt(messages, tokenizer, **options)


PARTS = ('the cat', '\n', '\n\n', ' ', '<|end|>', '<bos>', '<|user|>', 'é', '▁', '.')


def conversations(count=40):
    """Random conversations: repeated roles, unusual texts, empty texts."""
    random_ = random.Random(0)
    for _ in range(count):
        yield [
            dict(
                role=random_.choice(chat_template.ROLES),
                content=''.join(random_.choices(PARTS, k=random_.randrange(5))),
            )
            for _ in range(random_.randrange(1, 7))
        ]


@TEMPLATE
def test_a_prompt_is_what_training_had_before_each_reply(tokenizer, template):
    replies = 0
    for messages in conversations():
        tokens, trained = encode_conversation(messages, tokenizer, template)
        assert len(tokens) == len(trained) and tokens[0] == tokenizer.bos_id
        # The text of a message never becomes a special token.
        special = [t for t in tokens if t in tokenizer.specials.values()]
        assert len(special) == (1 + 2 * len(messages) if template == 'turns' else 1)
        expected = [False] * len(tokens)
        for place, message in enumerate(messages):
            if message['role'] != 'assistant':
                continue
            begin = 1
            if place:
                prompt = encode_prompt(messages[:place], tokenizer, template)
                assert tokens[: len(prompt)] == prompt
                begin = len(prompt)
            elif template == 'turns':
                begin = 2
            until, _ = encode_conversation(messages[: place + 1], tokenizer, template)
            expected[begin : len(until)] = [True] * (len(until) - begin)
            replies += 1
        assert trained == expected
    assert replies > 20


@TEMPLATE
def test_an_unfinished_reply_has_no_end(tokenizer, template):
    messages = [USER, ASSISTANT]
    whole, _ = encode_conversation(messages, tokenizer, template)
    cut, trained = encode_conversation(messages, tokenizer, template, unfinished=True)
    assert tokenizer.decode(cut).endswith('sat on')
    assert tokenizer.specials['<|end|>'] not in cut[-1:] and trained[-1]
    assert cut == whole[: len(cut)] and len(cut) < len(whole)
    assert cut == encode_prompt(messages, tokenizer, template, continue_last=True)


def test_consecutive_messages_of_a_speaker_are_one_turn():
    sent = [('a', ' hi '), ('a', 'there'), ('b', ' '), ('a', '!'), ('b', 'yo')]
    turns = chat_template.merge_turns(sent)
    assert turns == (('a', 'hi\nthere\n!'), ('b', 'yo'))
    assert chat_template.conversation_text(sent) == 'hi\nthere\n!\n\nyo'
    assert chat_template.conversation_text([('a', ' ')]) == ''
