"""The chat page in a headless Chromium, and a scripted server.

tests/serve uses the fixtures `browser`, `scripted` and `open_page`.
"""

import json
import math
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptjax.serve.security import content_policy
from tests import runs

PAGE = runs.ROOT / 'gptjax' / 'serve' / 'page.html'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason='no Chromium on this machine: install chromium'
)
SECONDS = 20  # limit of waiting for something that has to appear

MARKDOWN = """\
# Title
Plain **bold** *slanted* `co*d*e` ~~gone~~ snake_case_name 2 * 3 * 4 \\*star\\*
next line

- one
  1. inner
- two

> quoted
> > deeper

```python
if a < b:
    print("**x**")
```

| a | b |
|---|--:|
| 1 | `2|3` |
| 4 | **5** |

---
See [it](https://example.org/a_(b)) or https://example.org/c."""

HTML = '<img src=x onerror=alert(1)>'  # stays text wherever it comes from


def model_card(name: str, **accuracies) -> dict:
    """The card of a model; replies drawn at temperature 1 are right 0.1 less often."""
    skills = [
        dict(name=skill, problems=40, accuracy=value, accuracy_drawn=value - 0.1)
        | dict(interval=[value - 0.05, value + 0.05])
        for skill, value in accuracies.items()
    ]
    can, cannot = ([s for s in skills if (s['accuracy'] >= 0.5) == b] for b in (1, 0))
    suggestions = [dict(skill=s, text=f'{s["name"]} {HTML}?') for s in can]
    source = dict(name=HTML, version='', licence='', amount=7, unit='documents')
    stage = dict(run='first', stage=None, step=1200, sources=[source, source])
    figures = [dict(label='accuracy', value=0.7, interval=None)]
    figures[0]['baselines'] = dict(chance=0.25)
    tasks = [dict(name='task', about=HTML, level=0.95, figures=figures)]
    last = dict(stage, run='last', stage='sft', sources=[])
    card = dict(id=name, parameters=1234, context=128, vocabulary=512)
    card |= dict(stages=[stage, last], can=can, cannot=cannot, remarks=['It is small.'])
    return card | dict(tasks=tasks, suggestions=suggestions)


# ---- the server ----------------------------------------------------------------


def split_tokens(text: str) -> list[bytes]:
    """The tokens of a text: words with their leading space, bytes of an emoji."""
    tokens = []
    for word in re.findall(r' ?\w+|\n+|.', text):
        content = word.encode()
        is_whole = len(content) < 4 or word.isascii()
        tokens += [content] if is_whole else [bytes([byte]) for byte in content]
    return tokens


def entry(token: bytes, probability: float) -> dict:
    text = token.decode('utf-8', 'backslashreplace') or '<eos>'
    return dict(token=text, logprob=math.log(probability), bytes=list(token) or None)


def chunk(text='', finish=None, tokens=None):
    delta = dict(content=text) if text else {}
    logprobs = dict(content=tokens) if tokens else None
    choice = dict(index=0, delta=delta, finish_reason=finish, logprobs=logprobs)
    return dict(id='c', object='chat.completion.chunk', choices=[choice])


def reply(text: str, finish='stop', prompt_tokens=9, probability=0.25):
    """The events of a reply, each token with the same four alternatives."""
    others = [(b' cats', 0.5), (b'', 0.125), (b'\xf0', 0.0625), (b'\n\n', 0.03)]
    others = [entry(*other) for other in others]
    open_bytes = b''
    tokens = split_tokens(text)
    for token in tokens:
        own = entry(token, probability)
        open_bytes += token
        try:
            shown, open_bytes = open_bytes.decode(), b''
        except UnicodeDecodeError:
            shown = ''
        top = [others[0], own, *others[1:]]
        yield chunk(shown, tokens=[dict(own, top_logprobs=top)])
    yield chunk(finish=finish)
    usage = dict(prompt_tokens=prompt_tokens, completion_tokens=len(tokens))
    yield dict(id='c', choices=[], usage=usage)
    yield '[DONE]'


def refusal(status, message, code=None, **headers):
    error = dict(message=message, type='error', param=None, code=code)
    return status, dict(error=error), headers


