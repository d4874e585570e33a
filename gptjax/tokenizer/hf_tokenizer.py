"""A tokenizer of Hugging Face's `tokenizer.json`, by the library `tokenizers`.

It has the methods of our `Tokenizer`. Two kinds are read: byte-level BPE (GPT-2, Llama
3, Qwen), and SentencePiece models in this form (Llama 2, Gemma). Special tokens are
never read out of a text: '<|im_end|>' in a user's message is encoded as its characters.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.tokenizer.tokenizer import SPACE, StreamDecoder

SETTINGS = 'tokenizer_settings.json'
# A token that a chat template writes between messages is special, even where
# tokenizer.json does not say so: DeepSeek's '<｜User｜>'.
CONTROL = re.compile('<([|｜]).*\\1>')
# White space in the library, for special tokens that swallow it.
WHITE_SPACE = '[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*'


class Part(NamedTuple):
    """A special token, or the text between two of them."""

    text: str  # of a special token: its name
    start: int  # in the whole text
    end: int
    token: int | None = None  # the id of a special token


class HFTokenizer:
    """A vocabulary; the attributes are those of `Tokenizer`.

    vocab_size: V of the model, which may be larger than the tokenizer's.
    bos_id, eos_id: start and end of a document. A model without a BOS has learned that
        a document begins after the end of another one, so both are the same token.
    pad_id: a token that no text has, which need not be the padding of other libraries.
    names: of special tokens, by what they are for.
    """

    kind = 'tokenizer.json'

    def __init__(self, content: bytes, settings: dict):
        """
        Args:
            content: of tokenizer.json.
            settings: `vocab_size`; the ids `bos`, `start` and `eos` (two lists), for
                `bos_id`, `start_ids` and `eos_ids`, whose first is `eos_id`;
                `chat_template` or None, and `names`, which it may write, as
                {'bos_token': '<s>'}.
        """
        import tokenizers

        described = json.loads(content)
        self.vocab_size = settings['vocab_size']
        self.chat_template, self.names = settings['chat_template'], settings['names']
        changed = _change_added_tokens(described, self.vocab_size, self.chat_template)
        text = json.dumps(described) if changed else content.decode('utf-8')
        self._model = _make_model(tokenizers, text)
        self._inner_text, self._inner_model = text, self._model
        if inner := _never_prepend(described.get('pre_tokenizer')):
            self._inner_text = json.dumps({**described, 'pre_tokenizer': inner})
            self._inner_model = _make_model(tokenizers, self._inner_text)
        self._added = described.get('added_tokens') or []
        self.specials = {a['content']: a['id'] for a in self._added if a['special']}
        self.bos_id, self.start_ids = settings['bos'], list(settings['start'])
        self.eos_ids = tuple(settings['eos'])
        self.eos_id = self.eos_ids[0]
        decoder = json.dumps(described.get('decoder'))
        self._strips_space = '"Strip"' in decoder or '"Metaspace"' in decoder
        self._bytes = _read_vocabulary(described, self._model, self.vocab_size)
        for token in self.specials.values():
            self._bytes[token] = b''
        self.pad_id = self._choose_padding()

    @classmethod
    def load(cls, path: Path) -> 'HFTokenizer':
        """Reads `SETTINGS` and the tokenizer.json beside it."""
        content = path.with_name('tokenizer.json').read_bytes()
        settings = storage.parse_undamaged(path.read_bytes()) or {}
        if settings.get('sha256') != hashlib.sha256(content).hexdigest():
            raise UserError(
                f'{path.parent}: tokenizer.json or {SETTINGS} is damaged: import or '
                'copy the model again'
            )
        tokenizer = cls(content, settings)
        tokenizer.fingerprint = storage.sha256_of_file(path)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; half a surrogate pair becomes '?'."""
        return _encode(self._model, texts)

    def encode_arrays(
        self, texts: Sequence[str], num_threads: int = 1
    ) -> list[np.ndarray]:
        """`encode` of each text as an int32 array; the library chooses the threads."""
        del num_threads
        return [np.asarray(ids, np.int32) for ids in self.encode_batch(texts)]

    def split_specials(self, text: str) -> list[Part]:
        """The special tokens that a text names, and the texts between them.

        '<|user|>Hi<|end|>' -> 7 at 0 to 8, 'Hi' at 8 to 10, 8 at 10 to 17
        """
        parts, end = [], 0
        for match in self._special_pattern.finditer(text):
            parts.append(Part(text[end : match.start()], end, match.start()))
            name = match[0]
            if name not in self.specials:  # with the white space that it swallows
                name = name.strip()
            end = match.end()
            parts.append(Part(name, *match.span(), self.specials[name]))
        parts.append(Part(text[end:], end, len(text)))
        return [part for part in parts if part.end > part.start]

    def encode_parts(self, parts: Sequence[Part]) -> list[list[int]]:
        """The ids of each part, in which texts have no special tokens.

        Joined, they are the library's ids of the whole text with special tokens.
        """
        first = [p.text for p in parts if p.token is None and not p.start]
        later = [p.text for p in parts if p.token is None and p.start]
        encoded = iter(_encode(self._model, first) + _encode(self._inner_model, later))
        return [next(encoded) if p.token is None else [p.token] for p in parts]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; invalid UTF-8 becomes '\\ufffd'."""
        content = b''.join(self._bytes[token] for token in tokens)
        if self._strips_space:  # Llama 2 puts a space before every text
            content = content.removeprefix(b' ')
        return content.decode('utf-8', 'replace')

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; b'' for a special token."""
        return self._bytes[token]

    def find_token(self, name: str) -> int | None:
        """The id of an added token by name."""
        return next((a['id'] for a in self._added if a['content'] == name), None)

    def stream(self, special_tokens: bool = False) -> StreamDecoder:
        """A decoder of tokens that continue a text: it strips no space."""
        return StreamDecoder(self, special_tokens)

    @cached_property
    def _special_pattern(self):
        patterns = [
            (WHITE_SPACE if token['lstrip'] else '')
            + re.escape(token['content'])
            + (WHITE_SPACE if token['rstrip'] else '')
            for token in sorted(self._added, key=lambda token: -len(token['content']))
            if token['special']
        ]
        return re.compile('|'.join(patterns) or '(?!)')

    def _choose_padding(self) -> int:
        """A byte that UTF-8 never has, or else a special or unused token."""
        kept = {self.bos_id, *self.start_ids, *self.eos_ids}
        unused = (token for token, text in enumerate(self._bytes) if not text)
        byte = (token for token, text in enumerate(self._bytes) if text == b'\xff')
        for token in (*byte, *unused):
            if token not in kept:
                return token
        raise UserError('tokenizer.json has no token for padding: use another model')


