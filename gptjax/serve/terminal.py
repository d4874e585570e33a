"""The stage `chat`: talking to a run's model in the terminal."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import console, storage
from gptjax.core.console import UserError
from gptjax.infer.request import (
    LARGEST_SEED,
    EngineStopped,
    QueueFull,
    SamplingParameters,
    Token,
    check_parameters,
)
from gptjax.serve.chat_memory import (
    Message,
    begin_of,
    harmless,
    last_of,
    to_file,
    visible,
)
from gptjax.serve.session import PLAIN, Session, draw, reply_to, send

ALTERNATIVES = 6  # listed beside each token by /why
SETTABLE = (
    *('temperature', 'top_p', 'top_k', 'min_p', 'max_tokens'),
    *('repetition_penalty', 'presence_penalty', 'frequency_penalty'),
)
HELP = """\
/regenerate      another reply
/version N       back to reply N
/edit [TEXT]     your last message, changed
/continue        goes on with the reply
/why             its tokens' probabilities, and what else might have come
/pick TOKEN N    goes on from alternative N of a token, by the numbers of /why
/system [TEXT]   the system prompt
/compare STEP    the same reply by another checkpoint of the run, on the same seed
/set NAME=VALUE  temperature, top_p and others; /set alone lists them
/seed [N]        draws from this seed; without N from a new one each time
/new             begins anew
/save FILE       writes the conversation as JSON, which the chat page imports
/quit            leaves, as Ctrl-D does
Ctrl-C stops a reply. A line that ends in \\ goes on in the next. //x says /x."""


def chat(config: ConfigDict, workdir: Path, **options) -> None:
    """Talks on standard input and output until /quit or the end of the input.

    Args:
        config: of the run.
        workdir: RUN.
        **options: of `load_engine`.

    Raises:
        UserError: RUN has no checkpoint.
    """
    from gptjax.eval import quantization_cost
    from gptjax.train.load_model import load_engine

    template = config.get('chat', {}).get('template', 'text')
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load(step):
            with console.progress_bar('loading the model', 0):
                engine = load_engine(config, workdir, step, slots=1, **options)
                engine.warm_up()
            engine.start()
            stack.callback(engine.close)
            return engine

        kept = [options.get(name, 'whole') for name in ('weights', 'cache')]
        engine = load(None)
        with console.progress_bar('measuring what bytes cost', 0):
            cost = quantization_cost.tell(config, workdir, None, *kept)
        parameters = _parameters_of(config)
        session = Session(engine, load, template, workdir.name, parameters)
        session.say(
            f'{workdir.name}, step {engine.trained_step:,}: it reads '
            f'{engine.context:,} tokens at most. /help lists the commands.'
        )
        if cost:
            session.say(cost)
        talk(session, read_line)


def _parameters_of(config):
    """How the stage `sample` draws in this run, with alternatives for /why."""
    known = {name: config.sample[name] for name in SETTABLE if name in config.sample}
    return SamplingParameters(**known, logprobs=ALTERNATIVES)


def talk(session: Session, read: Callable[[str, str], str]) -> None:
    """Reads lines and answers them until there are no more.

    Args:
        session: what is being said.
        read: takes the prompt and the text that the line begins with; raises
            EOFError at the end of the input, KeyboardInterrupt at Ctrl-C.
    """
    while True:
        try:
            line = read('› ', '')
            while line.endswith('\\'):
                line = f'{line[:-1]}\n{read("… ", "")}'
            if line.startswith('/') and not line.startswith('//'):
                name, _, rest = line[1:].partition(' ')
                if name in ('quit', 'exit'):
                    return
                _command(name)(session, rest.strip(), read)
            elif line.strip():
                send(session, line[1:] if line.startswith('//') else line)
        except EOFError:
            return
        except KeyboardInterrupt:
            session.say('\nCtrl-D or /quit leaves')
        except UserError as error:
            session.say(f'error: {error}', sys.stderr)
        except (QueueFull, EngineStopped) as error:
            session.say(f'error: the engine takes no more: {error}', sys.stderr)


