"""A conversation with an engine of this process, written to the terminal as it goes."""

import contextlib
import dataclasses
import os
import secrets
import sys
import time

from gptjax.core.console import UserError
from gptjax.data.chat_template import prompt_of, stops_of
from gptjax.infer.request import LARGEST_SEED, SamplingParameters
from gptjax.serve.chat_memory import Message, harmless, path_of

DIM, PLAIN = '\x1b[2m', '\x1b[0m'


class Session:
    """What is said, how replies are drawn, and where they are written.

    Attributes:
        engine: runs on its own thread.
        load: gives a running engine of another step of the run.
        template: of the chat prompts.
        name: of the model.
        parameters: of the next reply, the seed aside.
        seed: of the next reply; None: a new one each time.
        system: the system prompt; '': none.
        root: of the tree of messages.
        colour: whether somebody watches, and likes colours.
    """

    def __init__(
        self, engine, load, template: str, name: str, parameters: SamplingParameters
    ):
        self.engine = engine
        self.load = load
        self.template = template
        self.name = name
        self.parameters = parameters
        self.seed = None
        self.system = ''
        self.root = Message('root')
        self.colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR')

    def say(self, text: str, file=None, end: str = '\n') -> None:
        print(text, end=end, file=file or sys.stdout, flush=True)

    def remark(self, text: str) -> None:
        """Says something beside the conversation, where somebody watches."""
        if self.colour:
            self.say(f'{DIM}{text}{PLAIN}')


def send(session: Session, text: str) -> None:
    """Says `text` after all that has been said, and draws the reply."""
    last = [session.root, *path_of(session.root)][-1]
    reply_to(session, last.add(Message('user', text)))


def reply_to(session: Session, parent: Message) -> None:
    """Draws a reply to `parent`; another one, where it has some."""
    if session.seed is None:
        seed = secrets.randbits(31)
    else:
        seed = (session.seed + len(parent.children)) % (LARGEST_SEED + 1)
    reply = Message('assistant', seed=seed, parameters=session.parameters)
    draw(session, parent.add(reply))


def draw(session: Session, reply: Message, engine=None) -> None:
    """Draws the rest of a reply that is shown, writing it as it comes.

    Ctrl-C ends the reply, and nothing else. Another `engine` than the session's is
    one with the same tokenizer.

    Raises:
        UserError: the messages do not fit the context, or the engine has failed.
        QueueFull, EngineStopped: the engine takes no more.
    """
    engine = engine or session.engine
    prompt = _prompt(session, reply)
    stop, stop_tokens = stops_of(session.template, session.engine.tokenizer)
    parameters = dataclasses.replace(
        reply.parameters, seed=reply.seed, stop=stop, stop_tokens=stop_tokens
    )
    session.say(harmless(reply.content), end='')
    began, before = time.monotonic(), len(reply.tokens)
    reply.finish = 'cancelled'
    try:
        with contextlib.closing(engine.reply(prompt, parameters)) as updates:
            for update in updates:
                reply.content += update.text
                reply.tokens += update.tokens
                session.say(harmless(update.text), end='')
                if update.finish == 'error':
                    raise UserError(update.error)
                reply.finish = update.finish or reply.finish
    except KeyboardInterrupt:
        pass  # the reply is as far as it is
    finally:
        session.say('')
    count, seconds = len(reply.tokens) - before, time.monotonic() - began
    remarks = [f'seed {reply.seed}', f'{count} tokens at {count / seconds:.0f}/s']
    if reply.finish != 'stop':
        ended = 'stopped' if reply.finish == 'cancelled' else 'not at its end'
        remarks.append(f'{ended}: /continue goes on')
    session.remark(', '.join(remarks))


def _prompt(session, reply):
    """Token ids of what stands before a reply, and of its beginning.

    The oldest messages are left out where they would leave it no room.
    """
    engine = session.engine
    path = path_of(session.root)
    told = [*path[: path.index(reply)], reply]
    messages = [dict(role=m.role, content=m.content) for m in told if m.content]
    first = [dict(role='system', content=session.system)] if session.system else []
    room = engine.context - min(reply.parameters.max_tokens, engine.context // 4)
    left_out = 0
    while True:
        prompt = prompt_of(
            first + messages, engine.tokenizer, session.template, bool(reply.content)
        )
        begins = [n for n, message in enumerate(messages) if message['role'] == 'user']
        if len(prompt) <= room or len(begins) < 2:
            break
        left_out += begins[1]
        messages = messages[begins[1] :]
    if left_out:
        session.remark(f'left out, for want of context: the first {left_out} messages')
    return prompt
