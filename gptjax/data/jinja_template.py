"""Conversations in the Jinja template of an imported model, as tokens with a mask.

The template decides what stands around messages. Its special tokens become tokens; the
names of special tokens in messages stay text. For this, `Guard` replaces a character of
such names by half a surrogate pair before rendering, which no text has:

    content 'a<|end|>' -> '<|user|>a\\ud800|end|><|end|>' -> only the last is a token

Which tokens a model is trained on is found by rendering:

    the prompt         <|user|>Hi<|end|>\\n<|bot|>
    with the reply     <|user|>Hi<|end|>\\n<|bot|>Hello!<|end|>\\n
    is trained on                               Hello!<|end|>

So each has to be a prefix of the next, and of the whole conversation. A template with
`{% generation %}` tells it itself.
"""

import functools
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from gptjax.core.console import UserError
from gptjax.data.render_jinja import GENERATION_BEGINS, GENERATION_ENDS
from gptjax.data.render_process import PROCESS, RefusedMessages
from gptjax.tokenizer.hf_tokenizer import Part

FIRST_HIDDEN = 0xD800  # half surrogates from here stand for characters of names
CUT = '\udffd '  # put after a message that is not finished; templates strip the space
GENERATION = re.compile(r'\{%[-+]?\s*generation\b')
MAX_DEPTH = 100  # of lists and objects in a message
EXAMPLE = 'What is it?'


class UnstableTemplate(RefusedMessages):
    """The rendering of the first messages is not how that of all messages begins."""


class Piece(NamedTuple):
    """The tokens of a part of a rendering."""

    tokens: list[int]
    start: int  # in the rendering
    end: int
    special: bool
    before: str = ''  # the text that was encoded together with this piece, before it


# ---- What chat_template.py calls


def encode_conversation(
    messages: Sequence[dict], tokenizer, unfinished: bool = False
) -> tuple[list[int], list[bool]]:
    """`chat_template.encode_conversation` by the template of the tokenizer.

    The tokens are those of the rendering of all messages. Only if a token would span
    the end of a prompt and the beginning of a reply that is trained on, it is divided
    there, since a prompt ends there when the model is used.

    Raises:
        RefusedMessages: the template refuses the messages.
        UnstableTemplate: there are replies whose place cannot be found.
        UserError: the template needs too much memory or time.
    """
    replies = [
        number
        for number, message in enumerate(messages)
        if message['role'] == 'assistant' and message.get('train', True)
    ]
    if GENERATION.search(tokenizer.chat_template):
        return _encode_marked(messages, tokenizer, unfinished)
    last = len(messages) - 1
    renders = [_variables(messages, unfinished=unfinished)]
    renders.append(
        _variables(messages, ends=[n for n in replies if n < last or not unfinished])
    )
    for number in replies:
        renders.append(_variables(messages[:number], True))
        if number < last:
            renders.append(_variables(messages[: number + 1]))
    text, marked, *others = _render(tokenizer, renders)
    text = _cut_off(text) if unfinished else text
    specials = _special_ends(text, tokenizer)
    # The number of special tokens before the end of each reply's content.
    places = [
        len(_special_ends(before, tokenizer))
        for before in accumulate(marked.split(CUT[0])[:-1])
    ]
    spans = []  # of replies with their ends
    for place, number in enumerate(replies):
        prompt = others.pop(0)
        whole = others.pop(0) if number < last else text
        end = len(whole)
        if unfinished and number == last:
            pass
        elif messages[number].get('tool_calls') or len(places) != len(replies):
            end = max(_special_ends(whole, tokenizer), default=end)
        elif places[place] < len(specials):
            end = min(specials[places[place]], end)
        stays = whole.startswith(prompt) and text[:end] == whole[:end]
        if not stays or end < len(prompt):
            raise UnstableTemplate(
                'the chat template writes a reply, or what is before it, in another '
                'way when other messages follow, so it is not known what to train on: '
                'mark replies in it by {% generation %} … {% endgeneration %}'
            )
        spans.append((len(prompt), end))
    return _encode_spans(text, spans, tokenizer)


def encode_prompt(
    messages: Sequence[dict],
    tokenizer,
    continue_last: bool = False,
    tools: Sequence[dict] | None = None,
) -> list[int]:
    """`chat_template.encode_prompt`; `tools` are descriptions of functions."""
    variables = _variables(messages, not continue_last, continue_last, tools)
    (text,) = _render(tokenizer, [variables])
    if continue_last:
        text = _cut_off(text)
    text = _remove_marks(text)[0]
    return [token for piece in _encode(text, (), tokenizer) for token in piece.tokens]


