"""A conversation as a prompt and as what is trained on, token by token."""

import random

import pytest

from gptjax.core.console import UserError
from gptjax.data import chat_template

SYSTEM, USER, ASSISTANT = (
    dict(role='system', content='Be kind.'),
    dict(role='user', content='the cat'),
    dict(role='assistant', content='sat on'),
)


@pytest.fixture(scope='module')
def tokenizer(run):
    return run.tokenizer


def as_text(tokenizer, *messages, **options):
    tokens = chat_template.encode_prompt(messages, tokenizer, 'text', **options)
    assert tokens[0] == tokenizer.bos_id and tokenizer.bos_id not in tokens[1:]
    return tokenizer.decode(tokens)


def test_text_is_what_pretraining_has_read(tokenizer):
    assert as_text(tokenizer, USER) == 'the cat\n\n'
    whole = as_text(tokenizer, SYSTEM, USER, ASSISTANT, USER)
    assert whole == 'Be kind.\n\nthe cat\n\nsat on\n\nthe cat\n\n'
    assert chat_template.stop_conditions('text', tokenizer) == (('\n\n',), ())


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
    tokens = chat_template.encode_prompt(
        [USER, last], tokenizer, 'turns', continue_last=True
    )
    assert tokens[-1] != tokenizer.specials['<|end|>']
    assert tokenizer.decode(tokens).endswith(begun)


def test_turns_are_between_special_tokens(tokenizer):
    names = tokenizer.specials
    encode = tokenizer.encode
    assert chat_template.encode_prompt(
        [SYSTEM, USER, ASSISTANT, USER], tokenizer, 'turns'
    ) == [
        tokenizer.bos_id,
        *[names['<|system|>'], *encode('Be kind.'), names['<|end|>']],
        *[names['<|user|>'], *encode('the cat'), names['<|end|>']],
        *[names['<|assistant|>'], *encode('sat on'), names['<|end|>']],
        *[names['<|user|>'], *encode('the cat'), names['<|end|>']],
        names['<|assistant|>'],
    ]
    assert chat_template.stop_conditions('turns', tokenizer) == (
        (),
        (names['<|end|>'],),
    )


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
def test_what_is_no_conversation(tokenizer, messages, options, pattern):
    options = dict(dict(template='text'), **options)
    with pytest.raises(UserError, match=pattern):
        chat_template.encode_prompt(messages, tokenizer, **options)


# ---- what is trained on


def test_the_mask_by_hand(tokenizer):
    special, encode = tokenizer.specials, tokenizer.encode
    tokens, trained = chat_template.encode_conversation(
        [SYSTEM, USER, ASSISTANT, USER], tokenizer, 'turns'
    )
    parts = [
        ([tokenizer.bos_id], 0),
        ([special['<|system|>'], *encode('Be kind.'), special['<|end|>']], 0),
        ([special['<|user|>'], *encode('the cat'), special['<|end|>']], 0),
        ([special['<|assistant|>']], 0),
        ([*encode('sat on'), special['<|end|>']], 1),
        ([special['<|user|>'], *encode('the cat'), special['<|end|>']], 0),
    ]
    assert tokens == [token for part, _ in parts for token in part]
    assert trained == [bool(its) for part, its in parts for _ in part]


def test_in_text_the_empty_line_after_a_reply_is_trained(tokenizer):
    tokens, trained = chat_template.encode_conversation(
        [USER, ASSISTANT], tokenizer, 'text'
    )
    assert tokenizer.decode(tokens) == 'the cat\n\nsat on\n\n'
    said = [token for token, its in zip(tokens, trained, strict=True) if its]
    assert tokenizer.decode(said) == 'sat on\n\n'


PIECES = ('the cat', '\n', '\n\n', ' ', '<|end|>', '<bos>', '<|user|>', 'é', '▁', '.')


def conversations(count=40):
    """Random ones: several turns in a row of a role, odd texts, empty ones."""
    random_ = random.Random(0)
    for _ in range(count):
        yield [
            dict(
                role=random_.choice(chat_template.ROLES),
                content=''.join(random_.choices(PIECES, k=random_.randrange(5))),
            )
            for _ in range(random_.randrange(1, 7))
        ]


@pytest.mark.parametrize('template', chat_template.TEMPLATES)
def test_a_prompt_is_what_training_had_before_each_reply(tokenizer, template):
    replies = 0
    for messages in conversations():
        tokens, trained = chat_template.encode_conversation(
            messages, tokenizer, template
        )
        assert len(tokens) == len(trained) and tokens[0] == tokenizer.bos_id
        expected = [False] * len(tokens)
        for place, message in enumerate(messages):
            if message['role'] != 'assistant':
                continue
            begin = 1
            if place:
                prompt = chat_template.encode_prompt(
                    messages[:place], tokenizer, template
                )
                assert tokens[: len(prompt)] == prompt
                begin = len(prompt)
            elif template == 'turns':
                begin = 2
            until, _ = chat_template.encode_conversation(
                messages[: place + 1], tokenizer, template
            )
            expected[begin : len(until)] = [True] * (len(until) - begin)
            replies += 1
        assert trained == expected
    assert replies > 20


@pytest.mark.parametrize('template', chat_template.TEMPLATES)
def test_what_a_message_spells_is_never_a_special_token(tokenizer, template):
    for messages in conversations():
        tokens, _ = chat_template.encode_conversation(messages, tokenizer, template)
        special = [t for t in tokens if t in tokenizer.specials.values()]
        assert len(special) == (1 + 2 * len(messages) if template == 'turns' else 1)


@pytest.mark.parametrize('template', chat_template.TEMPLATES)
def test_a_truncation_has_no_end(tokenizer, template):
    whole, _ = chat_template.encode_conversation([USER, ASSISTANT], tokenizer, template)
    cut, trained = chat_template.encode_conversation(
        [USER, ASSISTANT], tokenizer, template, unfinished=True
    )
    assert tokenizer.decode(cut).endswith('sat on')
    assert tokenizer.specials['<|end|>'] not in cut[-1:] and trained[-1]
    assert cut == whole[: len(cut)] and len(cut) < len(whole)
    # What is cut may be gone on with: that prompt is the same.
    assert cut == chat_template.encode_prompt(
        [USER, ASSISTANT], tokenizer, template, continue_last=True
    )


def test_messages_in_a_row_are_one_turn():
    sent = [('a', ' hi '), ('a', 'there'), ('b', ' '), ('a', '!'), ('b', 'yo')]
    turns = chat_template.merge_turns(sent)
    assert turns == (('a', 'hi\nthere\n!'), ('b', 'yo'))
    assert chat_template.conversation_text(sent) == 'hi\nthere\n!\n\nyo'
    assert chat_template.conversation_text([('a', ' ')]) == ''
