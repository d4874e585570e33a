"""The stage `chat`: a conversation with the model of a run, in the terminal."""

import contextlib
import dataclasses
import functools
import math
import sys
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import console, storage
from gptjax.core.config import choose_context
from gptjax.core.console import UserError
from gptjax.infer.request import (
    LARGEST_SEED,
    EngineStopped,
    QueueFull,
    SamplingParameters,
    Token,
    check_parameters,
)
from gptjax.serve.session import (
    PLAIN,
    Message,
    Session,
    conversation_json,
    draw,
    escape_controls,
    last_message,
    reply_to,
    send,
    text_before_tokens,
    visible_token,
)

NUM_ALTERNATIVES = 6  # that /why lists for each token
SETTABLE = (
    *('temperature', 'top_p', 'top_k', 'min_p', 'max_tokens'),
    *('repetition_penalty', 'presence_penalty', 'frequency_penalty'),
)
HELP = """\
/regenerate      draws another reply
/version N       goes back to reply N
/edit [TEXT]     changes your last message
/continue        continues the reply
/why             lists the probability of each token, and the alternatives
/pick TOKEN N    continues from alternative N of a token; /why gives the numbers
/system [TEXT]   sets the system prompt
/compare STEP    another checkpoint of the run replies, with the same seed
/set NAME=VALUE  sets temperature, top_p and others; /set alone lists them
/seed [N]        sets the seed; without N each reply has a random seed
/new             starts a new conversation
/save FILE       writes the conversation as JSON, which the chat page imports
/quit            ends the chat, as Ctrl-D does
Ctrl-C stops a reply. A line that ends in \\ goes on in the next. //x sends /x."""


def chat(
    config: ConfigDict, workdir: Path, context: int | None = None, **options
) -> None:
    """Chats on standard input and output until /quit or the end of the input.

    `context` is the flag, see `choose_context`; `options` are arguments of
    `load_engine`.
    """
    from gptjax.eval import quantization_cost
    from gptjax.train.load_model import load_engine

    context = choose_context(
        workdir.name, config.model.context, context, config.data.context
    )
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load(step):
            with console.progress_bar('loading the model', 0):
                engine = load_engine(
                    config, workdir, step, slots=1, context=context, **options
                )
                engine.warm_up()
            engine.start()
            stack.callback(engine.close)
            return engine

        quantization = [options.get(name, 'whole') for name in ('weights', 'cache')]
        engine = load(None)
        with console.progress_bar('measuring the cost of quantization', 0):
            cost = quantization_cost.describe_cost(config, workdir, None, *quantization)
        # The parameters of the stage `sample` in this run, with alternatives for /why.
        sampling = {
            name: config.sample[name] for name in SETTABLE if name in config.sample
        }
        parameters = SamplingParameters(**sampling, logprobs=NUM_ALTERNATIVES)
        template = config.chat.template
        session = Session(engine, load, template, workdir.name, parameters)
        session.print(
            f'{workdir.name}, step {engine.trained_step:,}: the context has '
            f'{engine.context:,} tokens. /help lists the commands.'
        )
        if cost:
            session.print(cost)
        talk(session)


def talk(session: Session) -> None:
    """Reads lines and replies to them until the end of the input."""
    while True:
        try:
            line = session.read('› ', '')
            while line.endswith('\\'):
                line = f'{line[:-1]}\n{session.read("… ", "")}'
            if line.startswith('/') and not line.startswith('//'):
                name, _, words = line[1:].partition(' ')
                if name in ('quit', 'exit'):
                    return
                if name not in COMMANDS:
                    raise UserError(f'/{name}: no such command: /help lists them')
                COMMANDS[name](session, words.strip())
            elif line.strip():
                send(session, line[1:] if line.startswith('//') else line)
        except EOFError:
            return
        except KeyboardInterrupt:
            session.print('\nCtrl-D or /quit ends the chat')
        except UserError as error:
            session.print(f'error: {error}', sys.stderr)
        except (QueueFull, EngineStopped) as error:
            session.print(f'error: the engine refuses requests: {error}', sys.stderr)


# ---- commands: (session, the words after the command's name) ------------------


def _regenerate(session, words):
    reply_to(session, last_message(session.root, 'assistant')[1])


def _version(session, words):
    _, parent = last_message(session.root, 'assistant')
    parent.chosen = _parse_number(words, len(parent.children), '/version') - 1
    session.print(escape_controls(parent.children[parent.chosen].content))


def _edit(session, words):
    message, parent = last_message(session.root, 'user')
    text = words or session.read('› ', message.content)
    if text.strip():
        reply_to(session, parent.add(Message('user', text)))


def _continue(session, words):
    draw(session, last_message(session.root, 'assistant')[0])


PROBABILITY_EDGES = (0.5, 0.1, 0.01)  # between the colours of tokens
COLOURS = (PLAIN, '\x1b[36m', '\x1b[33m', '\x1b[31m')


