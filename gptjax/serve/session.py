"""A conversation in the terminal: the tree of messages, the replies, the JSON file.

The terminal shows one path of the tree. Another reply, or an edited message, is one
more child of the same parent. The chat page exports and imports the same file format.
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
    """A message and the messages that follow; fields from `model` on are for replies.

    The content of a reply is text that the user wrote (if any) and the `tokens`.
    """

    role: str  # 'user', 'assistant', or 'root' for the root of the tree
    content: str = ''
    children: list['Message'] = field(default_factory=list)
    chosen: int = 0  # index of the visible child
    model: str = ''  # if it is not the model of the conversation
    seed: int = 0
    parameters: SamplingParameters = SamplingParameters()
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None  # as in `Update`; None during generation

    def add(self, child: 'Message') -> 'Message':
        """Appends a child, makes it visible and returns it."""
        self.children.append(child)
        self.chosen = len(self.children) - 1
        return child


def shown_messages(root: Message) -> list[Message]:
    """The messages on the visible path, from the first to the last."""
    path = [root]
    while path[-1].children:
        path.append(path[-1].children[path[-1].chosen])
    return path[1:]


def last_message(root: Message, role: str) -> tuple[Message, Message]:
    """(last visible message of a role, its parent); UserError if there is none."""
    path = [root, *shown_messages(root)]
    for parent, message in reversed(list(zip(path, path[1:], strict=False))):
        if message.role == role:
            return message, parent
    raise UserError('the conversation is empty: write a message first')


def text_before_tokens(reply: Message, tokenizer) -> str:
    """The beginning of a reply that the user wrote, before the generated tokens."""
    text = tokenizer.decode(token.id for token in reply.tokens)
    # A stop string may have cut the text of the last token.
    while text and not reply.content.endswith(text):
        text = text[:-1]
    return reply.content.removesuffix(text)


# ---- text on a terminal -------------------------------------------------------


def escape_controls(text: str) -> str:
    """Text without control characters: a terminal would obey them."""
    return ''.join(
        c if c.isprintable() or c in '\n\t' else f'\\x{ord(c):02x}' for c in text
    )


def visible_token(tokenizer, token: int) -> str:
    """The text of a token on a terminal: ' a\\n' → '·a↵'."""
    content = tokenizer.bytes_of(token)
    if not content:
        names = {id: name for name, id in tokenizer.specials.items()}
        return names.get(token, f'<{token}>')
    text = content.decode('utf-8', 'backslashreplace')
    text = text.replace('\n', '↵').replace('\t', '⇥')
    if text[0] == ' ':
        text = '·' + text[1:]
    if text[-1] == ' ':
        text = text[:-1] + '·'
    return escape_controls(text)


def read_line(prompt: str, initial_text: str) -> str:
    """Reads a line of standard input; on a terminal with readline's editing.

    Elsewhere the prompt and the line are printed, as a terminal would show them.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        line = line.removesuffix('\n').removeprefix('\ufeff')  # a byte-order mark
        print(f'{prompt}{escape_controls(line)}', flush=True)
        return line
    with contextlib.suppress(ImportError):  # not on every platform
        import readline

        readline.set_pre_input_hook(lambda: readline.insert_text(initial_text))
    return input(prompt)


# ---- replies ------------------------------------------------------------------


@dataclass
class Session:
    """The state of a chat: the conversation, the engine, the sampling parameters.

    `read(prompt, initial text)` returns a line that the user edits. It raises EOFError
    at the end of the input, KeyboardInterrupt at Ctrl-C.
    """

    engine: Any  # runs on its own thread
    load: Callable[[int], Any]  # step -> a running engine of another checkpoint
    template: str  # the prompt format
    name: str  # of the model
    parameters: SamplingParameters  # of the next reply, without the seed
    seed: int | None = None  # of the next reply; None: random
    system: str = ''  # the system prompt; '': none
    root: Message = field(default_factory=lambda: Message('root'))
    read: Callable[[str, str], str] = read_line

    def __post_init__(self):
        self.colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')

    def print(self, text: str, file=None, end: str = '\n') -> None:
        print(text, end=end, file=file or sys.stdout, flush=True)

    def print_remark(self, text: str) -> None:
        """Prints a remark about the conversation, only on a terminal."""
        if self.colour:
            self.print(f'{DIM}{text}{PLAIN}')


def send(session: Session, text: str) -> None:
    """Appends a message of the user to the conversation, and draws a reply."""
    last = [session.root, *shown_messages(session.root)][-1]
    reply_to(session, last.add(Message('user', text)))


def reply_to(session: Session, parent: Message) -> None:
    """Draws one more reply to `parent`."""
    if session.seed is None:
        seed = secrets.randbits(31)
    else:
        seed = (session.seed + len(parent.children)) % (LARGEST_SEED + 1)
    reply = Message('assistant', seed=seed, parameters=session.parameters)
    draw(session, parent.add(reply))


def draw(session: Session, reply: Message, engine=None) -> None:
    """Draws the rest of a visible reply, and prints the text as it arrives.

    Ctrl-C ends only the reply. `engine`, by default the session's, has the same
    tokenizer. Raises UserError if the messages do not fit the context or the engine
    fails, and the errors of `Engine.submit`.
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
        pass  # the reply keeps the text so far
    finally:
        session.print('')
    num_tokens, seconds = len(reply.tokens) - num_before, time.monotonic() - start
    remark = f'seed {reply.seed}, {num_tokens} tokens at {num_tokens / seconds:.0f}/s'
    if reply.finish != 'stop':
        state = 'stopped' if reply.finish == 'cancelled' else 'not at its end'
        remark += f', {state}: /continue goes on'
    session.print_remark(remark)


def _encode_prompt(session, reply):
    """Token ids of the messages before a reply, and of the beginning of the reply.

    Leaves out the oldest messages if otherwise the reply has no room in the context.
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
            f'the context is too short: left out the first {num_left_out} messages'
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
    """[text, logprob, alternatives] of each token; all texts joined are the content."""
    text = text_before_tokens(reply, tokenizer)
    rows = [[text, None, []]] if text else []
    stream = tokenizer.stream()
    for token in reply.tokens:
        alternatives = [_alternative_json(tokenizer, *other) for other in token.top]
        rows.append([stream.push(token.id), token.logprob, alternatives])
    return rows


def _alternative_json(tokenizer, token, logprob):
    """[text, ln P, kind]; kind: 'end' of the reply, 'part' of a character, or ''."""
    if token in (*tokenizer.eos_ids, tokenizer.specials.get('<|end|>')):
        return [visible_token(tokenizer, token), logprob, 'end']
    text = ''
    with contextlib.suppress(UnicodeDecodeError):
        text = tokenizer.bytes_of(token).decode()
    kind = '' if text else 'part'
    return [text or visible_token(tokenizer, token), logprob, kind]
