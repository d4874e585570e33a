"""Our tokenizer in the form of tokenizer.json: equal ids, texts and conversations."""

import functools
import json
import random
import subprocess

import pytest
import tokenizers

from gptjax.convert.export_tokenizer import export_tokenizer, to_tokenizer_json
from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests.tokenizer import made_tokenizers
from tests.tokenizer.downloads import other_python
from tests.tokenizer.made_tokenizers import make_strings


@functools.cache
def train(kind='bpe', size=700):
    """A model with pieces like 'aaa', of which pairs overlap."""
    rng = random.Random(0)
    words = [''.join(rng.choices('aaabhè', k=rng.randrange(1, 9))) for _ in range(900)]
    gaps = [' ', ' ', '  ', '\n', '\n\n', '.\n\n', '\t', ', ', "'s ", ' 12 🙂🙂日本']
    texts = [
        ''.join(w + rng.choice(gaps) for w in rng.sample(words, 40)) for _ in words
    ]
    return train_model([*texts, 'a' * 300, 'the hat'], kind, size)


def compare(model: bytes, texts):
    ours, theirs = (
        Tokenizer(model),
        tokenizers.Tokenizer.from_str(to_tokenizer_json(model)),
    )
    theirs.encode_special_tokens = True
    found = theirs.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, encoding in zip(texts, ours.encode_batch(texts), found, strict=True):
        assert ids == encoding.ids, repr(text)
    decoded = theirs.decode_batch([encoding.ids for encoding in found])
    assert decoded == texts


def make_texts(count, seed=0):
    names = [
        *Tokenizer(train()).specials,
        '<0x0A>',
        'aaa',
        'aba',
        'haha',
        ' the',
        '\n\n',
    ]
    return make_strings(count, names, seed)


def test_equal_ids_and_texts():
    compare(train(), make_texts(20_000))


@pytest.mark.long
def test_equal_ids_and_texts_of_a_million_strings():
    for seed in range(1, 51):
        compare(train(size=500 + 4 * seed), make_texts(20_000, seed))


def export(tmp_path, template='turns'):
    run = tmp_path / 'run'
    run.mkdir(parents=True)
    (run / 'tokenizer.model').write_bytes(train())
    export_tokenizer(run, tmp_path / 'hf', template, 128)
    return load_tokenizer(run)


def test_transformers_reads_it(tmp_path):
    AutoTokenizer = pytest.importorskip('transformers').AutoTokenizer

    ours = export(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path / 'hf')
    assert len(theirs) == ours.vocab_size
    ids = theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id
    assert ids == (ours.bos_id, ours.eos_id, ours.pad_id)
    for text in make_texts(500):
        prompt = chat_template.encode_text_prompt(text, ours)
        assert theirs(text, split_special_tokens=True)['input_ids'] == prompt
        assert theirs.decode(prompt, skip_special_tokens=True) == text
    messages = [
        dict(role='system', content=' Be  kind.\n'),
        dict(role='user', content='\n\na ▁ the cat'),
        dict(role='assistant', content='hahaha\t'),
    ]
    apply = functools.partial(theirs.apply_chat_template, return_dict=False)
    whole, _ = chat_template.encode_conversation(messages, ours, 'turns')
    assert apply(messages) == whole
    prompt = chat_template.encode_prompt(messages[:2], ours, 'turns')
    assert apply(messages[:2], add_generation_prompt=True) == prompt


READ_IT = """
import json, sys
from transformers import AutoTokenizer, __version__
assert __version__.startswith('4.')
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
given = json.load(open(sys.argv[2]))
for text, ids in given['texts']:
    assert tokenizer(text, split_special_tokens=True)['input_ids'] == ids, text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
for messages, ids in given['chats']:
    assert tokenizer.apply_chat_template(messages) == ids, messages
"""


@pytest.mark.long
def test_transformers_4_reads_it(tmp_path):
    python = other_python('transformers-4', 'transformers<5', 'jinja2', 'sentencepiece')
    ours = export(tmp_path)
    texts = make_texts(20_000)
    chats = [
        [dict(role='user', content=a), dict(role='assistant', content=b)]
        for a, b in zip(
            make_strings(500, ['a']), make_strings(500, ['b'], 1), strict=True
        )
    ]
    encode = lambda messages: chat_template.encode_conversation(messages, ours, 'turns')
    given = dict(
        texts=[[text, chat_template.encode_text_prompt(text, ours)] for text in texts],
        chats=[[messages, encode(messages)[0]] for messages in chats],
    )
    (tmp_path / 'given.json').write_text(json.dumps(given))
    command = python, '-c', READ_IT, tmp_path / 'hf', tmp_path / 'given.json'
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


def test_the_template_text(tmp_path):
    """Its text is ours; ids differ only where a token would span two messages."""
    AutoTokenizer = pytest.importorskip('transformers').AutoTokenizer

    ours = export(tmp_path, 'text')
    theirs = AutoTokenizer.from_pretrained(tmp_path / 'hf')
    for text in ('a', '\n\n a\n \n  b\n\n', ' \n\nb\n ', 'a\r\n\r\nb\n\n\n\nc', ''):
        messages = [dict(role='user', content=text), dict(role='user', content='c')]
        tokens, _ = chat_template.encode_conversation(messages, ours, 'text')
        written = theirs.apply_chat_template(messages, tokenize=False)
        assert written == '<bos>' + ours.decode(tokens)


def test_it_comes_back_as_it_was(tmp_path):
    ours = export(tmp_path)
    import_tokenizer(tmp_path / 'hf', tmp_path / 'back', ours.vocab_size)
    assert load_tokenizer(tmp_path / 'back').fingerprint == ours.fingerprint
    # Without our file, tokenizer.json alone gives the same ids.
    (tmp_path / 'hf' / 'tokenizer.model').unlink()
    other = import_tokenizer(tmp_path / 'hf', tmp_path / 'other', ours.vocab_size)
    texts = make_texts(300)
    assert other.encode_batch(texts) == ours.encode_batch(texts)
    assert (other.start_ids, other.eos_ids) == (ours.start_ids, ours.eos_ids)
    messages = [dict(role='user', content='a'), dict(role='assistant', content='b')]
    encoded = [
        chat_template.encode_conversation(messages, tokenizer, 'turns')
        for tokenizer in (ours, other)
    ]
    assert encoded[0] == encoded[1]


def test_an_imported_one_leaves_as_it_came(tmp_path):
    config = dict(chat_template='{{ messages }}', more=1)
    size = made_tokenizers.write_folder(
        tmp_path / 'hf', made_tokenizers.byte_level(), **config
    )
    (tmp_path / 'hf' / 'merges.txt').write_text('a b')
    import_tokenizer(tmp_path / 'hf', tmp_path / 'run', size)
    export_tokenizer(tmp_path / 'run', tmp_path / 'out', 'turns', 128)
    files = {path.name: path.read_bytes() for path in (tmp_path / 'hf').iterdir()}
    assert files == {
        path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()
    }


def test_a_unigram_model_is_refused():
    with pytest.raises(UserError, match='tokenizer.kind=unigram: such a tokenizer'):
        to_tokenizer_json(train('unigram', 400))
    assert json.loads(to_tokenizer_json(train()))['model']['type'] == 'BPE'