def _why(session, words):
    tokens = _tokens_of(last_message(session.root, 'assistant')[0], '/why')
    tokenizer = session.engine.tokenizer
    width = max(len(visible_token(tokenizer, token.id)) for token in tokens)
    for position, token in enumerate(tokens, 1):
        alternatives = [
            f'{number} {visible_token(tokenizer, other)} {math.exp(logprob):.1%}'
            for number, (other, logprob) in enumerate(token.top, 1)
        ]
        probability = math.exp(token.logprob)
        text = f'{visible_token(tokenizer, token.id):{width}}'
        if session.colour:
            num_edges_above = sum(probability < edge for edge in PROBABILITY_EDGES)
            text = f'{COLOURS[num_edges_above]}{text}{PLAIN}'
        row = f'{position:4}  {text}  {probability:6.1%}   {"   ".join(alternatives)}'
        session.print(row)


def _pick(session, words):
    reply, parent = last_message(session.root, 'assistant')
    tokens = _tokens_of(reply, '/pick')
    position, choice = (*words.split(), '', '')[:2]
    position = _parse_number(position, len(tokens), '/pick')
    token = tokens[position - 1]
    choice = _parse_number(choice, len(token.top), f'/pick {position}')
    picked, logprob = token.top[choice - 1]
    tokenizer = session.engine.tokenizer
    tokens = [*tokens[: position - 1], Token(picked, logprob, token.top)]
    text = b''.join(tokenizer.bytes_of(token.id) for token in tokens)
    try:
        content = text_before_tokens(reply, tokenizer) + text.decode()
    except UnicodeDecodeError:
        raise UserError(
            f'/pick {words}: the token is part of a character: pick another'
        ) from None
    branch = dataclasses.replace(
        reply, content=content, tokens=tokens, children=[], chosen=0, finish=None
    )
    parent.add(branch)
    if not tokenizer.bytes_of(picked):  # a special token ends the reply
        branch.finish = 'stop'
        branch.tokens.pop()
    elif session.template == 'text' and '\n\n' in content:  # so does an empty line
        branch.finish = 'stop'
        branch.content = content.split('\n\n')[0]
    if branch.finish == 'stop':
        session.print(escape_controls(branch.content))
    else:
        draw(session, branch)


def _compare(session, words):
    reply, parent = last_message(session.root, 'assistant')
    step = _whole_number(words)
    if step is None:
        raise UserError(
            f'/compare {words}'.rstrip() + ': give a step, as /compare 1000'
        )
    engine = session.load(step)
    other_reply = Message('assistant', seed=reply.seed, parameters=reply.parameters)
    other_reply.model = f'{session.name}@{words}'
    draw(session, parent.add(other_reply), engine)


def _system(session, words):
    session.system = words
    session.print(f'system prompt: {words or "none"}')


def _set(session, words):
    changes = {}
    for word in words.split():
        name, _, value = word.partition('=')
        if name not in SETTABLE:
            raise UserError(f'/set {word}: use NAME=VALUE with {", ".join(SETTABLE)}')
        number_type = type(getattr(SamplingParameters(), name))
        try:
            changes[name] = number_type(value)
        except ValueError:
            fix = 'a whole number' if number_type is int else 'a number'
            raise UserError(f'/set {word}: use {fix}') from None
    changed = dataclasses.replace(session.parameters, **changes)
    check_parameters(changed, session.engine.vocab_size, '/set ')
    if changed.max_tokens < 1:
        raise UserError(f'/set max_tokens={changed.max_tokens}: use a number above 0')
    session.parameters = changed
    session.print('  '.join(f'{name}={getattr(changed, name)}' for name in SETTABLE))


def _seed(session, words):
    seed = _whole_number(words)
    if words and (seed is None or seed > LARGEST_SEED):
        raise UserError(f'/seed {words}: use a number from 0 to {LARGEST_SEED}')
    session.seed = seed
    session.print(f'seed: {words or "a new one each time"}')


def _new(session, words):
    session.root = Message('root')


def _save(session, words):
    if not words:
        raise UserError('/save: give a file, as /save talk.json')
    tokenizer = session.engine.tokenizer
    content = conversation_json(session.root, session.system, session.name, tokenizer)
    try:
        path = Path(words).expanduser()
        storage.write_json(path, content)
    except (OSError, RuntimeError, ValueError) as error:  # also '~nobody', 'a\0'
        why = getattr(error, 'strerror', None) or error
        raise UserError(f'/save {words}: {why}: use another path') from None
    session.print(f'saved: {path}')


def _help(session, words):
    session.print(HELP)


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


def _tokens_of(reply, command):
    if not reply.tokens:
        raise UserError(
            f'{command}: the reply has no tokens: /regenerate draws another'
        )
    return reply.tokens


def _parse_number(text, highest, command):
    number = _whole_number(text)
    if number is None or not 1 <= number <= highest:
        raise UserError(
            f'{command} {text}'.rstrip() + f': use a number, 1 to {highest}'
        )
    return number


def _whole_number(text):
    # Python refuses to convert thousands of digits.
    return int(text) if text.isdecimal() and len(text) < 20 else None
