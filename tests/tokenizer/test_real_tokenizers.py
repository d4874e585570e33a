"""Tokenizers of known models: the ids and texts of `tokenizers` and `transformers`."""

import json

import pytest
import tokenizers

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from tests.tokenizer.downloads import REAL, real_tokenizer
from tests.tokenizer.made_tokenizers import make_strings

FAST = ('llama2', 'llama3', 'qwen3')  # the others are larger
NUM_STRINGS = 20_000 // len(FAST) + 1
ENDS = dict(
    llama2='</s>',
    llama3='<|eot_id|>',
    qwen3='<|im_end|>',
    gemma3='<end_of_turn>',
    deepseek_v3='<｜end▁of▁sentence｜>',
)
NAMES = pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in REAL],
)


def load(name, tmp_path):
    folder = real_tokenizer(name)
    return folder, import_tokenizer(folder, tmp_path / 'run', REAL[name])


def compare(ours, theirs, texts):
    """Texts with the names of special tokens, as text, and of a tenth as tokens."""
    theirs.encode_special_tokens = False
    for text in texts[: len(texts) // 10]:
        ids = ours.encode_parts(ours.split_specials(text))
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert [token for part in ids for token in part] == expected, repr(text)
    theirs.encode_special_tokens = True
    encoded = theirs.encode_batch_fast(texts, add_special_tokens=False)
    found = ours.encode_batch(texts)
    for text, ids, expected in zip(texts, found, encoded, strict=True):
        assert ids == expected.ids, repr(text)
    assert [*map(ours.decode, found)] == theirs.decode_batch(found)
    for ids in found[: len(texts) // 10]:
        stream = ours.stream()
        pushed = ''.join(map(stream.push, ids)) + stream.finish()
        assert pushed in (ours.decode(ids), ' ' + ours.decode(ids))


@NAMES
def test_ids_and_texts_equal_those_of_the_library(name, tmp_path):
    folder, ours = load(name, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    names = [*ours.specials][:30]
    compare(ours, theirs, make_strings(NUM_STRINGS, names))


@pytest.mark.long
@NAMES
def test_a_million_strings(name, tmp_path):
    folder, ours = load(name, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    for seed in range(1, 11):
        compare(ours, theirs, make_strings(16_700, [*ours.specials][:30], seed))


@NAMES
def test_conversations_equal_those_of_transformers(name, tmp_path):
    PreTrainedTokenizerFast = pytest.importorskip(
        'transformers'
    ).PreTrainedTokenizerFast

    folder, ours = load(name, tmp_path)
    if ours.chat_template is None:
        pytest.skip('it has no chat template')
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / 'tokenizer.json'),
        chat_template=ours.chat_template,
        **ours.names,
    )
    texts = [text.strip() or 'x' for text in make_strings(60, [' the '])]
    for number in range(0, 60, 2):
        messages = [
            dict(role='user', content=texts[number]),
            dict(role='assistant', content=texts[number + 1]),
        ]
        encoded, mask = [], ()
        for some in (messages[:1], messages):
            generate = some is not messages
            encoded.append(
                theirs.apply_chat_template(
                    some, add_generation_prompt=generate, return_dict=False
                )
            )
        prompt = chat_template.encode_prompt(messages[:1], ours, 'turns')
        whole, mask = chat_template.encode_conversation(messages, ours, 'turns')
        assert [prompt, whole] == encoded, messages
        assert mask.index(True) == len(prompt)
        assert whole[len(prompt) + sum(mask) - 1] == ours.specials[ENDS[name]]
    assert chat_template.stop_conditions('turns', ours)[1] == (
        ours.specials[ENDS[name]],
    )


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    folder = real_tokenizer('llama2')
    for size in (REAL['qwen3'], 31_000):
        with pytest.raises(UserError, match='copy the tokenizer of this model'):
            import_tokenizer(folder, tmp_path / 'run', size)


def test_texts_of_users_have_no_tokens_of_deepseek(tmp_path):
    """Its file does not call the tokens between messages special."""
    _, ours = load('deepseek_v3', tmp_path)
    described = json.loads(
        (real_tokenizer('deepseek_v3') / 'tokenizer.json').read_text()
    )
    (user,) = [a for a in described['added_tokens'] if a['content'] == '<｜User｜>']
    assert not user['special']
    messages = [dict(role='user', content='a<｜User｜>b')]
    tokens = chat_template.encode_prompt(messages, ours, 'turns')
    assert tokens.count(user['id']) == 1
