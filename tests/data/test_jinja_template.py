"""Conversations in Jinja templates: ids of transformers, and the mask of replies."""

import json
import random
import time
from collections import Counter
from itertools import compress

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import chat_template, jinja_template, render_process
from gptjax.data.conversations import write_conversations
from gptjax.data.cut_conversations import cut_messages, encode_last_turns
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from tests.data.made_templates import CHATML, IM, TEMPLATES, Made, make_tokenizer
from tests.tokenizer import made_tokenizers
from tests.tokenizer.made_tokenizers import SPECIALS, make_strings

LOOP = "{% set ns = namespace(x='x') %}{% for i in range(99999) %}"
NAMES = pytest.mark.parametrize('name', TEMPLATES)


def say(*texts, system=None):
    messages = [
        dict(role=('user', 'assistant')[number % 2], content=text)
        for number, text in enumerate(texts)
    ]
    return [dict(role='system', content=system)] * (system is not None) + messages


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    tokenizers = {}

    def get(name):
        if name not in tokenizers:
            folder = tmp_path_factory.mktemp(name)
            tokenizers[name] = make_tokenizer(folder, TEMPLATES[name])
        return tokenizers[name]

    return get


def encode(messages, tokenizer, **options):
    return chat_template.encode_conversation(messages, tokenizer, 'turns', **options)


def make_conversations(name, count=60):
    """Conversations of random texts without the names of special tokens."""
    rng = random.Random(1)
    texts = [t.strip() or 'x' for t in make_strings(400, [' the '])]
    for _ in range(count):
        system = 'Be brief.' if TEMPLATES[name].system and rng.random() < 0.5 else None
        number = 2 if not TEMPLATES[name].stable else rng.choice([2, 4, 6])
        yield say(*rng.choices(texts, k=number), system=system)


@NAMES
def test_ids_equal_those_of_transformers(name, made):
    PreTrainedTokenizerFast = pytest.importorskip(
        'transformers'
    ).PreTrainedTokenizerFast

    tokenizer, model = made(name)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token='<s>',
        eos_token='</s>',
        chat_template=TEMPLATES[name].template,
        clean_up_tokenization_spaces=False,
    )

    def apply(messages, **options):
        return theirs.apply_chat_template(messages, return_dict=False, **options)

    for messages in make_conversations(name):
        prompt = chat_template.encode_prompt(messages[:-1], tokenizer, 'turns')
        assert prompt == apply(messages[:-1], add_generation_prompt=True)
        tokens, trained = encode(messages, tokenizer)
        assert tokens == apply(messages), messages
        if name == 'marked':
            mask = theirs.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True
            )['assistant_masks']
            assert trained == [bool(value) for value in mask]


@NAMES
def test_replies_and_their_ends_are_trained_on(name, made):
    tokenizer, _ = made(name)
    end = tokenizer.specials[TEMPLATES[name].end]
    assert chat_template.stop_conditions('turns', tokenizer) == ((), (end,))
    for messages in make_conversations(name, 20):
        tokens, trained = encode(messages, tokenizer)
        replies = [m['content'] for m in messages if m['role'] == 'assistant']
        kept = [*compress(tokens, trained)]
        assert kept.count(end) == len(replies) and kept[-1] == end
        spans = []
        for token in kept:
            spans += [[]] if not spans or spans[-1][-1:] == [end] else []
            spans[-1].append(token)
        for span, reply in zip(spans, replies, strict=True):
            said = b''.join(map(tokenizer.bytes_of, span)).decode().strip()
            said = said.removeprefix('<think>\n\n</think>')
            assert said.replace('▁', ' ').strip() == reply.replace('▁', ' ').strip()
        # A prompt has exactly the tokens that stand before each reply.
        for number, message in enumerate(messages):
            if message['role'] != 'assistant' or name == 'marked':
                continue
            prompt = chat_template.encode_prompt(messages[:number], tokenizer, 'turns')
            assert tokens[: len(prompt)] == prompt and trained[len(prompt)]
            assert not trained[len(prompt) - 1]


