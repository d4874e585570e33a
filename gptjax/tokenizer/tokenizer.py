"""Text to token ids and back, without loss: decode(encode(text)) == text.

A SentencePiece model with byte fallback and identity normalisation. SentencePiece
writes a space as '▁' (U+2581), so it cannot tell a '▁' in the text from a space:
here such a character goes through its three byte tokens instead.

Special tokens are control symbols: no text ever encodes to one, whatever it spells,
and all decode to ''. A program puts them between encoded texts:

    tokens = [t.specials['<|user|>'], *t.encode('Hi!'), t.specials['<|end|>']]
"""

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from gptjax.core.console import UserError

# SentencePiece insists on a piece for the unknown. With byte fallback nothing is,
# so padding takes its place.
PAD, BOS, EOS = '<pad>', '<bos>', '<eos>'
CHAT_TURNS = ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>')
SPACE = '▁'  # how a piece spells ' '


class Tokenizer:
    """A vocabulary and its two directions.

    Attributes:
        vocab_size: V, special and byte tokens included.
        pad_id, bos_id, eos_id: padding, document start and document end.
        specials: id of every special token by its name.
        fingerprint: SHA-256 of the model file, hexadecimal.
    """

    def __init__(self, model: bytes):
        """Takes the bytes of a model that `train_tokenizer` wrote.

        Raises:
            ValueError: another program's model, without our special tokens.
            RuntimeError: no SentencePiece model.
        """
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._pieces.vocab_size()
        self.specials = {}
        for name in (PAD, BOS, EOS, *CHAT_TURNS, SPACE):
            token = self._pieces.piece_to_id(name)
            if self._pieces.id_to_piece(token) != name:
                raise ValueError(f'the model has no token {name}')
            self.specials[name] = token
        del self.specials[SPACE]
        self.pad_id = self.specials[PAD]
        self.bos_id = self.specials[BOS]
        self.eos_id = self.specials[EOS]
        self._bytes = [self._read_bytes(token) for token in range(self.vocab_size)]
        self._space_ids = [
            self._pieces.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()
        ]

    @classmethod
    def load(cls, path: Path | str) -> 'Tokenizer':
        """Reads `tokenizer.model`."""
        try:
            return cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(
                f'{path}: no such file: make it with the stage `tokenizer`'
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f'{path}: not a tokenizer of this project ({error}): delete its folder '
                'and run the stage `tokenizer`'
            ) from None

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, with no special tokens around them.

        A lone surrogate, which is half a character and no text, becomes '?'.
        """
        return self.encode_arrays([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [tokens.tolist() for tokens in self.encode_arrays(texts)]

    def encode_arrays(
        self, texts: Sequence[str], num_threads: int = 1
    ) -> list[np.ndarray]:
        """`encode` of each text as int32 arrays, in order, on `num_threads` threads."""
        split = [
            text.encode('utf-8', 'replace').decode().split(SPACE) for text in texts
        ]
        parts = [part for parts in split for part in parts]
        encoded = iter(
            self._pieces.encode(parts, out_type='numpy', num_threads=num_threads)
        )
        return [self._join([next(encoded) for _ in parts]) for parts in split]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; special tokens are '', broken UTF-8 is '\\ufffd'."""
        return b''.join(self._bytes[token] for token in tokens).decode(
            'utf-8', 'replace'
        )

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; b'' for a special one."""
        return self._bytes[token]

    def stream(self) -> 'StreamDecoder':
        """A decoder for tokens that come one at a time."""
        return StreamDecoder(self)

    def _join(self, parts: list[np.ndarray]) -> np.ndarray:
        """The encoded parts with the bytes of '▁' between them."""
        for place in range(1, len(parts)):
            parts[place] = np.append(self._space_ids, parts[place])
        return np.concatenate(parts).astype(np.int32)

    def _read_bytes(self, token: int) -> bytes:
        if self._pieces.is_control(token) or self._pieces.is_unknown(token):
            return b''
        piece = self._pieces.id_to_piece(token)
        if self._pieces.is_byte(token):
            return bytes.fromhex(piece[3:5])  # '<0x41>'
        return piece.replace(SPACE, ' ').encode()


class StreamDecoder:
    """Decodes tokens as they come and never emits part of a character.

    The strings that `push` and then `finish` return, joined, are `decode` of the
    pushed tokens.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, token: int) -> str:
        """The text that `token` completes, '' while a character is unfinished."""
        return self._utf8.decode(self._tokenizer.bytes_of(token))

    @property
    def unfinished(self) -> bool:
        """Whether the bytes so far end within a character."""
        return bool(self._utf8.getstate()[0])

    def finish(self) -> str:
        """What is left: '' or one '\\ufffd' for a character that never ended."""
        return self._utf8.decode(b'', final=True)
