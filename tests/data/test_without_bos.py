"""Documents and conversations of models that have no BOS, and none between segments."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.data.chat_template import encode_prompt, encode_text_prompt
from gptjax.data.packed_conversations import _SourceWriter
from gptjax.data.packed_dataset import PackedSource
from gptjax.data.packing import Packer, unpack
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from tests.tokenizer import made_tokenizers


def tokenizer_of(folder, make=made_tokenizers.byte_level):
    size = made_tokenizers.write_folder(folder / 'hf', make())
    return import_tokenizer(folder / 'hf', folder / 'run', size)


def test_documents_stand_after_the_end_of_another(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    assert tokenizer.bos_id == tokenizer.eos_id != tokenizer.pad_id
    texts = [np.array(tokenizer.encode(text)) for text in ('Hello', 'a b c')]
    ids = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    packer = Packer(len(texts[0]) + 3, *ids[:2], np.uint32)
    rows = np.concatenate([packer.add(texts), packer.finish()])
    batch = unpack(rows, *ids)
    weights = batch['weights'] > 0
    predicted = [*texts[0], tokenizer.eos_id, *texts[1], tokenizer.eos_id]
    assert batch['targets'][weights].tolist() == predicted
    assert batch['segments'][0].max() == 2


def test_prompts(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    assert encode_text_prompt('a b', tokenizer) == tokenizer.encode('a b')
    assert encode_text_prompt('', tokenizer) == [tokenizer.bos_id]
    llama = tokenizer_of(tmp_path / 'llama', made_tokenizers.sentencepiece)
    assert encode_text_prompt('a', llama) == [llama.bos_id, *llama.encode('a')]


def test_a_model_without_a_chat_template_has_no_turns(tmp_path):
    messages = [dict(role='user', content='a')]
    with pytest.raises(UserError, match='no chat template.*chat.template=text'):
        encode_prompt(messages, tokenizer_of(tmp_path), 'turns')


def test_segments_of_conversations_are_kept_apart(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    config = ConfigDict(dict(data=dict(context=30), chat=dict(template='text')))
    writer = _SourceWriter(tmp_path / 'rows', tokenizer, config)
    texts = [('a b', 'Hello'), ('d', 'a b c')]
    for number, (question, answer) in enumerate(texts):
        messages = [
            dict(role='user', content=question),
            dict(role='assistant', content=answer),
        ]
        writer.add(str(number), messages)
    source = PackedSource(tmp_path / 'rows', writer.finish(), 'sft')
    assert source.has_begins
    read = {name: source.read(np.arange(1), name) for name in ('tokens', 'begins')}
    ids = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    batch = unpack(read['tokens'], *ids, read['begins'])
    for number, (question, answer) in enumerate(texts, 1):
        here = batch['segments'][0] == number
        whole = tokenizer.decode(batch['inputs'][0][here])
        assert whole == f'{question}\n\n{answer}\n\n'
        assert batch['positions'][0][here].tolist() == list(range(here.sum()))
