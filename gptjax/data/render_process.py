"""Starts the process of `render_jinja.py`, and asks it for renderings of templates."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from gptjax.core.console import UserError

PROCESSOR_SECONDS = 5.0  # for the renderings of a conversation
REAL_SECONDS = 60.0  # after which the process is killed


class RefusedMessages(UserError):
    """A conversation that the template refuses, or that is not to be learned in it."""


class Process:
    """A process of `render_jinja.py`, started when it is needed."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process, self._owner = None, None

    def render(self, tokenizer, renders: list[dict]) -> list[str]:
        """The texts of `renders`, variables each; UserError if the template fails."""
        request = dict(
            template=tokenizer.chat_template,
            variables=tokenizer.names,
            renders=renders,
            seconds=PROCESSOR_SECONDS,
        )
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b'\n')
        if 'texts' in answer:
            return answer['texts']
        template = 'the chat template of the model'
        if answer.get('raised'):
            raise RefusedMessages(f'{template} refuses the messages: {answer["error"]}')
        raise UserError(
            f'{template} {answer["error"]}: import it with another one, or use '
            '--config.chat.template=text'
        )

    def _ask(self, line: bytes) -> dict:
        if self._process is None or self._owner != os.getpid():
            script = Path(__file__).with_name('render_jinja.py')
            self._process = subprocess.Popen(
                [sys.executable, '-P', str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner = os.getpid()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            return json.loads(self._read_line())
        except (OSError, ValueError):  # it was killed: no memory, or no time
            self._end()
            return dict(error='needs too much memory or time')
        except BaseException:  # Ctrl-C: the next answer would be that of this request
            self._end()
            raise

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = None

    def _read_line(self) -> bytes:
        output, parts = self._process.stdout.fileno(), []
        end = time.monotonic() + REAL_SECONDS
        while not parts or not parts[-1].endswith(b'\n'):
            left = end - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise OSError('time is over')
            parts.append(os.read(output, 2**20))
            if not parts[-1]:
                raise OSError('the process has ended')
        return b''.join(parts)


PROCESS = Process()
