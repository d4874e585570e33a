"""Makes a run's tokenizer from a folder of a Hugging Face model.

It reads tokenizer.json, and what stands beside it: tokenizer_config.json (the names of
special tokens, the chat template), special_tokens_map.json, chat_template.jinja,
generation_config.json and config.json (every token that ends a reply).
"""

import hashlib
from pathlib import Path

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import read_json_object
from gptjax.tokenizer.hf_tokenizer import SETTINGS, HFTokenizer
from gptjax.tokenizer.load_tokenizer import AnyTokenizer
from gptjax.tokenizer.tokenizer import Tokenizer

# What ends a document, in this order. Chat models often name the end of a reply as
# their EOS, but were trained on documents with one of these before.
DOCUMENT_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')
# Files beside tokenizer.json, kept for the export: in RUN/tokenizer/original.
FILES = (
    *('tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja'),
    *('added_tokens.json', 'tokenizer.model', 'vocab.json', 'merges.txt'),
)
ORIGINALS = tuple(f'original/{name}' for name in FILES)


def import_tokenizer(
    source: Path, folder: Path, vocab_size: int, template: str | None = 'turns'
) -> AnyTokenizer:
    """Writes RUN/tokenizer (`folder`), and returns the tokenizer.

    A tokenizer of ours that was exported to `source` is taken back as it was.

    Args:
        vocab_size: V of the model.
        template: the one of ours that `source` has. None: it has another, which only
            a tokenizer of tokenizer.json keeps. It keeps none that is 'text', which
            would become the meaning of 'turns'.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer is another model's.
    """
    ours = None if template is None else _read_ours(source)
    if ours is not None:
        tokenizer = Tokenizer(ours)
        _check_size(source, tokenizer.vocab_size, vocab_size, tokenizer.vocab_size)
        storage.write_bytes(folder / 'tokenizer.model', ours)
        return tokenizer
    path = source / 'tokenizer.json'
    if not path.exists():
        raise UserError(
            f'{source} has no tokenizer.json: write one with save_pretrained of '
            'transformers (AutoTokenizer), and copy it there'
        )
    content = path.read_bytes()
    settings = _read_settings(source, content, vocab_size)
    if template == 'text':
        settings['chat_template'] = None
    tokenizer = _check_content(path, content, settings)
    storage.write_bytes(folder / path.name, content)
    for name in ORIGINALS:
        if (original := source / Path(name).name).exists():
            storage.write_bytes(folder / name, original.read_bytes())
    storage.write_json(folder / SETTINGS, settings)
    tokenizer.fingerprint = storage.sha256_of_file(folder / SETTINGS)
    return tokenizer


def _read_ours(source: Path) -> bytes | None:
    path = source / 'tokenizer.model'
    try:
        content = path.read_bytes()
        Tokenizer(content)
    except (FileNotFoundError, RuntimeError, ValueError, IndexError):
        return None
    return content


def _check_content(path: Path, content: bytes, settings: dict) -> HFTokenizer:
    try:
        return HFTokenizer(content, settings)
    except UserError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise UserError(
            f'{path}: a field is missing or wrong ({str(error)[:200]}): copy or '
            'download it again'
        ) from None


def _read_settings(source: Path, content: bytes, vocab_size: int) -> dict:
    """The arguments of `HFTokenizer`, and `sha256` of tokenizer.json."""
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_str(content.decode('utf-8'))
    except Exception as error:  # the library raises no narrower class
        raise UserError(
            f'{source}/tokenizer.json is damaged, or newer than the library tokenizers '
            f'here ({str(error)[:200]}): copy or download it again'
        ) from None
    base = model.get_vocab(with_added_tokens=False)
    largest = max(base.values(), default=-1) + 1
    every = max(model.get_vocab().values(), default=-1) + 1
    _check_size(source, largest, vocab_size, every)
    config = _read(source, 'special_tokens_map.json')
    config |= _read(source, 'tokenizer_config.json')

    names = _read_names(config)
    bos, eos = (
        model.token_to_id(names[name]) if name in names else None
        for name in ('bos_token', 'eos_token')
    )
    start = _added_before(model)
    if not start and config.get('add_bos_token') and bos is not None:
        start = [bos]
    added = model.get_added_tokens_decoder().items()
    specials = {token.content: id for id, token in added if token.special}
    ends = [specials[name] for name in DOCUMENT_ENDS if name in specials]
    document_end = ends[0] if ends else eos
    all_ends = [document_end, eos, *_ends_of_replies(source)]
    eos = [*dict.fromkeys(token for token in all_ends if token is not None)]
    if not eos:
        raise UserError(
            f'{source}/tokenizer_config.json names no eos_token: add the token that '
            'ends a text'
        )
    for token in (*start, *eos):
        if not (isinstance(token, int) and 0 <= token < vocab_size):
            raise UserError(
                f'{source}: a special token has the id {token}, and the model has '
                f'{vocab_size:,} tokens: copy the tokenizer of this model there'
            )
    return dict(
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=vocab_size,
        bos=start[-1] if start else eos[0],
        start=start,
        eos=eos,
        chat_template=read_chat_template(source),
        names=names,
    )


def _read_names(config: dict) -> dict[str, str]:
    """The names of special tokens: {'bos_token': '<s>', 'eos_token': '</s>'}."""
    names = {}
    for key, token in config.items():
        token = token.get('content') if isinstance(token, dict) else token
        if key.endswith('_token') and isinstance(token, str):
            names[key] = token
    return names


def _check_size(source, largest: int, vocab_size: int, every: int) -> None:
    if largest > vocab_size or every < vocab_size // 2:
        raise UserError(
            f'{source}: the tokenizer has {every:,} tokens, and the model '
            f'{vocab_size:,}: copy the tokenizer of this model there'
        )


def _added_before(model) -> list[int]:
    """The tokens that the library puts before a text."""
    plain = model.encode('a', add_special_tokens=False).ids
    whole = model.encode('a', add_special_tokens=True).ids
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            return whole[:place]
    return []


def _ends_of_replies(source: Path) -> list[int]:
    for name in ('generation_config.json', 'config.json'):
        ends = _read(source, name).get('eos_token_id')
        if ends is not None:
            return ends if isinstance(ends, list) else [ends]
    return []


def read_chat_template(source: Path) -> str | None:
    """The Jinja template of a folder, or None."""
    path = source / 'chat_template.jinja'
    if path.exists():
        try:
            return path.read_text('utf-8')
        except UnicodeDecodeError as error:
            raise UserError(f'{path} is not UTF-8 ({error}): copy it again') from None
    template = _read(source, 'tokenizer_config.json').get('chat_template')
    if isinstance(template, list):  # several, by name
        if not all(isinstance(entry, dict) for entry in template):
            raise UserError(
                f'{source}/tokenizer_config.json: chat_template is a list without '
                'names: write the template itself there'
            )
        named = {entry.get('name'): entry.get('template') for entry in template}
        template = named.get('default')
    return template if isinstance(template, str) else None


def _read(source: Path, name: str) -> dict:
    """A JSON object; {} if the folder has no such file."""
    path = source / name
    return read_json_object(path) if path.exists() else {}