class Scripted:
    """Answers chat completions with `answer(body)`: a text, events, or an error.

    requests: the bodies of the requests, in order.
    left: is set when a client disconnects before the end.
    """

    def __init__(self, port=0):
        self.answer = lambda body: 'Fine, thank you.'
        self.models = dict(small=128, other=128)
        self.cards = {}  # of models by name; the others have none
        # An error instead of the list of models, unless the key is sent.
        self.listing = None
        self.key = 'Bearer secret'
        self.requests = []
        self.left = threading.Event()
        self._http = ThreadingHTTPServer(('127.0.0.1', port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.address = f'http://127.0.0.1:{self.port}/'
        serve = self._http.serve_forever
        threading.Thread(target=serve, args=[0.02], daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def _handler(scripted):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def send(self, status, content, kind='application/json', **headers):
                self.send_response(status)
                self.send_header('Content-Type', kind)
                self.send_header('Content-Length', len(content))
                for name, value in headers.items():
                    self.send_header(name.replace('_', '-'), str(value))
                self.end_headers()
                self.wfile.write(content)

            def refuse(self, status, value, headers):
                self.send(status, json.dumps(value).encode(), **headers)

            def do_GET(self):
                if self.path == '/':
                    html = PAGE.read_text(encoding='utf-8')
                    headers = dict(Content_Security_Policy=content_policy(html))
                    self.send(200, html.encode(), 'text/html; charset=utf-8', **headers)
                elif scripted.listing and self.headers['Authorization'] != scripted.key:
                    self.refuse(*scripted.listing)
                elif self.path.startswith('/model_card'):
                    card = scripted.cards.get(self.path.rpartition('=')[2])
                    status = 200 if card else 404
                    self.send(status, json.dumps(card or {}).encode())
                else:
                    facts = dict(step=7, template='text', description='Two layers')
                    data = [
                        dict(id=name, max_model_len=context, gptjax=facts)
                        for name, context in scripted.models.items()
                    ]
                    self.send(200, json.dumps(dict(data=data)).encode())

            def do_POST(self):
                length = int(self.headers['Content-Length'])
                body = json.loads(self.rfile.read(length))
                if self.path == '/tokenize':
                    contents = [message['content'] for message in body['messages']]
                    count = sum(len(split_tokens(content)) for content in contents)
                    self.send(200, json.dumps(dict(count=count)).encode())
                    return
                scripted.requests.append(body)
                answer = scripted.answer(body)
                if isinstance(answer, tuple):
                    self.refuse(*answer)
                    return
                self.send_response(200)
                self.send_header('Content-Type', 'text/event-stream')
                self.end_headers()
                events = reply(answer) if isinstance(answer, str) else answer
                try:
                    for event in events:
                        data = event if isinstance(event, str) else json.dumps(event)
                        self.wfile.write(f'data: {data}\n\n'.encode())
                        self.wfile.flush()
                except OSError:
                    scripted.left.set()

        return Handler


# ---- the page ------------------------------------------------------------------


@pytest.fixture
def scripted():
    """A server whose answers a test decides."""
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, scripted):
    """Opens the page; checks at the end that nothing violated its policy or raised."""
    contexts, errors = [], []

    def record_console(message):
        if message.type == 'error' and 'Failed to load resource' not in message.text:
            errors.append(message.text)

    def open_page(
        address='', script='', width=1200, height=800, wait='#openers button', **options
    ):
        context = browser.new_context(
            viewport=dict(width=width, height=height),
            permissions=['clipboard-read', 'clipboard-write'],
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.on('console', record_console)
        page.on('pageerror', lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(address or scripted.address)
        page.locator(wait).first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def open_tab(page, script=''):
    """Opens the conversation of the page in another tab of the same browser."""
    other = page.context.new_page()
    if script:
        other.add_init_script(script)
    other.goto(page.url)
    other.locator('.assistant').first.wait_for()
    return other


def say(page, text, wait=True):
    page.fill('#text', text)
    page.press('#text', 'Enter')
    if wait:
        settle(page)


def settle(page):
    """Waits until no reply is streaming."""
    page.locator('.streaming').first.wait_for(state='detached')


def last_reply(page):
    return page.locator('.assistant').last


def text_of(page):
    return last_reply(page).locator('.body').inner_text()


def wait_for(page, selector, **options):
    page.locator(selector).first.wait_for(**options)
