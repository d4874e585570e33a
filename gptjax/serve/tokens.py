"""Tokens as the API shows them."""

from gptjax.infer.request import Token

LOWEST = -9999.0  # stands for -inf, which is no JSON


def spell(tokenizer, token: int) -> str:
    """A token's text; its name if it is special, its bytes if it is no whole text.

    As 'Hi', '<eos>', 'bytes:\\\\xe2\\\\x96'.
    """
    content = tokenizer.bytes_of(token)
    if not content:
        for name, special in tokenizer.specials.items():
            if special == token:
                return name
    try:
        return content.decode()
    except UnicodeDecodeError:
        return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in content)


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def chat_logprob(tokenizer, token: Token) -> dict:
    """An entry of a chat choice's `logprobs.content`."""
    entry = _entry(tokenizer, token.id, token.logprob)
    top = [_entry(tokenizer, other, logprob) for other, logprob in token.top]
    return dict(entry, top_logprobs=top)


def _entry(tokenizer, token, logprob):
    content = tokenizer.bytes_of(token)
    return dict(
        token=spell(tokenizer, token),
        logprob=finite(logprob),
        bytes=list(content) or None,
    )


def text_logprobs(tokenizer, tokens: tuple[Token, ...], start: int = 0) -> dict:
    """A completion choice's `logprobs`.

    Args:
        tokenizer: of the model.
        tokens: in order. One without a log-probability (a prompt's first) has null.
        start: the characters before the first.
    """
    stream = tokenizer.stream()
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(stream.push(token.id))
    return dict(
        tokens=[spell(tokenizer, token.id) for token in tokens],
        token_logprobs=[
            None if token.logprob is None else finite(token.logprob) for token in tokens
        ],
        top_logprobs=[
            None if token.logprob is None else _top(tokenizer, token)
            for token in tokens
        ],
        text_offset=offsets,
    )


def _top(tokenizer, token):
    """The alternatives and the token itself; of two with one text, the likelier."""
    top = {}
    for other, logprob in (*token.top, (token.id, token.logprob)):
        top.setdefault(spell(tokenizer, other), finite(logprob))
    return top
