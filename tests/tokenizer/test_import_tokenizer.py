"""Tokenizers of Hugging Face folders: the library's ids and texts, and errors."""

import json

import pytest

from gptjax.core.console import UserError
from gptjax.tokenizer import hf_tokenizer
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from gptjax.tokenizer.load_tokenizer import find_tokenizer, load_tokenizer
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests.tokenizer import made_tokenizers
from tests.tokenizer.made_tokenizers import SPECIALS, make_strings, write_folder

KINDS = pytest.mark.parametrize('make', made_tokenizers.KINDS)


def load(tmp_path, model, **config):
    size = write_folder(tmp_path / 'hf', model, **config)
    import_tokenizer(tmp_path / 'hf', tmp_path / 'run', size)
    return load_tokenizer(tmp_path / 'run')


@KINDS
def test_ids_and_texts_equal_those_of_the_library(make, tmp_path):
    theirs = make()
    ours = load(tmp_path, theirs)
    assert set(ours.specials) == set(SPECIALS)
    texts = make_strings(3000, SPECIALS)
    for text in texts:  # special tokens that a program writes
        ids = theirs.encode(text, add_special_tokens=False).ids
        parts = ours.encode_parts(ours.split_specials(text))
        assert [token for part in parts for token in part] == ids, text
    theirs.encode_special_tokens = True
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        assert not set(ours.specials.values()) & set(ids)
        assert ours.decode(ids) == theirs.decode(ids)
        stream = ours.stream()
        pushed = ''.join(map(stream.push, ids)) + stream.finish()
        assert pushed == ours.decode(ids) or pushed == ' ' + ours.decode(ids)
        # The tokens of a text are its bytes, of which bits per byte are made.
        content = b''.join(map(ours.bytes_of, ids))
        if make is made_tokenizers.byte_level:
            assert content == text.encode()
        else:  # a space is put before the text
            plain = text.replace('▁', ' ').encode()
            assert content in (plain, b' ' + plain)


def test_what_texts_begin_and_end_with(tmp_path):
    bos, eos, end = (SPECIALS.index(name) for name in ('<s>', '</s>', '<|im_end|>'))
    llama = load(tmp_path / 'llama', made_tokenizers.sentencepiece())
    assert (llama.start_ids, llama.bos_id, llama.eos_ids) == ([bos], bos, (eos,))
    # No BOS is put before a text: the end of a document is also what comes before one.
    folder = tmp_path / 'qwen' / 'hf'
    folder.mkdir(parents=True)
    (folder / 'generation_config.json').write_text(json.dumps(dict(eos_token_id=[4])))
    template = dict(chat_template='{{ messages }}', eos_token='<|im_end|>')
    qwen = load(tmp_path / 'qwen', made_tokenizers.byte_level(), **template)
    assert (qwen.start_ids, qwen.bos_id, qwen.eos_ids) == ([], eos, (eos, end))
    assert qwen.chat_template == '{{ messages }}'
    assert qwen.bytes_of(qwen.pad_id) == b'\xff'  # no text has it
    assert qwen.fingerprint != load(tmp_path / 'qwen', made_tokenizers.byte_level())


def test_tokens_that_the_model_lacks_are_left_out(tmp_path):
    model = made_tokenizers.byte_level()
    size = model.get_vocab_size()
    model.add_special_tokens(['<picture>'])
    write_folder(tmp_path, model)
    tokenizer = import_tokenizer(tmp_path, tmp_path / 'run', size)
    assert '<picture>' not in tokenizer.specials
    assert max(tokenizer.encode('a <picture>')) < size


def test_tokens_between_messages_are_special(tmp_path):
    model = made_tokenizers.byte_level()
    model.add_tokens(['<｜User｜>', '<think>'])
    template = "{{ '<｜User｜>' + messages[0]['content'] }}<think>"
    tokenizer = load(tmp_path, model, chat_template=template)
    assert tokenizer.specials['<｜User｜>'] not in tokenizer.encode('<｜User｜>')
    assert tokenizer.encode('<think>') == [model.token_to_id('<think>')]


def test_errors(tmp_path):
    folder = tmp_path / 'hf'
    folder.mkdir()

    def refused(size, match):
        with pytest.raises(UserError, match=match):
            import_tokenizer(folder, tmp_path / 'run', size)
        assert find_tokenizer(tmp_path / 'run') is None

    refused(9, 'has no tokenizer.json: write one with save_pretrained')
    size = write_folder(folder, made_tokenizers.byte_level())
    for wrong in (size - 1, 3 * size):
        refused(wrong, f'has {size} tokens, and the model {wrong:,}: copy the')
    (folder / 'generation_config.json').write_text('{"eos_token_id": 100000}')
    refused(size, 'a special token has the id 100000')
    (folder / 'generation_config.json').write_text('[]')
    refused(size, 'generation_config.json is not a JSON object')
    (folder / 'generation_config.json').unlink()
    config = (folder / 'tokenizer_config.json').read_text()
    listed = json.loads(config) | dict(chat_template=['{{ messages }}'])
    (folder / 'tokenizer_config.json').write_text(json.dumps(listed))
    refused(size, 'chat_template is a list without names: write the template')
    (folder / 'tokenizer_config.json').write_text(config)
    content = (folder / 'tokenizer.json').read_text()
    (folder / 'tokenizer.json').write_text(content[:-9])
    refused(size, 'tokenizer.json is damaged, or newer than')
    described = json.loads(content) | dict(decoder=None)
    (folder / 'tokenizer.json').write_text(json.dumps(described))
    refused(size, 'its decoder is neither byte-level BPE nor')
    (folder / 'tokenizer.json').write_text(content)
    import_tokenizer(folder, tmp_path / 'run', size)
    (tmp_path / 'run' / 'tokenizer.json').write_text(content.replace('world', 'other'))
    with pytest.raises(UserError, match='is damaged: import or'):
        load_tokenizer(tmp_path / 'run')
    with pytest.raises(UserError, match='no such file: make it with the stage'):
        load_tokenizer(tmp_path / 'nothing')


def test_any_error_of_the_library_is_told(tmp_path, monkeypatch):
    def fail(*args):
        raise Exception('expected `,` or `}`')

    size = write_folder(tmp_path / 'hf', made_tokenizers.byte_level())
    monkeypatch.setattr(hf_tokenizer, '_make_model', fail)
    with pytest.raises(UserError, match='tokenizer.json: a field is .*expected `,`'):
        import_tokenizer(tmp_path / 'hf', tmp_path / 'run', size)


def test_our_own_comes_back(tmp_path):
    content = train_model(made_tokenizers.TEXT, 'bpe', 300)
    (tmp_path / 'tokenizer.model').write_bytes(content)
    import_tokenizer(tmp_path, tmp_path / 'run', 300)
    tokenizer = load_tokenizer(tmp_path / 'run')
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.fingerprint == Tokenizer(content).fingerprint
