"""Replies that follow a JSON schema: llguidance computes which tokens may come next."""

import json
import threading
from collections.abc import Sequence

import numpy as np

from gptjax.serve.api_errors import ApiError, bad_request
from gptjax.serve.schemas import ResponseFormat
from gptjax.tokenizer.load_tokenizer import AnyTokenizer

# No line breaks: a small model would fill a reply with them, and the stop string of a
# chat may be an empty line.
LAYOUT = dict(whitespace_flexible=False, item_separator=', ', key_separator=': ')

# All replies wait while llguidance computes a mask between two steps.
PARSER_LIMITS = dict(
    step_max_items=20_000, max_lexer_states=50_000, verbose_errors=False
)


class JsonGrammar:
    """Allows the tokens of one JSON value; an `infer.request.Grammar`.

    A schema can prove too complex in the middle of a reply. Then this reply ends, and
    `failure` is the reason; other replies continue.
    """

    def __init__(self, matcher, vocab_size: int, eos_ids: Sequence[int]):
        self._matcher = matcher
        self._words = (vocab_size + 31) // 32
        self._only_eos = np.zeros(self._words, np.uint32)
        for token in eos_ids:
            self._only_eos[token // 32] |= 1 << token % 32

    @property
    def failure(self) -> str | None:
        if not self._matcher.is_error():
            return None
        return ' '.join(self._matcher.get_error().split())[:300]

    def allowed(self) -> np.ndarray:
        """uint32 (ceil(V / 32),), one bit a token, with EOS where the value may end."""
        if not self._matcher.is_error():
            mask = np.frombuffer(self._matcher.compute_bitmask(), '<u4')
        if self._matcher.is_error():
            return self._only_eos
        mask = mask[: self._words]
        # llguidance knows one EOS; where it may come, so may the others.
        return mask | self._only_eos if (mask & self._only_eos).any() else mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def ended(self) -> bool:
        return self._matcher.is_stopped()


class GrammarCompiler:
    """Compiles JSON schemas to grammars for the tokens of one tokenizer."""

    def __init__(self, tokenizer: AnyTokenizer):
        import llguidance

        self._llguidance = llguidance
        self._sizes = tokenizer.vocab_size, tokenizer.eos_ids
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=tokenizer.vocab_size,
            eos_token=tokenizer.eos_id,
        )
        self._limits = llguidance.LLParserLimits(**PARSER_LIMITS)
        self._lock = threading.Lock()

    def compile_schema(self, schema: dict, count: int) -> list[JsonGrammar]:
        """`count` equal grammars, one for each reply.

        Raises ApiError 400 if the schema is wrong, impossible or too complex.
        """
        Matcher = self._llguidance.LLMatcher
        try:
            text = json.dumps(schema, allow_nan=False)
            source = Matcher.grammar_from_json_schema(text, overrides=LAYOUT)
        except ValueError as error:
            raise _refused(str(error)) from error
        # Deriving the lexer of some schemas takes seconds: one at a time.
        with self._lock:
            matcher = Matcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if not matcher.is_error():
                matcher.compute_bitmask()
            if matcher.is_error():
                raise _refused(matcher.get_error())
        copies = [matcher, *(matcher.deep_copy() for _ in range(count - 1))]
        return [JsonGrammar(copy, *self._sizes) for copy in copies]


class _Vocabulary:
    """A tokenizer with llguidance's interface: the bytes of each token."""

    def __init__(self, tokenizer: AnyTokenizer):
        names = {token: name.encode() for name, token in tokenizer.specials.items()}
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id
        self.special_token_ids = sorted(names)
        self.tokens = [
            names.get(token) or tokenizer.bytes_of(token)
            for token in range(tokenizer.vocab_size)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode('utf-8', 'replace')
        return self._encode(text)


def schema_of_format(response_format: ResponseFormat | None) -> dict | None:
    """The JSON schema that `response_format` asks for; None for text."""
    if response_format is None:
        return None
    kind, json_schema = response_format.type, response_format.json_schema
    if (kind == 'json_schema') != (json_schema is not None):
        reason = 'it is missing' if json_schema is None else f'type={kind} takes none'
        raise bad_request('response_format.json_schema', reason)
    if json_schema is not None:
        return json_schema.schema_
    return dict(type='object') if kind == 'json_object' else None


def _refused(reason: str) -> ApiError:
    reason = ' '.join(reason.split())[:300]
    return bad_request(
        'response_format.json_schema.schema',
        f'no reply can follow it: {reason}',
        'invalid_json_schema',
    )
