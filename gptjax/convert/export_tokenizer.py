"""Writes a run's tokenizer to a folder that `AutoTokenizer` of transformers reads.

An imported tokenizer leaves as it came, but for the name of a class that transformers 4
does not know. Ours becomes tokenizer.json, with equal ids:

- The vocabulary has spaces themselves, where SentencePiece has '▁', so a '▁' in a text
  is no space: both here and there it becomes its three bytes.
- SentencePiece merges the pair with the best score, the leftmost one of equals. In
  tokenizer.json each pair has a rank of its own. Pairs that make the same piece follow
  one another, and overlap only in texts like 'aaa', where the leftmost comes first.
"""

import json
from pathlib import Path

import sentencepiece

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.chat_template import to_jinja
from gptjax.tokenizer.import_tokenizer import ORIGINALS
from gptjax.tokenizer.load_tokenizer import find_tokenizer
from gptjax.tokenizer.tokenizer import BOS, EOS, PAD, SPACE, Tokenizer

FAST = 'PreTrainedTokenizerFast'  # in transformers 5 also 'TokenizersBackend'


def export_tokenizer(folder: Path, target: Path, template: str, context: int) -> None:
    """Writes the files of RUN/tokenizer (`folder`) to the folder `target`.

    Args:
        template: `chat.template` of the run, in which ours are written.
        context: of the model, in tokens.
    """
    path = find_tokenizer(folder)
    if path.name != 'tokenizer.model':
        for name in ('tokenizer.json', *ORIGINALS):
            if (source := folder / name).exists():
                storage.write_bytes(target / source.name, source.read_bytes())
        return
    model = path.read_bytes()
    storage.write_text(target / 'tokenizer.json', to_tokenizer_json(model))
    storage.write_bytes(target / 'tokenizer.model', model)
    tokenizer = Tokenizer(model)
    others = [name for name in tokenizer.specials if name not in (PAD, BOS, EOS)]
    names = dict(bos_token=BOS, eos_token=EOS, pad_token=PAD)
    storage.write_json(
        target / 'tokenizer_config.json',
        dict(
            tokenizer_class=FAST,
            **names,
            additional_special_tokens=others,
            add_prefix_space=False,
            clean_up_tokenization_spaces=False,
            model_max_length=context,
        ),
    )
    storage.write_json(
        target / 'special_tokens_map.json',
        dict(names, additional_special_tokens=others),
    )
    write_chat_template(target, to_jinja(template, tokenizer))


def name_tokenizer_class(folder: Path) -> None:
    """Replaces a name that transformers 4 does not know by its other name."""
    path = folder / 'tokenizer_config.json'
    fields = storage.read_json(path) if path.exists() else {}
    if fields.get('tokenizer_class') == 'TokenizersBackend':
        storage.write_json(path, fields | dict(tokenizer_class=FAST))


def write_chat_template(target: Path, jinja: str) -> None:
    """Writes a template to both places where versions of transformers look for it."""
    storage.write_text(target / 'chat_template.jinja', jinja)
    path = target / 'tokenizer_config.json'
    fields = storage.read_json(path) if path.exists() else {}
    storage.write_json(path, fields | dict(chat_template=jinja))


def to_tokenizer_json(model: bytes) -> str:
    """tokenizer.json with the ids of a SentencePiece BPE model of ours."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.vocab_size()
    names = [processor.id_to_piece(token) for token in range(size)]
    special = [processor.is_control(t) or processor.is_unknown(t) for t in range(size)]
    plain = {
        names[token].replace(SPACE, ' '): processor.get_score(token)
        for token in range(size)
        if not (special[token] or processor.is_byte(token))
    }
    if any(score % 1 for score in plain.values()):
        raise UserError(
            'tokenizer.kind=unigram: such a tokenizer has no equal in tokenizer.json: '
            'train the run with tokenizer.kind=bpe'
        )
    vocabulary = {
        name
        if special[token] or processor.is_byte(token)
        else name.replace(SPACE, ' '): token
        for token, name in enumerate(names)
    }
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(plain, key=plain.get, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    bos = {'id': BOS, 'type_id': 0}
    text = {'id': 'A', 'type_id': 0}
    second = [
        {'SpecialToken': bos | {'type_id': 1}},
        {'Sequence': {'id': 'B', 'type_id': 1}},
    ]
    single = [{'SpecialToken': bos}, {'Sequence': text}]
    ids = {'id': BOS, 'ids': [vocabulary[BOS]], 'tokens': [BOS]}
    described = dict(
        version='1.0',
        truncation=None,
        padding=None,
        added_tokens=[
            dict(id=token, content=name, **flags, special=True)
            for token, name in enumerate(names)
            if special[token]
        ],
        normalizer=None,
        pre_tokenizer=None,
        post_processor=dict(
            type='TemplateProcessing',
            single=single,
            pair=single + second,
            special_tokens={BOS: ids},
        ),
        decoder=dict(
            type='Sequence', decoders=[dict(type='ByteFallback'), dict(type='Fuse')]
        ),
        model=dict(
            type='BPE',
            dropout=None,
            unk_token=None,
            continuing_subword_prefix=None,
            end_of_word_suffix=None,
            fuse_unk=False,
            byte_fallback=True,
            ignore_merges=False,
            vocab=vocabulary,
            merges=merges,
        ),
    )
    return json.dumps(described, ensure_ascii=False, indent=1)