@functools.lru_cache(maxsize=16)
def end_tokens(tokenizer) -> tuple[int, ...]:
    """The special token that ends a reply, if the template writes one."""
    messages = [
        dict(role='user', content=EXAMPLE),
        dict(role='assistant', content=EXAMPLE),
    ]
    try:
        tokens, trained = encode_conversation(messages, tokenizer)
    except UserError:
        return ()
    reply = [token for token, kept in zip(tokens, trained, strict=True) if kept]
    ends = {*tokenizer.specials.values()}
    return (reply[-1],) if reply and reply[-1] in ends else ()


@functools.lru_cache(maxsize=16)
def beginning_of_reply(tokenizer) -> list[int]:
    """The tokens that stand before a reply, after the message that it answers."""
    messages = [dict(role='user', content=EXAMPLE)]
    prompt = encode_prompt(messages, tokenizer)
    (text,) = _render(tokenizer, [_variables(messages)])
    without = [t for piece in _encode(text, (), tokenizer) for t in piece.tokens]
    return prompt[len(without) :] if prompt[: len(without)] == without else []


# ---- From a rendering to tokens


def _encode_marked(messages, tokenizer, unfinished):
    """`encode_conversation` by the template's generation markers."""
    (text,) = _render(tokenizer, [_variables(messages, unfinished=unfinished)])
    if unfinished:
        text = _cut_off(text)
    text, spans = _remove_marks(text)
    replies = [message for message in messages if message['role'] == 'assistant']
    if len(replies) != len(spans):
        raise RefusedMessages(
            f'the chat template marks {len(spans)} parts by {{% generation %}}, and '
            f'there are {len(replies)} replies: mark each reply once'
        )
    spans = [
        span
        for span, message in zip(spans, replies, strict=True)
        if message.get('train', True)
    ]
    return _encode_spans(text, spans, tokenizer)


def _encode_spans(text, spans, tokenizer):
    """(tokens, whether each is in a span)."""
    tokens, trained = [], []
    for piece in _encode(text, [cut for span in spans for cut in span], tokenizer):
        inside = any(start <= piece.start < end for start, end in spans)
        tokens += piece.tokens
        trained += [inside] * len(piece.tokens)
    return tokens, trained


def _special_ends(text: str, tokenizer) -> list[int]:
    """Where the special tokens of a rendering end."""
    parts = tokenizer.split_specials(text)
    return [part.end for part in parts if part.token is not None]


def _encode(text: str, cuts: Sequence[int], tokenizer) -> list[Piece]:
    """The pieces of a rendering, so that no text piece has a cut within it."""
    guard = _guard(tokenizer)
    parts = [
        part._replace(text=guard.show(part.text))
        for part in tokenizer.split_specials(text)
    ]
    pieces = [
        Piece(ids, part.start, part.end, part.token is not None)
        for part, ids in zip(parts, tokenizer.encode_parts(parts), strict=True)
    ]
    for cut in sorted(set(cuts)):
        for place, piece in enumerate(pieces):
            if piece.start < cut < piece.end and not piece.special:
                shown = guard.show(text[piece.start : piece.end])
                pieces[place : place + 1] = _cut_piece(piece, shown, cut, tokenizer)
                break
    return pieces


def _cut_piece(piece: Piece, text: str, cut: int, tokenizer) -> list[Piece]:
    """The pieces before and after `cut`; one token over the cut is divided."""
    size = cut - piece.start

    def encode(text, start):
        (ids,) = tokenizer.encode_parts([Part(text, start, start + len(text))])
        return ids

    begin = piece.start - len(piece.before)
    known = len(encode(piece.before, begin)) if piece.before else 0
    head = encode(piece.before + text[:size], begin)[known:]
    if piece.tokens[: len(head)] == head:
        tail, before = piece.tokens[len(head) :], piece.before + text[:size]
    else:
        tail, before = encode(text[size:], cut), ''
    return [
        piece._replace(tokens=head, end=cut),
        piece._replace(tokens=tail, start=cut, before=before),
    ]


def _cut_off(text: str) -> str:
    """The rendering up to the end of a message that is not finished."""
    place = text.rfind(CUT[0])
    if place < 0:
        raise UserError(
            'the chat template leaves out the end of the last message, so it cannot '
            'be continued: send it as a message of the user'
        )
    kept = text[:place]
    return kept if text[place:].startswith(CUT) else kept.rstrip()


