"""Answers of /v1/chat/completions: whole ones, and the chunks of a stream."""

from gptjax.infer.request import Reply, Update
from gptjax.serve.protocol import Call
from gptjax.serve.tokens import chat_logprob

PREFIX = 'chatcmpl-'
WHOLE = 'chat.completion'
PART = 'chat.completion.chunk'


def opening(call: Call, index: int) -> list[dict]:
    """The choices of the chunks before the first token."""
    return [_delta(index, dict(role='assistant', content='', refusal=None))]


def parts(call: Call, index: int, update: Update, before: int) -> list[dict]:
    """The choices of the chunks that tell of `update`.

    `before` is how many characters the reply had; completions need it.
    """
    told = []
    if update.text or (call.logprobs and update.tokens):
        logprobs = _logprobs(call, update.tokens)
        told.append(_delta(index, dict(content=update.text), logprobs=logprobs))
    if update.finish:
        told.append(_delta(index, {}, finish_reason=update.finish))
    return told


def choice(call: Call, index: int, reply: Reply) -> dict:
    """A choice of a whole answer."""
    message = dict(role='assistant', content=reply.text, refusal=None)
    return dict(
        index=index,
        message=message,
        logprobs=_logprobs(call, reply.tokens),
        finish_reason=reply.finish,
    )


def _delta(index, delta, logprobs=None, finish_reason=None):
    return dict(
        index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
    )


def _logprobs(call, tokens):
    if not call.logprobs:
        return None
    tokenizer = call.model.tokenizer
    content = [chat_logprob(tokenizer, token) for token in tokens]
    return dict(content=content, refusal=None)
