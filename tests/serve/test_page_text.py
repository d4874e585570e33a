"""The chat page: Markdown, tokens, two checkpoints side by side."""

import threading

import pytest

from tests.chat_page import (
    MARKDOWN,
    SECONDS,
    chunk,
    last_reply,
    needs_browser,
    say,
    settle,
    split_tokens,
    text_of,
)

pytestmark = [needs_browser, pytest.mark.slow]


# ---- Markdown, and model text that must stay text ----------------------


def test_markdown(scripted, open_page):
    scripted.answer = lambda body: MARKDOWN
    page = open_page()
    say(page, 'Hello')
    body = last_reply(page).locator('.body')
    expected = {
        'h3': ['Title'],
        'strong': ['bold', '5'],
        'em': ['slanted'],
        'p > code': ['co*d*e'],
        'del': ['gone'],
        'ul > li > ol > li': ['inner'],
        'blockquote > blockquote': ['deeper'],
        'pre > code': ['if a < b:\n    print("**x**")'],
        'th': ['a', 'b'],
    }
    for selector, texts in expected.items():
        assert body.locator(selector).all_text_contents() == texts, selector
    paragraph = body.locator('p').first.text_content()
    assert 'snake_case_name 2 * 3 * 4 *star*\nnext line' in paragraph
    assert body.locator('hr').count() == 1
    links = body.locator('a')
    assert [link.get_attribute('href') for link in links.all()] == [
        'https://example.org/a_(b)',
        'https://example.org/c',
    ]
    assert {link.get_attribute('rel') for link in links.all()} == {
        'noopener noreferrer'
    }


ATTACKS = """\
<img src=x onerror="window.pwned = 1"> <script>window.pwned = 1</script> </script>
<svg onload=window.pwned=1> [a](javascript:window.pwned=1) [b](JaVaScRiPt:alert(1))
[c](data:text/html,<script>window.pwned=1</script>) [d](//evil.example) [e](/v1/models)
<javascript:alert(1)> ![i](https://evil.example/i.png) <a href="https://x" onclick=1>

```"><img src=x onerror=window.pwned=1>
code
```
[f](https://ok.example/"onmouseover="window.pwned=1) &lt;b&gt;
"""


def test_model_text_is_never_markup(scripted, open_page):
    scripted.answer = lambda body: ATTACKS
    page = open_page()
    urls = []
    page.on('request', lambda request: urls.append(request.url))
    say(page, ATTACKS)
    body = last_reply(page).locator('.body')
    tags = body.evaluate('(b) => [...b.querySelectorAll("*")].map((e) => e.localName)')
    assert not {'img', 'script', 'svg', 'b'} & (set(tags) - {'svg'})
    assert body.locator('svg:not(.icon)').count() == 0
    addresses = [link.get_attribute('href') for link in body.locator('a').all()]
    assert all(address.startswith('https://') for address in addresses)
    attributes = body.evaluate(
        '(b) => [...b.querySelectorAll("*")].flatMap((e) => e.getAttributeNames())'
    )
    assert not [name for name in attributes if name.startswith('on') or name == 'style']
    shown = body.text_content()
    assert '<img src=x onerror="window.pwned = 1">' in shown
    assert '&lt;b&gt;' in shown and 'javascript:window.pwned=1' in shown
    assert page.evaluate('window.pwned') is None
    last_reply(page).locator('[data-action=toggleTokens]').click()
    assert page.evaluate('window.pwned') is None
    assert all(url.startswith(scripted.address) for url in urls)


def test_streaming_leaves_what_is_there_alone(scripted, open_page):
    rest = threading.Event()

    def halting(body):
        yield from (chunk(text) for text in ('First ', 'one.\n\n- a **bo', 'ld'))
        rest.wait(SECONDS)
        yield from (chunk(text) for text in (' item**\n- b\n\nLast.', ''))
        yield chunk(finish='stop')
        yield '[DONE]'

    scripted.answer = halting
    page = open_page()
    say(page, 'Hello', wait=False)
    body = last_reply(page).locator('.body')
    body.locator('strong').wait_for()
    assert body.locator('strong').inner_text() == 'bold'  # the closing ** is missing
    parts = "[...b.querySelectorAll('p, ul, li, strong')]"
    body.evaluate(f'(b) => {parts}.forEach((e) => {{ e.old = 1; }})')
    rest.set()
    settle(page)
    assert body.locator('strong').inner_text() == 'bold item'
    assert body.evaluate(f'(b) => {parts}.map((e) => e.old ?? 0)') == [1, 1, 1, 1, 0, 0]


# ---- tokens ----------------------------------------------------------------------