def read_line(prompt: str, begin: str) -> str:
    """A line of standard input, edited and recalled by readline on a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix('\n')
    with contextlib.suppress(ImportError):  # not on every platform
        import readline

        readline.set_pre_input_hook(lambda: readline.insert_text(begin))
    return input(prompt)


# ---- commands: (session, the words after it, read) --------------------------------


def _regenerate(session, rest, read):
    reply_to(session, last_of(session.root, 'assistant')[1])


def _version(session, rest, read):
    _, parent = last_of(session.root, 'assistant')
    parent.chosen = _number(rest, len(parent.children), '/version') - 1
    session.say(harmless(parent.children[parent.chosen].content))


def _edit(session, rest, read):
    node, parent = last_of(session.root, 'user')
    text = rest or read('› ', node.content)
    if text.strip():
        reply_to(session, parent.add(Message('user', text)))


def _continue(session, rest, read):
    draw(session, last_of(session.root, 'assistant')[0])


def _why(session, rest, read):
    tokens = _tokens_of(last_of(session.root, 'assistant')[0], '/why')
    tokenizer = session.engine.tokenizer
    width = max(len(visible(tokenizer, token.id)) for token in tokens)
    for place, token in enumerate(tokens, 1):
        alternatives = [
            f'{number} {visible(tokenizer, other)} {math.exp(logprob):.1%}'
            for number, (other, logprob) in enumerate(token.top, 1)
        ]
        share = math.exp(token.logprob)
        text = f'{visible(tokenizer, token.id):{width}}'
        if session.colour:
            text = f'{_COLOURS[sum(share < edge for edge in _EDGES)]}{text}{PLAIN}'
        session.say(f'{place:4}  {text}  {share:6.1%}   {"   ".join(alternatives)}')


_EDGES = (0.5, 0.1, 0.01)  # of probability, between the colours
_COLOURS = (PLAIN, '\x1b[36m', '\x1b[33m', '\x1b[31m')


def _pick(session, rest, read):
    reply, parent = last_of(session.root, 'assistant')
    tokens = _tokens_of(reply, '/pick')
    place, choice = (*rest.split(), '', '')[:2]
    place = _number(place, len(tokens), '/pick')
    token = tokens[place - 1]
    choice = _number(choice, len(token.top), f'/pick {place}')
    picked, logprob = token.top[choice - 1]
    tokenizer = session.engine.tokenizer
    tokens = [*tokens[: place - 1], Token(picked, logprob, token.top)]
    spelt = b''.join(tokenizer.bytes_of(token.id) for token in tokens)
    try:
        content = begin_of(reply, tokenizer) + spelt.decode()
    except UnicodeDecodeError:
        raise UserError(
            f'/pick {rest}: the token is a part of a character: pick another'
        ) from None
    branch = dataclasses.replace(
        reply, content=content, tokens=tokens, children=[], chosen=0, finish=None
    )
    parent.add(branch)
    if not tokenizer.bytes_of(picked):  # a special token ends the reply
        branch.finish = 'stop'
        branch.tokens.pop()
    elif session.template == 'text' and '\n\n' in content:  # and so does this
        branch.finish = 'stop'
        branch.content = content.split('\n\n')[0]
    if branch.finish == 'stop':
        session.say(harmless(branch.content))
    else:
        draw(session, branch)


def _compare(session, rest, read):
    reply, parent = last_of(session.root, 'assistant')
    if not rest.isdecimal():
        raise UserError(f'/compare {rest}'.rstrip() + ': name a step, as /compare 1000')
    other = session.load(int(rest))
    again = Message('assistant', model=f'{session.name}@{rest}')
    again.seed, again.parameters = reply.seed, reply.parameters
    draw(session, parent.add(again), other)


def _system(session, rest, read):
    session.system = rest
    session.say(f'system prompt: {rest or "none"}')


def _set(session, rest, read):
    changes = {}
    for word in rest.split():
        name, _, value = word.partition('=')
        if name not in SETTABLE:
            raise UserError(f'/set {word}: use NAME=VALUE with {", ".join(SETTABLE)}')
        kind = type(getattr(SamplingParameters(), name))
        try:
            changes[name] = kind(value)
        except ValueError:
            what = 'a whole number' if kind is int else 'a number'
            raise UserError(f'/set {word}: use {what}') from None
    changed = dataclasses.replace(session.parameters, **changes)
    check_parameters(changed, session.engine.vocab_size, '/set ')
    if changed.max_tokens < 1:
        raise UserError(f'/set max_tokens={changed.max_tokens}: use a number above 0')
    session.parameters = changed
    session.say('  '.join(f'{name}={getattr(changed, name)}' for name in SETTABLE))


def _seed(session, rest, read):
    if rest and not (rest.isdecimal() and int(rest) <= LARGEST_SEED):
        raise UserError(f'/seed {rest}: use a number from 0 to {LARGEST_SEED}')
    session.seed = int(rest) if rest else None
    session.say(f'seed: {rest or "a new one each time"}')


def _new(session, rest, read):
    session.root = Message('root')


def _save(session, rest, read):
    if not rest:
        raise UserError('/save: name a file, as /save talk.json')
    path = Path(rest).expanduser()
    told = to_file(session.root, session.system, session.name, session.engine.tokenizer)
    try:
        storage.write_json(path, told)
    except OSError as error:
        raise UserError(f'/save {path}: {error.strerror}: use another path') from None
    session.say(f'saved: {path}')


def _help(session, rest, read):
    session.say(HELP)


COMMANDS = {
    'regenerate': _regenerate,
    'version': _version,
    'edit': _edit,
    'continue': _continue,
    'why': _why,
    'pick': _pick,
    'compare': _compare,
    'system': _system,
    'set': _set,
    'seed': _seed,
    'new': _new,
    'save': _save,
    'help': _help,
}


def _command(name):
    if name not in COMMANDS:
        raise UserError(f'/{name}: no such command: /help lists them')
    return COMMANDS[name]


def _tokens_of(reply, command):
    if not reply.tokens:
        raise UserError(
            f'{command}: the reply has no tokens: /regenerate draws another'
        )
    return reply.tokens


def _number(text, most, command):
    """A number from 1 to `most`, as the user wrote it."""
    if not (text.isdecimal() and 1 <= int(text) <= most):
        raise UserError(f'{command} {text}'.rstrip() + f': use a number, 1 to {most}')
    return int(text)