def _make_model(tokenizers, text: str):
    model = tokenizers.Tokenizer.from_str(text)
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True  # as text, not as special tokens
    return model


def _encode(model, texts: Sequence[str]) -> list[list[int]]:
    repaired = [text.encode('utf-8', 'replace').decode() for text in texts]
    encoded = model.encode_batch_fast(repaired, add_special_tokens=False)
    return [encoding.ids for encoding in encoded]


def _never_prepend(pre_tokenizer: dict | None) -> dict | None:
    """For text within a document: the pre-tokenizer without a space before the first
    word, or None if it writes none or writes it everywhere."""
    pre_tokenizer = copy.deepcopy(pre_tokenizer or {})
    parts = pre_tokenizer.get('pretokenizers') or [pre_tokenizer]
    changed = [part for part in parts if part.get('prepend_scheme') == 'first']
    for part in changed:
        part['prepend_scheme'] = 'never'
    return pre_tokenizer if changed else None


def _change_added_tokens(described: dict, size: int, template: str | None) -> bool:
    """Drops added tokens that the model has not; marks those of `CONTROL` as special.

    Gemma 3 has a token for pictures, which its models of text alone have not.
    """
    added = described.get('added_tokens') or []
    kept = [token for token in added if token['id'] < size]
    marked = [
        token
        for token in kept
        if not token['special']
        and CONTROL.fullmatch(token['content'])
        and token['content'] in (template or '')
    ]
    for token in marked:
        token['special'] = True
    described['added_tokens'] = kept
    return bool(marked) or len(kept) < len(added)


def _read_vocabulary(described: dict, model, size: int) -> list[bytes]:
    """The bytes of each token."""
    decoder = json.dumps(described.get('decoder'))
    if '"ByteLevel"' in decoder:
        of_token = _byte_level
    elif '"ByteFallback"' in decoder:
        of_token = _sentencepiece
    else:
        raise UserError(
            'tokenizer.json: its decoder is neither byte-level BPE nor a SentencePiece '
            'model with byte fallback, so no text can be streamed exactly: use another '
            'model'
        )
    added = {token['content'] for token in described.get('added_tokens') or []}
    names = {id: name for name, id in model.get_vocab(with_added_tokens=True).items()}
    return [of_token(names.get(token, ''), added) for token in range(size)]


def _byte_level(name: str, added: set[str]) -> bytes:
    if name in added or not BYTE_OF.keys() >= {*name}:
        return name.encode()
    return bytes(BYTE_OF[character] for character in name)


def _sentencepiece(name: str, added: set[str]) -> bytes:
    if re.fullmatch('<0x[0-9A-F]{2}>', name):
        return bytes.fromhex(name[3:5])
    return name.replace(SPACE, ' ').encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, others from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_characters()