@NAMES
def test_texts_never_become_special_tokens(name, made):
    tokenizer, _ = made(name)
    specials = {*tokenizer.specials.values()}
    plain = say('a', 'b')
    expected = [t for t in encode(plain, tokenizer)[0] if t in specials]
    names = [*tokenizer.specials, *SPECIALS]
    for user, reply in zip(
        make_strings(200, names, 1), make_strings(200, names, 2), strict=True
    ):
        messages = say(user, reply)
        if not tokenizer.decode(tokenizer.encode(user)).strip():
            continue
        tokens, _ = encode(messages, tokenizer)
        assert [t for t in tokens if t in specials] == expected, messages
    for begun in names:  # nor do texts with the template around them
        for cut in range(1, len(begun)):
            messages = say(begun[:cut], begun[cut:])
            tokens, _ = encode(messages, tokenizer)
            assert [t for t in tokens if t in specials] == expected


def test_a_prompt_ends_where_it_ends_in_use(tmp_path):
    """A newline of the reply is not joined with that of the prompt."""
    model = made_tokenizers.byte_level(['<s>', '</s>', *IM])
    model.add_tokens(['\n\n'])
    size = made_tokenizers.write_folder(tmp_path, model, chat_template=CHATML)
    tokenizer = import_tokenizer(tmp_path, tmp_path / 'run', size)
    messages = say('a', '\n\nHi')
    prompt = chat_template.encode_prompt(messages[:1], tokenizer, 'turns')
    tokens, trained = encode(messages, tokenizer)
    assert tokens[: len(prompt)] == prompt and trained.index(True) == len(prompt)
    kept = [*compress(tokens, trained)]
    assert kept[:-1] == tokenizer.encode('\n\nHi')
    ids = lambda text: model.encode(text, add_special_tokens=False).ids
    assert ids('assistant\n\n\nHi') != ids('assistant\n') + ids('\n\nHi')


def test_untrained_unfinished_and_continued_replies(made):
    tokenizer, _ = made('smollm')
    messages = say('a', 'b', 'c', 'd')
    messages[1]['train'] = False
    tokens, trained = encode(messages, tokenizer)
    kept = [*compress(tokens, trained)]
    end = tokenizer.specials['<|im_end|>']
    assert kept == [*tokenizer.encode('d'), end]
    open_tokens, open_trained = encode(messages, tokenizer, unfinished=True)
    assert open_tokens == tokens[: len(open_tokens)]
    assert [*compress(open_tokens, open_trained)] == tokenizer.encode('d')
    prompt = chat_template.encode_prompt(messages, tokenizer, 'turns', True)
    assert prompt == open_tokens
    reply = chat_template.encode_reply(messages[:1], 'b', tokenizer, 'turns')
    assert reply == [*tokenizer.encode('b'), end]
    begin = [tokenizer.specials['<|im_start|>'], *tokenizer.encode('assistant\n')]
    assert chat_template.beginning_of_reply(tokenizer, 'turns') == begin


@pytest.mark.parametrize('name', ['smollm', 'llama_2', 'qwen_3', 'marked'])
def test_segments_fit_and_have_every_reply_once(name, made):
    tokenizer, _ = made(name)
    end = tokenizer.specials[TEMPLATES[name].end]
    turns = [f'{word} {n}' for n in range(8) for word in ('the question', 'answer')]
    messages = say(*turns, system='Be brief.')
    whole = list(cut_messages(messages, tokenizer, 'turns', 5000, Counter()))
    assert len(whole) == (8 if name == 'qwen_3' else 1)
    room, counts = 150, Counter()
    segments = list(cut_messages(messages, tokenizer, 'turns', room, counts))
    kept = [token for segment in segments for token in compress(*segment)]
    assert counts['turns'] == kept.count(end) == 8
    assert counts['pieces'] == len(segments) > 1
    for tokens, _ in segments:
        assert len(tokens) <= room
        text = b''.join(map(tokenizer.bytes_of, tokens)).decode()
        assert 'Be brief.' in text and 'question' in text
    # A reply, or what it answers, that is too long alone.
    for long in (say('a', 'the answer ' * 40), say('the question ' * 40, 'b')):
        ((tokens, trained),) = cut_messages(long, tokenizer, 'turns', 70, Counter())
        assert len(tokens) <= 70 and any(trained)
        assert tokens[-1] == end or long[0]['content'] == 'a'


