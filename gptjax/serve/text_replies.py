"""Answers of /v1/completions: whole ones, and the chunks of a stream."""

from gptjax.infer.request import Reply, Token, Update
from gptjax.serve.protocol import Call
from gptjax.serve.tokens import text_logprobs

PREFIX = 'cmpl-'
WHOLE = PART = 'text_completion'


def opening(call: Call, index: int) -> list[dict]:
    """The prompt, where it is to be echoed; its tokens come with the first update."""
    if not call.texts or call.logprobs:
        return []
    return [_choice(index, call.texts[index])]


def parts(call: Call, index: int, update: Update, before: int) -> list[dict]:
    """The choices of the chunks that tell of `update`; `before`: the reply's length."""
    told = []
    if call.texts and call.logprobs and update.prompt is not None:
        text = call.texts[index]
        told.append(_choice(index, text, _logprobs(call, update.prompt, 0)))
    if update.text or update.finish or (call.logprobs and update.tokens):
        start = before + (len(call.texts[index]) if call.texts else 0)
        logprobs = _logprobs(call, _with_ending(update), start)
        told.append(_choice(index, update.text, logprobs, update.finish))
    return told


def choice(call: Call, index: int, reply: Reply) -> dict:
    """A choice of a whole answer."""
    text, tokens = reply.text, _with_ending(reply)
    if call.texts:
        text, tokens = call.texts[index] + text, (*(reply.prompt or ()), *tokens)
    return _choice(index, text, _logprobs(call, tokens, 0), reply.finish)


def _with_ending(told: Update | Reply) -> tuple[Token, ...]:
    """The tokens and the one that ended the reply: of n drawn ones n are listed.

    lm-evaluation-harness has one drawn after a prompt, and leaves out the last.
    """
    return told.tokens if told.ending is None else (*told.tokens, told.ending)


def _choice(index, text, logprobs=None, finish_reason=None):
    return dict(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)


def _logprobs(call, tokens, start):
    if not call.logprobs:
        return None
    return text_logprobs(call.model.tokenizer, tokens, start)