def _remove_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of `{% generation %}`, and what they enclosed."""
    parts = re.split(f'([{GENERATION_BEGINS}{GENERATION_ENDS}])', text)
    spans, place, begin = [], 0, 0
    for part in parts:
        if part == GENERATION_BEGINS:
            begin = place
        elif part == GENERATION_ENDS:
            spans.append((begin, place))
            begin = place
        else:
            place += len(part)
    if parts[-2:-1] == [GENERATION_BEGINS]:  # cut off within a reply
        spans.append((begin, place))
    return ''.join(part for part in parts[::2]), spans


# ---- The texts of messages


class Guard:
    """Hides the names of special tokens in messages, and shows them again."""

    def __init__(self, names: Sequence[str]):
        names = [name for name in names if name]
        edges = sorted({name[0] for name in names} | {name[-1] for name in names})
        self._hidden = {c: chr(FIRST_HIDDEN + i) for i, c in enumerate(edges)}
        self._shown = {ord(mark): c for c, mark in self._hidden.items()}
        # The first character of a name, before the rest of it: '<(?=s>|/s>)'.
        rests = {c: [n[1:] for n in names if n[0] == c] for c in {n[0] for n in names}}
        parts = [
            f'{re.escape(c)}(?={"|".join(map(re.escape, ends))})'
            for c, ends in rests.items()
        ]
        self._pattern = re.compile('|'.join(parts) or '(?!)')
        self._longest = max(map(len, names), default=0)
        self._beginnings = {n[:k] for n in names for k in range(1, len(n))}
        self._ends = {n[-k:] for n in names for k in range(1, len(n))}

    def hide(self, value, depth: int = 0):
        """`value`, of JSON, with changed texts.

        Keys that are names (`role`) stay, since the template looks for them.
        """
        if depth > MAX_DEPTH:
            raise RefusedMessages(
                f'a message for the chat template is nested over {MAX_DEPTH} levels'
            )
        if isinstance(value, dict):
            keys = [k if k.isidentifier() else self._hide_text(k) for k in value]
            inner = [self.hide(inner, depth + 1) for inner in value.values()]
            return dict(zip(keys, inner, strict=True))
        if isinstance(value, list | tuple):
            return [self.hide(inner, depth + 1) for inner in value]
        return self._hide_text(value) if isinstance(value, str) else value

    def _hide_text(self, text: str) -> str:
        text = text.encode('utf-8', 'replace').decode()
        text = self._pattern.sub(lambda match: self._hidden[match[0]], text)
        # A template may complete a name that a message only begins or ends.
        body, first = text.rstrip(), len(text) - len(text.lstrip())
        for size in range(1, min(self._longest, len(body)) + 1):
            if body[-size:] in self._beginnings:
                text = self._hide_at(text, len(body) - size)
            if text[first : first + size] in self._ends:
                text = self._hide_at(text, first + size - 1)
        return text

    def _hide_at(self, text, place):
        return text[:place] + self._hidden[text[place]] + text[place + 1 :]

    def show(self, text: str) -> str:
        return text.translate(self._shown)


@functools.lru_cache(maxsize=16)
def _guard(tokenizer) -> Guard:
    return Guard([*tokenizer.specials])


def _variables(
    messages, add_generation_prompt=False, unfinished=False, tools=None, ends=()
):
    """The variables of one rendering, with CUT at the ends of some messages."""
    messages = [
        {name: value for name, value in message.items() if name != 'train'}
        for message in messages
    ]
    for number in [*ends, *([len(messages) - 1] if unfinished else [])]:
        message = messages[number]
        if isinstance(message.get('content'), str):
            messages[number] = dict(message, content=message['content'] + CUT)
    return dict(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools or None,
        documents=None,
    )


@functools.lru_cache(maxsize=16)
def _wants_parts(tokenizer) -> bool:
    """Whether the template reads contents only as lists of parts."""
    contents = EXAMPLE, [dict(type='text', text=EXAMPLE)]
    renders = [_variables([dict(role='user', content=text)]) for text in contents]
    texts = []
    for variables in renders:
        try:
            texts += PROCESS.render(tokenizer, [variables])
        except UserError:
            texts.append('')
    return EXAMPLE not in texts[0] and EXAMPLE in texts[1]


def _render(tokenizer, renders: list[dict]) -> list[str]:
    """The renderings, with hidden names of special tokens in messages."""
    guard, parts = _guard(tokenizer), _wants_parts(tokenizer)
    hidden = []
    for variables in renders:
        messages = []
        for message in variables['messages']:
            content = message.get('content')
            cut = isinstance(content, str) and content.endswith(CUT)
            message = guard.hide(
                dict(message, content=content.removesuffix(CUT)) if cut else message
            )
            if cut:
                message['content'] += CUT
            if parts and isinstance(message.get('content'), str):
                message['content'] = [dict(type='text', text=message['content'])]
            messages.append(message)
        tools = guard.hide(variables['tools'])
        hidden.append(dict(variables, messages=messages, tools=tools))
    return PROCESS.render(tokenizer, hidden)
