"""A conversation in the terminal: its tree of messages, its replies, its file.

Of the tree one path is shown. Another reply, or a changed message, is a further child
of the same parent. The chat page exports and imports the same file.
"""

import contextlib
import dataclasses
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gptjax.core.console import UserError
from gptjax.data.chat_template import encode_prompt, stop_conditions
from gptjax.infer.request import LARGEST_SEED, SamplingParameters, Token

FORMAT = 'gptjax-conversations'
DIM, PLAIN = '\x1b[2m', '\x1b[0m'


# ---- the tree -----------------------------------------------------------------


@dataclass
class Message:
    """One message, and what has followed it; the fields from `model` on are a reply's.

    A reply's content ends with its `tokens`; text that was put before them by hand has
    none.
    """

    role: str  # 'user' or 'assistant'; 'root' of the tree's root, which is no message
    content: str = ''
    children: list['Message'] = field(default_factory=list)
    chosen: int = 0  # index of the child that is shown
    model: str = ''  # if another one than the conversation's
    seed: int = 0
    parameters: SamplingParameters = SamplingParameters()
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None  # as of `Update`; None while it is drawn

    def add(self, child: 'Message') -> 'Message':
        """Appends a child, which is shown from now on; returns the child."""
        self.children.append(child)
        self.chosen = len(self.children) - 1
        return child


def shown_messages(root: Message) -> list[Message]:
    """The messages on the path that is shown, from the first to the last."""
    path = [root]
    while path[-1].children:
        path.append(path[-1].children[path[-1].chosen])
    return path[1:]


def last_message(root: Message, role: str) -> tuple[Message, Message]:
    """(the last shown message of a role, its parent); UserError if there is none."""
    path = [root, *shown_messages(root)]
    for parent, message in reversed(list(zip(path, path[1:], strict=False))):
        if message.role == role:
            return message, parent
    raise UserError('nothing has been said yet: say something first')


def text_before_tokens(reply: Message, tokenizer) -> str:
    """The text before a reply's tokens: '' unless some was put there by hand."""
    text = tokenizer.decode(token.id for token in reply.tokens)
    # A stop string may have cut the last token's text.
    while text and not reply.content.endswith(text):
        text = text[:-1]
    return reply.content.removesuffix(text)


# ---- text on a terminal -------------------------------------------------------


def escape_controls(text: str) -> str:
    """Text without the control characters that could command a terminal."""
    return ''.join(
        c if c.isprintable() or c in '\n\t' else f'\\x{ord(c):02x}' for c in text
    )


def visible_token(tokenizer, token: int) -> str:
    """A token's text with '·' for a space at its ends, '↵' for a new line."""
    content = tokenizer.bytes_of(token)
    if not content:
        return next(name for name, id in tokenizer.specials.items() if id == token)
    text = content.decode('utf-8', 'backslashreplace')
    text = text.replace('\n', '↵').replace('\t', '⇥')
    if text[0] == ' ':
        text = '·' + text[1:]
    if text[-1] == ' ':
        text = text[:-1] + '·'
    return escape_controls(text)


