"""A tokenizer of Hugging Face's `tokenizer.json`, by the library `tokenizers`.

It has the methods of our `Tokenizer`. Two kinds are read: byte-level BPE (GPT-2, Llama
3, Qwen), and SentencePiece models in this form (Llama 2, Gemma). Special tokens are
never read out of a text: '<|im_end|>' in a user's message is encoded as its characters.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gptjax.core.console import UserError
from gptjax.tokenizer.tokenizer import SPACE, StreamDecoder


class HFTokenizer:
    """A vocabulary; the attributes are those of `Tokenizer`, and

    vocab_size: V of the model, which may be larger than the tokenizer's.
    bos_id: starts a text; the token that ends one if there is none of its own.
    eos_ids: every token that ends a reply.
    chat_template: the Jinja template of conversations, or None.
    """

    def __init__(self, content: bytes, settings: dict):
        """
        Args:
            content: of tokenizer.json.
            settings: `vocab_size`, the ids `bos`, `eos` (a list) and `pad` or None, and
                `chat_template`.
        """
        import tokenizers

        self._model = tokenizers.Tokenizer.from_str(content.decode('utf-8'))
        self._model.no_padding()
        self._model.no_truncation()
        self._model.encode_special_tokens = True  # as text, not as special tokens
        described = json.loads(content)
        added = described.get('added_tokens') or []
        self.specials = {a['content']: a['id'] for a in added if a['special']}
        self.eos_ids = tuple(settings['eos'])
        self.eos_id = self.eos_ids[0]
        self.bos_id = self.eos_id if settings['bos'] is None else settings['bos']
        self.pad_id = self.eos_id if settings['pad'] is None else settings['pad']
        self.chat_template = settings['chat_template']
        last = max(self._model.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(settings['vocab_size'], last + 1)
        self.fingerprint = hashlib.sha256(
            content + json.dumps(settings, sort_keys=True).encode()
        ).hexdigest()
        self._strips_space = '"Strip"' in json.dumps(described.get('decoder'))
        self._bytes = _read_vocabulary(described, self._model, self.vocab_size)
        for token in self.specials.values():
            self._bytes[token] = b''

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; half a surrogate pair becomes '?'."""
        repaired = [text.encode('utf-8', 'replace').decode() for text in texts]
        encoded = self._model.encode_batch_fast(repaired, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_arrays(
        self, texts: Sequence[str], num_threads: int = 1
    ) -> list[np.ndarray]:
        """`encode` of each text as an int32 array; the library chooses the threads."""
        del num_threads
        return [np.asarray(ids, np.int32) for ids in self.encode_batch(texts)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; invalid UTF-8 becomes '\\ufffd'."""
        stream = self.stream()
        return ''.join(stream.push(token) for token in tokens) + stream.finish()

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; b'' for a special token."""
        return self._bytes[token]

    def stream(self, special_tokens: bool = False) -> StreamDecoder:
        return StreamDecoder(self, special_tokens, self._strips_space)


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
    if name in added:
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
SETTINGS = 'tokenizer_settings.json'


def load_hf_tokenizer(folder: Path) -> HFTokenizer:
    """Reads tokenizer.json and our settings beside it."""
    settings = json.loads((folder / SETTINGS).read_text('utf-8'))
    return HFTokenizer((folder / 'tokenizer.json').read_bytes(), settings)
