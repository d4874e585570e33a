"""Encodes text as token ids and decodes them: decode(encode(text)) == text.

The model is a SentencePiece model with byte fallback and identity normalisation.
SentencePiece writes a space as '▁' (U+2581), and cannot distinguish a '▁' in the text
from a space. So this character is encoded as its three byte tokens.

Special tokens are control symbols: no text encodes to one, and they decode to ''. A
program inserts them between encoded texts:

    tokens = [t.specials['<|user|>'], *t.encode('Hi!'), t.specials['<|end|>']]
"""

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from gptjax.core.console import UserError

# SentencePiece requires a token for unknown text. With byte fallback no text is
# unknown, so this token is used as padding.
PAD, BOS, EOS = '<pad>', '<bos>', '<eos>'
CHAT_TURNS = ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>')
# The tokens of fill-in-the-middle, which a tokenizer has only for that augmentation.
FILL_IN_THE_MIDDLE = ('<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>')
SPACE = '▁'  # stands for ' ' in SentencePiece


class Tokenizer:
    """A vocabulary.

    Attributes:
        vocab_size: V, including special and byte tokens.
        pad_id, bos_id, eos_id: padding, document start and document end.
        start_ids: what a prompt and a conversation begin with: BOS, or nothing.
        eos_ids: every token that ends a reply.
        chat_template: a Jinja template of conversations, or None.
        specials: id of every special token by name.
        byte_ids: the token of each byte.
        fingerprint: SHA-256 of the model file, hexadecimal.
    """

    kind = 'SentencePiece'

    def __init__(self, model: bytes):
        """Reads the bytes of a model that `train_tokenizer` wrote.

        Raises:
            ValueError: the model lacks our special tokens.
            RuntimeError: the bytes are not a SentencePiece model.
        """
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._model.vocab_size()
        self.specials = {}
        for name in (PAD, BOS, EOS, *CHAT_TURNS, SPACE):
            token = self._model.piece_to_id(name)
            if self._model.id_to_piece(token) != name:
                raise ValueError(f'the model has no token {name}')
            self.specials[name] = token
        del self.specials[SPACE]
        for name in FILL_IN_THE_MIDDLE:
            token = self._model.piece_to_id(name)
            if self._model.id_to_piece(token) == name and self._model.is_control(token):
                self.specials[name] = token
        self.pad_id = self.specials[PAD]
        self.bos_id = self.specials[BOS]
        self.eos_id = self.specials[EOS]
        self.start_ids, self.eos_ids = [self.bos_id], (self.eos_id,)
        self.chat_template = None
        self._bytes = [self._read_bytes(token) for token in range(self.vocab_size)]
        self.byte_ids = [
            self._model.piece_to_id(f'<0x{byte:02X}>') for byte in range(256)
        ]
        self._space_ids = [self.byte_ids[byte] for byte in SPACE.encode()]

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
        """The token ids of `text`, without special tokens.

        A lone surrogate, which is half a character, becomes '?'.
        """
        return self.encode_arrays([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [tokens.tolist() for tokens in self.encode_arrays(texts)]

    def encode_arrays(
        self, texts: Sequence[str], num_threads: int = 1
    ) -> list[np.ndarray]:
        """`encode` of each text as an int32 array, by `num_threads` threads."""
        split = [
            text.encode('utf-8', 'replace').decode().split(SPACE) for text in texts
        ]
        encoded = iter(
            self._model.encode(
                [part for parts in split for part in parts],
                out_type='numpy',
                num_threads=num_threads,
            )
        )
        arrays = []
        for parts in split:
            joined = [next(encoded)]
            for _ in parts[1:]:
                joined += [self._space_ids, next(encoded)]
            arrays.append(np.concatenate(joined).astype(np.int32))
        return arrays

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; invalid UTF-8 becomes '\\ufffd'."""
        return b''.join(self._bytes[token] for token in tokens).decode(
            'utf-8', 'replace'
        )

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token; b'' for a special token."""
        return self._bytes[token]

    def find_token(self, name: str) -> int | None:
        """The id of a special token by name."""
        return self.specials.get(name)

    def read_pieces(self) -> dict[str, tuple[int, float]]:
        """(id, score) of each piece of text, without special tokens and bytes."""
        fixed = {*self.specials.values(), *self.byte_ids}
        return {
            self._bytes[token].decode(): (token, self._model.get_score(token))
            for token in range(self.vocab_size)
            if token not in fixed
        }

    def stream(self, special_tokens: bool = False) -> 'StreamDecoder':
        return StreamDecoder(self, special_tokens)

    def _read_bytes(self, token: int) -> bytes:
        if self._model.is_control(token) or self._model.is_unknown(token):
            return b''
        text = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes.fromhex(text[3:5])  # '<0x41>'
        return text.replace(SPACE, ' ').encode()


class StreamDecoder:
    """Decodes tokens one at a time, and never returns part of a character.

    The joined results of `push` and `finish` equal `decode` of all pushed tokens. With
    `special_tokens` they also have the names of special tokens: 'Hi!<|user|>'.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: bool = False):
        self._tokenizer = tokenizer
        names = tokenizer.specials.items() if special_tokens else ()
        self._special_names = {token: name.encode() for name, token in names}
        self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, token: int) -> str:
        """The text that `token` completes; '' while a character is unfinished."""
        content = self._special_names.get(token) or self._tokenizer.bytes_of(token)
        return self._utf8.decode(content)

    @property
    def unfinished(self) -> bool:
        """Whether the bytes so far end within a character."""
        return bool(self._utf8.getstate()[0])

    def finish(self) -> str:
        """Returns '\\ufffd' if the last character is unfinished, else ''."""
        return self._utf8.decode(b'', final=True)
