"""tokenizer.json gives the ids and texts of the library `tokenizers`."""

import random

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from gptjax.tokenizer.hf_tokenizer import HFTokenizer

TEXT = ['Hello  world!\n\tÄ € 🙂👍🏽', 'a b  c   d', 'x▁y </s> <0x41>'] * 50
SETTINGS = dict(vocab_size=0, bos=None, eos=[0], pad=None, chat_template=None)


def byte_level():
    """As GPT-2."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=['</s>'],
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXT, trainer)
    return model


def sentencepiece():
    """As Llama 2: a space is put before the text, and stripped when decoding."""
    bytes_ = [f'<0x{byte:02X}>' for byte in range(256)]
    names = ['</s>', *bytes_, '▁', *'abcdeo', '▁a', 'ab']
    model = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [('▁', 'a'), ('a', 'b')],
            byte_fallback=True,
        )
    )
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )
    model.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ]
    )
    model.add_special_tokens(['</s>'])
    return model


@pytest.mark.parametrize('make', [byte_level, sentencepiece])
def test_ids_and_texts_equal_those_of_the_library(make):
    theirs = make()
    ours = HFTokenizer(theirs.to_str().encode(), SETTINGS)
    theirs.encode_special_tokens = True
    rng = random.Random(0)
    alphabet = 'abc xyz\n\t€🙂é▁</s>\u200d\x00 '
    texts = [''.join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(300)]
    for text in [*texts, '</s>', *TEXT[:3]]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.specials['</s>'] not in ids
        assert ours.decode(ids) == theirs.decode(ids)
        stream = ours.stream()
        pushed = [stream.push(token) for token in ids]
        assert ''.join(pushed) + stream.finish() == ours.decode(ids)