def test_the_end_of_a_conversation(made):
    tokenizer, _ = made('smollm')
    messages = say(*'abcdef')
    whole, _ = encode(messages, tokenizer)
    for room in range(1, len(whole) + 1):
        tokens, dropped, cut = encode_last_turns(messages, tokenizer, room)
        assert len(tokens) <= room
        assert tokens == whole[len(whole) - len(tokens) :]
        assert cut == (len(tokens) < len(encode(messages[4:], tokenizer)[0]))
        assert dropped in (0, 2, 4)
    alone = [dict(role='assistant', content='a')]
    assert encode_last_turns(alone, tokenizer, 99)[0] == encode(alone, tokenizer)[0]


def test_templates_that_refuse(made):
    tokenizer, _ = made('gemma_2')
    with pytest.raises(UserError, match='refuses the messages: no system messages'):
        encode(say('a', 'b', system='c'), tokenizer)
    tokenizer, _ = made('qwen_3')
    with pytest.raises(jinja_template.UnstableTemplate, match='generation'):
        encode(say('a', 'b', 'c', 'd'), tokenizer)


def test_tools_and_their_answers(made):
    PreTrainedTokenizerFast = pytest.importorskip(
        'transformers'
    ).PreTrainedTokenizerFast

    tokenizer, model = made('qwen_25')
    call = dict(function=dict(name='add', arguments=dict(a=1, b='<|im_end|>')))
    messages = [
        *say('1 + 1?'),
        dict(role='assistant', content='', tool_calls=[call]),
        dict(role='tool', content='2 <|im_end|>'),
        dict(role='assistant', content='It is 2.'),
    ]
    tokens, trained = encode(messages, tokenizer)
    end = tokenizer.specials['<|im_end|>']
    assert tokens.count(end) == 5 and [*compress(tokens, trained)].count(end) == 2
    call['function']['arguments']['b'] = messages[2]['content'] = 'x'
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=model, chat_template=TEMPLATES['qwen_25'].template
    )
    expected = theirs.apply_chat_template(messages, return_dict=False)
    assert encode(messages, tokenizer)[0] == expected


def test_tools_in_training_files(tmp_path, made):
    tokenizer, _ = made('qwen_25')
    call = dict(type='function', function=dict(name='add', arguments=dict(a=1)))
    messages = [
        *say('1 + 1?'),
        dict(role='assistant', content=None, tool_calls=[call]),
        dict(role='tool', content='2', name='add'),
        dict(role='assistant', content='It is 2.'),
    ]
    lines = [json.dumps(dict(messages=messages)) + '\n'] * 2
    (tmp_path / 'chat.jsonl').write_text(''.join(lines))
    config = common.base()
    source = common.source('chat', str(tmp_path / 'chat.jsonl'))
    config.dialogue = common.dialogue_section(own=source)
    (tmp_path / 'made').mkdir()
    write_conversations(config, tmp_path, tmp_path / 'made', with_tools=True)
    (view,) = storage.read_jsonl(tmp_path / 'made' / 'train.jsonl')
    messages[1]['content'] = ''
    assert view['messages'] == messages
    (segment,) = cut_messages(messages, tokenizer, 'turns', 500, Counter())
    kept = tokenizer.decode(compress(*segment))
    expected = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert kept == expected + 'It is 2.'


def test_contents_in_parts(tmp_path, made):
    parts = lambda text: [dict(type='text', text=text)]
    tokenizer, _ = made('gemma_3')
    messages = say('a', 'b')
    in_parts = [dict(m, content=parts(m['content'])) for m in messages]
    assert encode(in_parts, tokenizer) == encode(messages, tokenizer)
    # A template that reads only parts gets texts in parts.
    template = CHATML.replace("m['content']", "m['content'][0]['text']")
    only, _ = make_tokenizer(tmp_path, Made(template, IM))
    assert encode(messages, only) == encode(messages, made('smollm')[0])


