"""The chat in the terminal: a scripted engine, and a real one in a pseudo-terminal."""

import codecs
import io
import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

import gptjax.infer.engine
from gptjax.core import console
from gptjax.infer.request import (
    ContextOverflow,
    EngineStopped,
    QueueFull,
    SamplingParameters,
    Token,
    Update,
)
from gptjax.serve.session import Session, read_line, shown_messages
from gptjax.serve.terminal import talk
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests import runs

SECONDS = 60


@pytest.fixture(scope='module')
def tokenizer():
    texts = ['Hello there, how are you? I am fine and you, I like cats and dogs.'] * 40
    return Tokenizer(train_model(texts, 'bpe', 340))


class Engine:
    """Sends the texts in `replies`, one token per update; records its requests."""

    context = 64
    trained_step = 7

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.replies = []  # texts; None: a reply that the user interrupts
        self.requests = []  # (prompt's text, parameters)
        self.cancelled = []

    def submit(self, prompt, parameters, listen):
        if len(prompt) >= self.context:
            raise ContextOverflow(len(prompt), self.context)
        self.requests.append((self.tokenizer.decode(prompt), parameters))
        text = self.replies.pop(0)
        cats = self.tokenizer.encode(' cats')[0]
        stream = self.tokenizer.stream()
        for token in self.tokenizer.encode('So far' if text is None else text):
            half = math.log(0.5)
            top = ((token, half), (cats, math.log(0.25)))
            top += ((self.tokenizer.eos_id, math.log(0.125)),)
            listen(Update(stream.push(token), (Token(token, half, top),)))
        if text is None:
            here = threading.main_thread().ident
            threading.Timer(0.1, signal.pthread_kill, [here, signal.SIGINT]).start()
        else:
            listen(Update(finish='stop'))
        return len(self.requests)

    def cancel(self, request_id):
        self.cancelled.append(request_id)

    _thread = threading.current_thread()  # not None: `reply` does not step the engine
    reply = gptjax.infer.engine.Engine.reply


@pytest.fixture
def engine(tokenizer):
    return Engine(tokenizer)


@pytest.fixture
def session(engine):
    other = Engine(engine.tokenizer)
    other.replies = ['by another']
    load = {5: other}.__getitem__
    parameters = SamplingParameters(max_tokens=8, logprobs=3)
    return Session(engine, load, 'text', 'small', parameters)


@pytest.fixture
def chat(session, engine, capsys):
    """Types lines while the engine replies with `replies`; returns (output, errors)."""

    def chat(*lines, replies=()):
        engine.replies = list(replies)
        coming = iter(lines)

        def read(prompt, begin):
            for line in coming:
                if line is KeyboardInterrupt:
                    raise KeyboardInterrupt
                return line.replace('BEGIN', begin)
            raise EOFError

        session.read = read
        talk(session)
        return capsys.readouterr()

    return chat


def test_a_conversation(chat, engine):
    printed = chat('Hello there', 'And you?', replies=['I am fine', 'cats'])
    assert printed.out == 'I am fine\ncats\n'
    assert engine.requests[0][0] == 'Hello there\n\n'
    assert engine.requests[1][0] == 'Hello there\n\nI am fine\n\nAnd you?\n\n'
    assert engine.requests[0][1].stop == ('\n\n',)
    assert engine.requests[0][1].seed != engine.requests[1][1].seed


def test_lines_that_go_on_and_lines_that_begin_with_a_slash(chat, engine):
    chat('one\\', 'two', '//help', '', '  ', replies=['a', 'b'])
    assert engine.requests[0][0] == 'one\ntwo\n\n'
    assert engine.requests[1][0].endswith('/help\n\n') and len(engine.requests) == 2


def test_quit_and_unknown_commands(chat, engine):
    printed = chat('/help', '/dance', '/quit', 'not read any more')
    assert '/regenerate' in printed.out and not engine.requests
    assert printed.err == 'error: /dance: no such command: /help lists them\n'


def test_regenerate_edit_and_versions(chat, engine):
    printed = chat(
        *('/seed 7', 'Hello', '/regenerate', '/version 1', 'More'),
        *('/edit', 'BEGIN cats', '/edit dogs'),
        replies=['first', 'second', 'third', 'fourth', 'fifth'],
    )
    assert printed.out.splitlines()[1:] == [
        *('first', 'second', 'first', 'third', 'fourth', 'fifth')
    ]
    prompts = [prompt for prompt, _ in engine.requests]
    assert prompts[0] == prompts[1] == 'Hello\n\n'
    assert [parameters.seed for _, parameters in engine.requests[:2]] == [7, 8]
    assert prompts[2:] == [
        f'Hello\n\nfirst\n\n{text}\n\n' for text in ('More', 'More cats', 'dogs')
    ]


