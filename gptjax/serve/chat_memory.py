"""A conversation as a tree of messages, of which one path is shown.

Another reply, or a changed message, is a further child of the same parent. The file
form is the one that the chat page exports and imports.
"""

import secrets
import time
from dataclasses import dataclass, field, fields

from gptjax.core.console import UserError
from gptjax.infer.request import SamplingParameters, Token

FORMAT = 'gptjax-conversations'
CANCELLED = 'stopped'  # how the file says that the user stopped a reply


@dataclass
class Message:
    """One message, and what has followed it.

    role: 'user' or 'assistant'; 'root' of the tree's root, which is no message.
    children: what came next; `chosen` is the one that is shown.
    model: of a reply, where it is not the conversation's.
    seed, parameters: what a reply was drawn with.
    tokens: of a reply, those that its content ends with; text that was put before
        them by hand has none.
    finish: of a reply, as of `Update`; None while it is drawn.
    """

    role: str
    content: str = ''
    children: list['Message'] = field(default_factory=list)
    chosen: int = 0
    model: str = ''
    seed: int = 0
    parameters: SamplingParameters = SamplingParameters()
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, child: 'Message') -> 'Message':
        """Appends a child, which is shown from now on; the child."""
        self.children.append(child)
        self.chosen = len(self.children) - 1
        return child


def path_of(root: Message) -> list[Message]:
    """The messages that are shown, from the first to the last."""
    path = []
    node = root
    while node.children:
        node = node.children[node.chosen]
        path.append(node)
    return path


def last_of(root: Message, role: str) -> tuple[Message, Message]:
    """(the last message of a role that is shown, what it is a child of).

    Raises:
        UserError: there is none.
    """
    path = [root, *path_of(root)]
    for parent, node in reversed(list(zip(path, path[1:], strict=False))):
        if node.role == role:
            return node, parent
    raise UserError('nothing has been said yet: say something first')


def begin_of(message: Message, tokenizer) -> str:
    """The text before a reply's tokens: '' unless some was put there by hand."""
    drawn = tokenizer.decode(token.id for token in message.tokens)
    # A stop string may have cut the last token's text.
    while drawn and not message.content.endswith(drawn):
        drawn = drawn[:-1]
    return message.content.removesuffix(drawn)


def visible(tokenizer, token: int) -> str:
    """A token as one sees it: '·' for a space at its ends, '↵' for a new line."""
    content = tokenizer.bytes_of(token)
    if not content:
        return next(name for name, id in tokenizer.specials.items() if id == token)
    text = content.decode('utf-8', 'backslashreplace')
    text = text.replace('\n', '↵').replace('\t', '⇥')
    if text[0] == ' ':
        text = '·' + text[1:]
    if text[-1] == ' ':
        text = text[:-1] + '·'
    return harmless(text)


def harmless(text: str) -> str:
    """Text without the control characters that could command a terminal."""
    return ''.join(
        c if c.isprintable() or c in '\n\t' else f'\\x{ord(c):02x}' for c in text
    )


# ---- the file -------------------------------------------------------------------


def to_file(root: Message, system: str, model: str, tokenizer) -> dict:
    """The conversation as JSON that the chat page imports."""
    now = int(1000 * time.time())
    conversation = dict(
        id=secrets.token_hex(9),
        title='',
        created=now,
        updated=now,
        system=system,
        lanes=[dict(model=model, root=_children(root, model, tokenizer))],
    )
    return dict(format=FORMAT, version=1, conversations=[conversation])


def _children(node, model, tokenizer):
    children = [_message(child, model, tokenizer) for child in node.children]
    return dict(children=children, chosen=node.chosen)


def _message(node, model, tokenizer):
    children = _children(node, model, tokenizer)
    message = dict(role=node.role, content=node.content, **children)
    if node.role == 'user':
        return message
    numbers = {
        one.name: getattr(node.parameters, one.name)
        for one in fields(SamplingParameters)
        if one.name != 'seed' and one.type in (int, float)
    }
    return dict(
        message,
        model=node.model or model,
        seed=node.seed,
        parameters=numbers,
        finish=CANCELLED if node.finish in ('cancelled', 'error') else node.finish,
        tokens=_tokens(node, tokenizer),
    )


def _tokens(node, tokenizer):
    """[text, logprob, alternatives] of each token; the texts joined are the content."""
    begin = begin_of(node, tokenizer)
    rows = [[begin, None, []]] if begin else []
    stream = tokenizer.stream()
    for token in node.tokens:
        alternatives = [
            [*_alternative(tokenizer, other, logprob)] for other, logprob in token.top
        ]
        rows.append([stream.push(token.id), token.logprob, alternatives])
    return rows


def _alternative(tokenizer, token, logprob):
    """Its text, ln P and kind: '', 'end' of the reply, or 'part' of a character."""
    if token in (tokenizer.eos_id, tokenizer.specials['<|end|>']):
        return visible(tokenizer, token), logprob, 'end'
    content = tokenizer.bytes_of(token)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ''
    return text or visible(tokenizer, token), logprob, '' if text else 'part'
