"""A process that renders Jinja templates of conversations, which may be hostile.

`render_process.py` starts it as a script. It reads a JSON object a line and answers
with one: `template`, `variables`, a list `renders` of further variables, and `seconds`
of processor time give `texts` or an `error`. Templates run in Jinja's sandbox, with a
limit of memory and time, so one that loops or grows ends with an error.

The environment is the one that `transformers` gives chat templates, except for TODAY.
"""

import contextlib
import functools
import json
import resource
import signal
import sys
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 2**30
MAX_CHARACTERS = 2**25  # of all texts of a line
# The date for templates that write today's: a prompt does not change with the day, and
# is that of training. Llama's own template has this one where no date is known.
TODAY = datetime(2024, 7, 26)
# Around what `{% generation %}` encloses. Half surrogates: no message has them.
GENERATION_BEGINS, GENERATION_ENDS = '\udffe', '\udfff'


class GenerationMarks(Extension):
    """{% generation %} … {% endgeneration %} encloses what a model is trained on."""

    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        call = self.call_method('_mark')
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller):
        return GENERATION_BEGINS + caller() + GENERATION_ENDS


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationMarks, 'jinja2.ext.loopcontrols'],
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise_exception
    return environment.from_string(template)


def _render(request: dict) -> dict:
    try:
        template = _compile(request['template'])
        texts = []
        for variables in request['renders']:
            every = {
                **request['variables'],
                **variables,
                'strftime_now': TODAY.strftime,
            }
            texts.append(template.render(every))
            if sum(map(len, texts)) > MAX_CHARACTERS:
                return dict(error=f'writes over {MAX_CHARACTERS:,} characters')
    except _Timeout:
        return dict(error=f'runs for over {request["seconds"]} s')
    except MemoryError:
        return dict(error=f'uses over {MEMORY_BYTES >> 20} MiB of memory')
    except RecursionError:
        return dict(error='calls itself without an end')
    except jinja2.TemplateSyntaxError as error:  # whatever the messages are
        return dict(error=f'cannot be compiled: {error.message}, line {error.lineno}')
    except Exception as error:  # a template can raise any
        message = str(error) or type(error).__name__
        return dict(error=message[:500], raised=True)
    return dict(texts=texts)


class _Timeout(BaseException):
    """The processor time is over; no handler of a library catches it."""


def _raise_timeout(signum, frame):
    raise _Timeout


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's
    signal.signal(signal.SIGVTALRM, _raise_timeout)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, request['seconds'])
            answer = _render(request)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _Timeout:
            answer = dict(error=f'runs for over {request["seconds"]} s')
        try:
            written = json.dumps(answer)
        except MemoryError:
            written = json.dumps(dict(error='writes too much text'))
        sys.stdout.write(written + '\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