def test_ctrl_c_stops_a_reply_and_nothing_else(chat, engine, session):
    printed = chat('Hello', '/continue', replies=[None, ' and on'])
    assert printed.out == 'So far\nSo far and on\n'
    assert engine.cancelled[0] == 1
    assert engine.requests[1][0] == 'Hello\n\nSo far'
    assert engine.requests[1][1].seed == engine.requests[0][1].seed
    [reply] = shown_messages(session.root)[1:]
    assert reply.content == 'So far and on' and reply.finish == 'stop'


def test_ctrl_c_at_the_prompt_does_not_leave(chat):
    printed = chat(KeyboardInterrupt, 'Hello', replies=['Hi'])
    assert printed.out == '\nCtrl-D or /quit ends the chat\nHi\n'


def test_why_and_pick(chat, engine, tokenizer):
    text = 'I like dogs'
    printed = chat(
        *('Hello', '/why', '/pick 2 2', '/version 1', '/pick 2 3'),
        *('/pick 99 1', '/pick 1 9', '/pick'),
        replies=[text, ' too'],
    )
    lines = printed.out.splitlines()
    tokens = tokenizer.encode(text)
    row = lines[2].split()
    assert len(tokens) + 1 == lines.index('I cats too')
    assert row[0] == '2' and row[2] == '50.0%'
    assert row[-6:] == ['2', '·cats', '25.0%', '3', '<eos>', '12.5%']
    assert engine.requests[1][0] == 'Hello\n\nI cats'
    assert lines[-2:] == [text, 'I']  # the picked reply ends at I
    assert printed.err.splitlines() == [
        'error: /pick 99: use a number, 1 to 1',
        'error: /pick 1 9: use a number, 1 to 3',
        'error: /pick: use a number, 1 to 1',
    ]


def test_a_reply_without_tokens_has_none_to_pick(chat):
    printed = chat('Hello', '/why', '/pick x', '/pick', replies=[''])
    assert printed.err.splitlines() == [
        f'error: {command}: the reply has no tokens: /regenerate draws another'
        for command in ('/why', '/pick', '/pick')
    ]


def test_another_checkpoint_on_the_same_seed(chat, engine, session):
    printed = chat('Hello', '/compare 5', '/version 1', '/compare', replies=['by one'])
    assert printed.out.splitlines() == ['by one', 'by another', 'by one']
    assert 'give a step' in printed.err
    assert session.load(5).requests == engine.requests


def test_settings(chat, engine, session):
    printed = chat(
        *('/set temperature=0.25 top_k=5', '/system Be kind.', '/seed 3', 'Hello'),
        *('/set temperature=-1', '/set top_k=many', '/set colour=1', '/seed -1'),
        *('/set max_tokens=0', '/seed', 'More'),
        replies=['Hi', 'Ho'],
    )
    assert 'temperature=0.25' in printed.out and 'top_k=5' in printed.out
    prompt, parameters = engine.requests[0]
    assert prompt == 'Be kind.\n\nHello\n\n'
    assert (parameters.temperature, parameters.top_k, parameters.seed) == (0.25, 5, 3)
    assert engine.requests[1][1].temperature == 0.25 and session.seed is None
    assert [line.split(':')[1] for line in printed.err.splitlines()] == [
        *(' /set temperature=-1.0', ' /set top_k=many', ' /set colour=1', ' /seed -1'),
        ' /set max_tokens=0',
    ]
    assert session.parameters.max_tokens == 8


def test_a_number_of_thousands_of_digits_is_an_error(chat):
    long = '9' * 5000  # Python does not convert it
    lines = [f'/{name} {long}' for name in ('seed', 'version', 'compare')]
    printed = chat('Hello', *lines, replies=['Hi'])
    assert printed.err.count('error: /') == 3


def test_the_oldest_messages_go_where_the_context_is_full(chat, engine):
    printed = chat(
        *('cats ' * 40, 'dogs ' * 40, 'x' * 99, 'Hello'), replies=['a b', 'c', 'd']
    )
    assert engine.requests[1][0].startswith('dogs')
    assert 'the prompt has' in printed.err and 'context 64' in printed.err
    assert engine.requests[2][0] == 'Hello\n\n'


def test_what_is_asked_for_before_anything_was_said(chat):
    printed = chat(
        '/regenerate', '/edit x', '/why', '/continue', '/version 1', '/pick 1 1'
    )
    assert (
        printed.err == 'error: the conversation is empty: write a message first\n' * 6
    )


def test_model_text_cannot_command_the_terminal(chat):
    printed = chat('Hello', replies=['\x1b[2Jred\x07 \x9b1m\r fine\n\ttab'])
    assert printed.out == '\\x1b[2Jred\\x07 \\x9b1m\\x0d fine\n\ttab\n'