def read_line(prompt: str, initial_text: str) -> str:
    """A line of standard input, edited and recalled by readline on a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix('\n')
    with contextlib.suppress(ImportError):  # not on every platform
        import readline

        readline.set_pre_input_hook(lambda: readline.insert_text(initial_text))
    return input(prompt)


# ---- replies ------------------------------------------------------------------


@dataclass
class Session:
    """The state of a chat: its conversation, its engine, how replies are drawn.

    `read(prompt, text that the line begins with)` returns a line. It raises EOFError at
    the end of the input, KeyboardInterrupt at Ctrl-C.
    """

    engine: Any  # runs on its own thread
    load: Callable[[int], Any]  # step -> a running engine of another checkpoint
    template: str  # of the chat prompts
    name: str  # of the model
    parameters: SamplingParameters  # of the next reply, the seed aside
    seed: int | None = None  # of the next reply; None: a new one each time
    system: str = ''  # the system prompt; '': none
    root: Message = field(default_factory=lambda: Message('root'))
    read: Callable[[str, str], str] = read_line

    def __post_init__(self):
        self.colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')

    def print(self, text: str, file=None, end: str = '\n') -> None:
        print(text, end=end, file=file or sys.stdout, flush=True)

    def print_remark(self, text: str) -> None:
        """Prints something about the conversation, on a terminal only."""
        if self.colour:
            self.print(f'{DIM}{text}{PLAIN}')


def send(session: Session, text: str) -> None:
    """Adds a message of the user to the end of the conversation, and draws a reply."""
    last = [session.root, *shown_messages(session.root)][-1]
    reply_to(session, last.add(Message('user', text)))


def reply_to(session: Session, parent: Message) -> None:
    """Draws a reply to `parent`, which may have other replies already."""
    if session.seed is None:
        seed = secrets.randbits(31)
    else:
        seed = (session.seed + len(parent.children)) % (LARGEST_SEED + 1)
    reply = Message('assistant', seed=seed, parameters=session.parameters)
    draw(session, parent.add(reply))


def draw(session: Session, reply: Message, engine=None) -> None:
    """Draws the rest of a reply that is shown, printing it as it comes.

    Ctrl-C ends the reply, and nothing else. Another `engine` than the session's is
    one with the same tokenizer. Raises UserError where the messages do not fit the
    context or the engine fails, and what `Engine.submit` raises.
    """
    engine = engine or session.engine
    prompt = _encode_prompt(session, reply)
    stop, stop_tokens = stop_conditions(session.template, session.engine.tokenizer)
    parameters = dataclasses.replace(
        reply.parameters, seed=reply.seed, stop=stop, stop_tokens=stop_tokens
    )
    session.print(escape_controls(reply.content), end='')
    start, num_before = time.monotonic(), len(reply.tokens)
    reply.finish = 'cancelled'
    try:
        with contextlib.closing(engine.reply(prompt, parameters)) as updates:
            for update in updates:
                reply.content += update.text
                reply.tokens += update.tokens
                session.print(escape_controls(update.text), end='')
                if update.finish == 'error':
                    raise UserError(update.error)
                reply.finish = update.finish or reply.finish
    except KeyboardInterrupt:
        pass  # what has come stays
    finally:
        session.print('')
    num_tokens, seconds = len(reply.tokens) - num_before, time.monotonic() - start
    remark = f'seed {reply.seed}, {num_tokens} tokens at {num_tokens / seconds:.0f}/s'
    if reply.finish != 'stop':
        state = 'stopped' if reply.finish == 'cancelled' else 'not at its end'
        remark += f', {state}: /continue goes on'
    session.print_remark(remark)


def _encode_prompt(session, reply):
    """Token ids of the messages before a reply, and of its beginning.

    The oldest messages are left out where they would leave the reply no room.
    """
    engine = session.engine
    path = shown_messages(session.root)
    path = [*path[: path.index(reply)], reply]
    messages = [dict(role=m.role, content=m.content) for m in path if m.content]
    system = [dict(role='system', content=session.system)] if session.system else []
    room = engine.context - min(reply.parameters.max_tokens, engine.context // 4)
    num_left_out = 0
    while True:
        prompt = encode_prompt(
            system + messages, engine.tokenizer, session.template, bool(reply.content)
        )
        user_indices = [i for i, m in enumerate(messages) if m['role'] == 'user']
        if len(prompt) <= room or len(user_indices) < 2:
            break
        num_left_out += user_indices[1]
        messages = messages[user_indices[1] :]
    if num_left_out:
        session.print_remark(
            f'left out, for want of context: the first {num_left_out} messages'
        )
    return prompt


# ---- the file -----------------------------------------------------------------


def conversation_json(root: Message, system: str, model: str, tokenizer) -> dict:
    """The conversation as JSON that the chat page imports."""
    now = int(1000 * time.time())
    lane = dict(model=model, root=_children_json(root, model, tokenizer))
    facts = dict(id=secrets.token_hex(9), title='', created=now, updated=now)
    conversation = dict(facts, system=system, lanes=[lane])
    return dict(format=FORMAT, version=1, conversations=[conversation])


def _children_json(message, model, tokenizer):
    children = [_message_json(child, model, tokenizer) for child in message.children]
    return dict(children=children, chosen=message.chosen)


def _message_json(message, model, tokenizer):
    children = _children_json(message, model, tokenizer)
    value = dict(role=message.role, content=message.content, **children)
    if message.role == 'user':
        return value
    numbers = {
        option.name: getattr(message.parameters, option.name)
        for option in dataclasses.fields(SamplingParameters)
        if option.name != 'seed' and option.type in (int, float)
    }
    stopped = message.finish in ('cancelled', 'error')
    return dict(
        value,
        model=message.model or model,
        seed=message.seed,
        parameters=numbers,
        finish='stopped' if stopped else message.finish,
        tokens=_tokens_json(message, tokenizer),
    )


def _tokens_json(reply, tokenizer):
    """[text, logprob, alternatives] of each token; the texts joined are the content."""
    text = text_before_tokens(reply, tokenizer)
    rows = [[text, None, []]] if text else []
    stream = tokenizer.stream()
    for token in reply.tokens:
        alternatives = [_alternative_json(tokenizer, *other) for other in token.top]
        rows.append([stream.push(token.id), token.logprob, alternatives])
    return rows


def _alternative_json(tokenizer, token, logprob):
    """[text, ln P, kind]; kind: '', 'end' of the reply, or 'part' of a character."""
    if token in (tokenizer.eos_id, tokenizer.specials['<|end|>']):
        return [visible_token(tokenizer, token), logprob, 'end']
    text = ''
    with contextlib.suppress(UnicodeDecodeError):
        text = tokenizer.bytes_of(token).decode()
    kind = '' if text else 'part'
    return [text or visible_token(tokenizer, token), logprob, kind]
