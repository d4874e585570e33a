"""Small tokenizers in the form of tokenizer.json, and strings to try them with."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

TEXT = [
    'Hello  world!\n\tÄ € 🙂👍🏽 user assistant system',
    'a b  c   d',
    '12 <s>',
] * 50
SPECIALS = ['<pad>', '<s>', '</s>', '<|im_start|>', '<|im_end|>', '[INST]', '<|end|>']


def byte_level(specials=SPECIALS) -> Tokenizer:
    """As GPT-2 and Qwen: no BOS is put before a text."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=list(specials),
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXT, trainer)
    return model


def sentencepiece(specials=SPECIALS, metaspace: bool = False) -> Tokenizer:
    """As Llama 2: BOS and a space are put before a text.

    With `metaspace` the space is put only before the first part of a text with special
    tokens, as newer files do.
    """
    bytes_ = [f'<0x{byte:02X}>' for byte in range(256)]
    names = [*specials, *bytes_, '▁', *'abcdeHlowrs', '▁a', 'ab', '▁H', 'll']
    merges = [('▁', 'a'), ('a', 'b'), ('▁', 'H'), ('l', 'l')]
    # A token that is called as the value of prepend_scheme.
    names += [*'fit', 'fi', 'fir', 'firs', 'first']
    merges += [('f', 'i'), ('fi', 'r'), ('fir', 's'), ('firs', 't')]
    vocabulary = {name: i for i, name in enumerate(names)}
    model = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    if metaspace:
        model.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme='first', split=False
        )
    else:
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
    model.add_special_tokens(list(specials))
    model.post_processor = TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', names.index('<s>'))]
    )
    return model


def metaspace(specials=SPECIALS) -> Tokenizer:
    return sentencepiece(specials, True)


KINDS = byte_level, sentencepiece, metaspace


def write_folder(folder: Path, model: Tokenizer, **config) -> int:
    """Writes the tokenizer as a model's folder has it; returns V."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / 'tokenizer.json'))
    names = dict(bos_token='<s>', eos_token='</s>') | config
    (folder / 'tokenizer_config.json').write_text(json.dumps(names))
    return model.get_vocab_size()


def make_strings(count: int, names: list[str], seed: int = 0) -> list[str]:
    """Strings of spaces, newlines, emoji, joiners, all of Unicode, special tokens."""
    rng = random.Random(seed)
    spaces = [*'    \t\n\r\x00\x07\x1f\u200d\ufeff\u2581\xa0\u3000\u2028', '\r\n', '  ']
    words = [
        'Hello',
        ' the',
        "'s",
        '123',
        'e\u0301',
        '中文',
        '👨‍👩‍👧',
        '🙂',
        '<0x41>',
        '\ufffd',
    ]

    def piece():
        match rng.randrange(6):
            case 0:
                return rng.choice(spaces)
            case 1:
                return chr(rng.randrange(33, 127))
            case 2:
                return rng.choice(words)
            case 3:
                return rng.choice(names)
            case 4:
                return rng.choice(names)[rng.randrange(3) :][: rng.randrange(9)]
        code = rng.randrange(0x110000 - 0x800)
        return chr(code + 0x800 * (code >= 0xD800))

    return [''.join(piece() for _ in range(rng.randrange(24))) for _ in range(count)]