def test_save(chat, session, tmp_path):
    path = tmp_path / 'talk.json'
    printed = chat(
        *('/system Be kind.', 'Hello', '/regenerate', f'/save {path}'),
        *('/save', f'/save {path}/below', '/save ~no_such_user/a', '/save a\0b'),
        replies=['I am fine 😀', 'cats'],
    )
    assert 'give a file' in printed.err
    assert printed.err.count('use another path') == 3
    file = json.loads(path.read_text())
    assert (file['format'], file['version']) == ('gptjax-conversations', 1)
    [one] = file['conversations']
    assert one['system'] == 'Be kind.' and one['lanes'][0]['model'] == 'small'
    [user] = one['lanes'][0]['root']['children']
    assert user['chosen'] == 1
    reply = user['children'][0]
    assert reply['content'] == 'I am fine 😀' and reply['finish'] == 'stop'
    assert ''.join(text for text, _, _ in reply['tokens']) == reply['content']
    assert reply['parameters']['max_tokens'] == 8
    kinds = {kind for _, _, top in reply['tokens'] for _, _, kind in top}
    assert kinds == {'', 'end', 'part'}


def test_lines_of_a_pipe(monkeypatch, capsys):
    content = b'\xef\xbb\xbfone\r\n\ntw\xff\r\n/quit'
    # As Python opens standard input: no byte may be wrong, and lines end in '\n' alone.
    with io.TextIOWrapper(io.BytesIO(content), 'utf-8', 'strict', '\n') as lines:
        monkeypatch.setattr(sys, 'stdin', lines)
        console.accept_any_text()
        said = [read_line('› ', '') for _ in range(4)]
        assert said == ['one', '', 'tw\ufffd', '/quit']
        with pytest.raises(EOFError):
            read_line('› ', '')
    assert capsys.readouterr().out == '› one\n› \n› tw\ufffd\n› /quit\n'


@pytest.mark.parametrize('error', [None, QueueFull, EngineStopped])
def test_an_engine_that_fails_or_refuses_is_an_error(chat, engine, error):
    def submit(prompt, parameters, listen):
        if error:
            raise error('2 requests wait')
        listen(Update(finish='error', error='2 requests wait'))

    engine.submit = submit
    refused = 'the engine refuses requests: ' if error else ''
    assert chat('Hello').err == f'error: {refused}2 requests wait\n'


# ---- the stage ---------------------------------------------------------------------


@pytest.fixture
def compiles_fast(monkeypatch):
    """Switches optimizations off, as the servers of these tests do."""
    monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')


@pytest.mark.slow
def test_the_stage_reads_a_pipe(served_run, compiles_fast):
    process = runs.start(
        'chat', f'--workdir={served_run}', stdin=subprocess.PIPE, bufsize=0
    )
    output, errors = process.communicate('/seed 1\nHello\n/why\n', timeout=300)
    assert process.returncode == 0, errors
    assert 'tiny, step 2' in output.splitlines()[0]
    assert '%' in output.splitlines()[-1]


# Makes the pseudo-terminal the controlling terminal, so that Ctrl-C is a signal.
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, '-m', 'gptjax', *sys.argv[1:]])
"""


@pytest.mark.slow
def test_the_stage_on_a_terminal(served_run, compiles_fast):
    """Ctrl-C, history and Ctrl-D at a keyboard."""
    here, there = pty.openpty()
    words = [sys.executable, '-c', OWN_TERMINAL, 'chat', f'--workdir={served_run}']
    process = subprocess.Popen(
        words,
        cwd=runs.ROOT,
        env=runs.environment(TERM='xterm'),
        **dict.fromkeys(('stdin', 'stdout', 'stderr'), there),
        start_new_session=True,
    )
    os.close(there)
    printed = ''
    decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def wait_for(text, seconds=SECONDS):
        nonlocal printed
        end = time.monotonic() + seconds
        while text not in printed:
            ready, _, _ = select.select([here], [], [], max(end - time.monotonic(), 0))
            assert ready, f'{text!r} did not come: {printed!r}'
            printed += decoder.decode(os.read(here, 4096))
        printed = printed.partition(text)[2]

    def press(keys):
        os.write(here, keys.encode())

    try:
        wait_for('› ', 300)
        press('/set max_tokens=1000 min_p=0\r')
        wait_for('max_tokens=1000')
        press('Hello there\r')
        wait_for('seed ')  # the line after the reply
        wait_for('› ')
        os.write(here, b'na\xefve\r')  # as a terminal in Latin-1 sends it
        wait_for('seed ')
        wait_for('› ')
        press('half a line\x03')
        wait_for('Ctrl-D or /quit ends the chat')
        press('\x1b[A\r')  # the previous line, from the history
        wait_for('na')
        wait_for('seed ')
        wait_for('› ')
        press('\x04')
        process.wait(SECONDS)
    finally:
        process.kill()
        os.close(here)
    assert process.returncode == 0