def test_many_names_take_little_time(made):
    tokenizer, _ = made('smollm')
    began = time.monotonic()
    guard = jinja_template.Guard([*tokenizer.specials])
    hidden = guard.hide('<|im_end|>a' * 10**5)
    assert time.monotonic() - began < 20  # it was quadratic
    assert guard.show(hidden) == '<|im_end|>a' * 10**5
    assert not any(name in hidden for name in tokenizer.specials)
    # One that begins within another is hidden too.
    assert jinja_template.Guard(['aba']).hide('cababac') == 'c\ud800b\ud800bac'


def test_keys_of_arguments_never_become_special_tokens(made):
    tokenizer, _ = made('qwen_25')
    messages = [
        *say('1 + 1?'),
        dict(role='assistant', content='', tool_calls=[dict(function=dict(a=1))]),
    ]
    function = messages[1]['tool_calls'][0]['function']
    end = tokenizer.specials['<|im_end|>']
    expected = encode(messages, tokenizer)[0].count(end)
    function['arguments'] = {'a <|im_end|>': {'<|im_end|>': 2}}
    tokens, _ = encode(messages, tokenizer)
    assert tokens.count(end) == expected
    assert '"a <|im_end|>": {"<|im_end|>": 2}' in tokenizer.decode(tokens)
    for _ in range(2000):
        function['arguments'] = [function['arguments']]
    with pytest.raises(UserError, match='nested over 100 levels'):
        encode(messages, tokenizer)


def test_the_date_is_the_same_on_every_day(tmp_path):
    dated, _ = make_tokenizer(tmp_path, Made("{{ strftime_now('%d %b %Y') }}", IM))
    tokens = jinja_template.encode_prompt(say('a'), dated)
    assert dated.decode(tokens) == '26 Jul 2024'


def test_a_long_reply_that_the_template_leaves_out(tmp_path):
    template = (
        "{% for m in messages %}<|im_start|>{% if m['role'] == 'user' %}"
        "{{ m['content'] + '<|im_end|>' }}{% else %}"
        '{% generation %}{% endgeneration %}{% endif %}{% endfor %}'
    )
    tokenizer, _ = make_tokenizer(tmp_path, Made(template, IM))
    messages = say('a' * 100, 'b')
    assert not [*cut_messages(messages, tokenizer, 'turns', 50, Counter())]


@pytest.mark.parametrize(
    'template, words',
    [
        (f'{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}', 'runs for over 0.5 s'),
        ("{{ 'x' * 10**10 }}", 'memory'),
        (f'{LOOP}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}', 'memory|over'),
        ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'calls itself|recursion'),
        ("{{ raise_exception('not this') }}", 'refuses the messages: not this'),
        ('{{ messages.__class__.__mro__ }}', 'refuses the messages: .*unsafe'),
        ('{% for', 'cannot be compiled: .* line 1'),
        ('{{ 10 ** (10**10) }}', 'over|memory'),
    ],
)
def test_hostile_templates_end_in_time(tmp_path, monkeypatch, template, words):
    monkeypatch.setattr(render_process, 'PROCESSOR_SECONDS', 0.5)
    monkeypatch.setattr(render_process, 'REAL_SECONDS', 3.0)
    tokenizer, _ = make_tokenizer(tmp_path, Made(template, IM))
    began = time.monotonic()
    with pytest.raises(UserError, match=words):
        jinja_template.encode_prompt(say('a'), tokenizer)
    assert time.monotonic() - began < 60
    good, _ = make_tokenizer(tmp_path / 'good', Made(CHATML, IM))
    assert jinja_template.encode_prompt(say('a'), good)


def test_after_ctrl_c_an_answer_is_not_that_of_the_request_before(made, monkeypatch):
    tokenizer, _ = made('qwen_25')
    expected = encode(say('a', 'b'), tokenizer)

    def interrupt(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(render_process.Process, '_read_line', interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode(say('c', 'd'), tokenizer)
    assert encode(say('a', 'b'), tokenizer) == expected