def test_a_token_tells_its_probability_and_its_alternatives(scripted, open_page):
    scripted.answer = lambda body: 'I like **dogs** a lot'
    page = open_page()
    say(page, 'Hello')
    card = page.locator('#card')
    token = last_reply(page).locator('.token', has_text='dogs')
    token.hover()
    card.wait_for()
    assert card.locator('.head').inner_text().split() == ['dogs', '25.0%']
    assert '2nd likeliest, 2.0 bits' in card.inner_text()
    rows = card.locator('li').all_inner_texts()
    assert [row.split('\n')[0] for row in rows] == [
        '·cats',
        'dogs',
        'end of reply',
        '\\xf0',
        '↵↵',
    ]
    page.mouse.move(5, 5)
    card.wait_for(state='hidden')

    # Choosing an alternative begins a new version that continues from it.
    scripted.answer = lambda body: ' more.'
    token.hover()
    card.get_by_role('button', name='cats').click()
    settle(page)
    body = scripted.requests[-1]
    assert body['continue_final_message'] is True
    assert body['messages'][-1] == dict(role='assistant', content='I like ** cats')
    assert body['seed'] == scripted.requests[0]['seed']
    assert last_reply(page).locator('.body').text_content() == 'I like ** cats more.'
    assert '2 / 2' in last_reply(page).locator('.actions').inner_text()
    last_reply(page).locator('.token', has_text='cats').hover()
    card.locator('.head', has_text='50.0%').wait_for()

    # The end as an alternative needs no request; part of a character is not text.
    num_requests = len(scripted.requests)
    last_reply(page).locator('.token', has_text='like').click()
    assert card.get_by_role('button', name='xf0').count() == 0
    card.get_by_role('button', name='end of reply').click()
    assert last_reply(page).locator('.body').text_content() == 'I'
    assert len(scripted.requests) == num_requests

    # Neither does an empty line, for a model that ends its turns with one.
    last_reply(page).locator('[data-action=previous]').click()
    last_reply(page).locator('.token', has_text='like').click()
    card.get_by_role('button', name='↵↵').click()
    assert last_reply(page).locator('.body').text_content() == 'I'
    assert len(scripted.requests) == num_requests

    last_reply(page).locator('[data-action=previous]').click()
    last_reply(page).locator('[data-action=previous]').click()
    last_reply(page).locator('.token', has_text='like').click()
    card.get_by_role('button', name='Draw again').click()
    settle(page)
    assert scripted.requests[-1]['messages'][-1]['content'] == 'I'
    assert scripted.requests[-1]['seed'] != scripted.requests[0]['seed']


def test_tokens_by_keyboard_and_characters_of_several_tokens(scripted, open_page):
    scripted.answer = lambda body: 'Hi 😀\nbye'
    page = open_page()
    say(page, 'Hello')
    page.keyboard.press('Alt+i')
    tokens = last_reply(page).locator('.tokens[role=group] .token')
    assert tokens.count() == len(split_tokens('Hi 😀\nbye')) == 8
    assert tokens.first.get_attribute('aria-label') == 'Hi, 25.0%'
    assert tokens.all_inner_texts()[1:6] == [' ', '∅', '∅', '∅', '😀']
    page.keyboard.press('ArrowRight')
    page.keyboard.press('End')
    assert page.evaluate('document.activeElement.textContent') == 'bye'
    page.keyboard.press('Enter')
    assert page.evaluate('document.activeElement.dataset.action') == 'pick'
    page.keyboard.press('Escape')
    assert page.evaluate('document.activeElement.textContent') == 'bye'
    # Within a character, no alternative can be chosen.
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    assert page.locator('#card [data-action=pick]').all_inner_texts() == [
        'end of reply\n12.5%'
    ]
    page.keyboard.press('Escape')
    page.keyboard.press('Alt+i')
    assert text_of(page) == 'Hi 😀\nbye'


def test_two_checkpoints_on_the_same_seed(scripted, open_page):
    scripted.answer = lambda body: f'I am {body["model"]}'
    page = open_page()
    say(page, 'Before')
    page.click('#compare')
    say(page, 'Who are you?')
    bodies = {body['model']: body for body in scripted.requests[1:]}
    assert bodies['small']['seed'] == bodies['other']['seed']
    assert bodies['small']['messages'] == bodies['other']['messages']
    assert page.locator('.assistant .body').all_inner_texts() == [
        'I am small',
        'I am small',
        'I am other',
    ]
    left, right = (page.locator('.assistant').nth(n).bounding_box() for n in (1, 2))
    assert left['y'] == right['y'] and left['x'] + left['width'] < right['x']
    say(page, 'And now?')
    own = {b['model']: b['messages'][-2]['content'] for b in scripted.requests[3:]}
    assert own == dict(small='I am small', other='I am other')
    page.locator('.assistant').last.locator('[data-action=regenerate]').click()
    settle(page)
    assert len({body['seed'] for body in scripted.requests[5:]}) == 1
    assert len(scripted.requests) == 7
    page.get_by_role('button', name='Close small').click()
    assert text_of(page) == 'I am other'
    page.get_by_role('button', name='Undo').click()
    assert page.locator('.lane-name').count() == 4
