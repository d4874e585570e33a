"""The chat page: conversations and errors."""

import threading

import pytest

from tests import servers
from tests.chat_page import (
    SECONDS,
    Scripted,
    chunk,
    last_reply,
    needs_browser,
    refusal,
    say,
    settle,
    text_of,
    wait_for,
)

pytestmark = needs_browser


# ---- conversations -------------------------------------------------------------------


def test_a_conversation(scripted, open_page):
    page = open_page()
    assert 'Talk to small' in page.locator('#empty').inner_text()
    page.fill('#text', 'one')
    page.press('#text', 'Shift+Enter')
    page.keyboard.type('two')
    page.press('#text', 'Enter')
    settle(page)
    assert text_of(page) == 'Fine, thank you.'
    [first] = scripted.requests
    assert first['model'] == 'small' and first['stream'] is True
    assert first['messages'] == [dict(role='user', content='one\ntwo')]
    assert first['logprobs'] is True and first['top_logprobs'] == 8
    assert 'continue_final_message' not in first
    say(page, 'again')
    roles = [message['role'] for message in scripted.requests[1]['messages']]
    assert roles == ['user', 'assistant', 'user']
    assert page.locator('#context').inner_text() == '14 of 128 tokens'
    assert page.input_value('#text') == ''


def test_settings_are_sent_and_kept(scripted, open_page):
    page = open_page()
    page.click('#show-settings')
    page.fill('#system', 'Be brief.')
    values = dict(temperature='0.35', top_p='0.5', top_k='12', min_p='0.1', seed='41')
    values |= dict(max_tokens='33', repetition_penalty='1.2')
    values |= dict(presence_penalty='0.4', frequency_penalty='-0.3')
    for name, value in values.items():
        page.fill(f'#field-{name}', value)
    page.fill('#field-top_p', '7')  # out of range: becomes the nearest valid value
    page.click('#field-top_k')
    assert page.input_value('#field-top_p') == '1'
    page.uncheck('#probabilities')
    say(page, 'Hello')
    [body] = scripted.requests
    assert body['messages'][0] == dict(role='system', content='Be brief.')
    del values['top_p']
    assert {name: body[name] for name in values} == {
        name: float(value) for name, value in values.items()
    }
    assert 'logprobs' not in body
    page.reload()
    page.locator('.assistant').wait_for()
    assert page.input_value('#field-min_p') == '0.1'
    assert page.input_value('#system') == 'Be brief.'
    last_reply(page).locator('[data-action=regenerate]').click()
    settle(page)
    assert scripted.requests[1]['seed'] == 42
    page.click('#show-settings')
    page.click('[data-action=resetSettings]')
    assert page.input_value('#field-temperature') == '0.8'
    assert page.input_value('#field-seed') == ''


@pytest.mark.parametrize('how', ['button', 'escape'])
def test_stop_and_continue(scripted, open_page, how):
    go_on = threading.Event()

    def slowly(body):
        yield chunk('So far')
        go_on.wait(SECONDS)
        # Writing fails some time after the client has disconnected.
        for _ in range(10000):
            yield chunk(' more' * 100)

    scripted.answer = slowly
    page = open_page()
    say(page, 'Hello', wait=False)
    page.get_by_text('So far').wait_for()
    assert page.locator('#send').get_attribute('aria-label') == 'Stop'
    if how == 'button':
        page.click('#send')
    else:
        page.keyboard.press('Escape')
    settle(page)
    go_on.set()
    assert scripted.left.wait(SECONDS)
    assert text_of(page) == 'So far'
    assert page.locator('#send').get_attribute('aria-label') == 'Send'
    scripted.answer = lambda body: ' and further.'
    page.get_by_role('button', name='Continue').click()
    settle(page)
    body = scripted.requests[-1]
    assert body['continue_final_message'] is True
    assert body['messages'][-1] == dict(role='assistant', content='So far')
    assert text_of(page) == 'So far and further.'
    assert body['seed'] == scripted.requests[0]['seed']


def test_regenerate_edit_and_branch(scripted, open_page):
    scripted.answer = lambda body: f'Reply {len(scripted.requests)}'
    page = open_page()
    say(page, 'first')
    say(page, 'second')
    last_reply(page).locator('[data-action=regenerate]').click()
    settle(page)
    assert text_of(page) == 'Reply 3'
    assert scripted.requests[2]['messages'] == scripted.requests[1]['messages']
    assert scripted.requests[2]['seed'] != scripted.requests[1]['seed']
    assert '2 / 2' in last_reply(page).locator('.actions').inner_text()
    last_reply(page).locator('[data-action=previous]').click()
    assert text_of(page) == 'Reply 2'

    # Editing the first message begins another branch; the arrows switch back.
    page.locator('.user').first.hover()
    page.locator('.user').first.locator('[data-action=edit]').click()
    area = page.locator('.editor textarea')
    assert area.input_value() == 'first'
    area.fill('changed')
    area.press('Enter')
    settle(page)
    assert scripted.requests[3]['messages'] == [dict(role='user', content='changed')]
    assert page.locator('.message').count() == 2
    page.locator('.user').first.locator('[data-action=previous]').click()
    assert page.locator('.message').count() == 4
    assert text_of(page) == 'Reply 2'

    # An edited reply is a new version, and the conversation continues from it.
    last_reply(page).locator('[data-action=edit]').click()
    area.fill('My own words')
    page.get_by_role('button', name='Keep as a new version').click()
    assert text_of(page) == 'My own words'
    say(page, 'third')
    assert scripted.requests[4]['messages'][-2]['content'] == 'My own words'


def test_copy(scripted, open_page):
    scripted.answer = lambda body: 'Say:\n\n```py\nx = 1 < 2\n```\n**done**'
    page = open_page()
    say(page, 'Hello')
    page.locator('.assistant [data-action=copy]').click()
    wait_for(page, '.assistant [data-action=copy] use[href="#i-done"]')
    read = 'navigator.clipboard.readText()'
    assert page.evaluate(read) == 'Say:\n\n```py\nx = 1 < 2\n```\n**done**'
    page.locator('.assistant [data-action=copyCode]').click()
    wait_for(page, '.assistant [data-action=copyCode] use[href="#i-done"]')
    assert page.evaluate(read) == 'x = 1 < 2'


# ---- errors ------------------------------------------------------------------------


def test_a_full_server_is_asked_again(scripted, open_page):
    full = refusal(503, 'Eight run, 64 wait.', 'full', Retry_After=1)
    scripted.answer = lambda body: full if len(scripted.requests) < 2 else 'At last.'
    page = open_page()
    say(page, 'Hello', wait=False)
    notice = page.locator('.notice', has_text='Eight run, 64 wait. Trying again in 1 s')
    notice.wait_for()
    settle(page)
    assert text_of(page) == 'At last.'
    scripted.answer = lambda body: refusal(503, 'Ending.', 'draining', Retry_After=60)
    say(page, 'More', wait=False)
    page.locator('.notice', has_text='Ending. Trying again').wait_for()
    page.keyboard.press('Escape')
    page.locator('.notice', has_text='Stopped').wait_for()
    page.get_by_role('button', name='Try again').click()
    page.locator('.notice', has_text='Trying again').wait_for()
    scripted.answer = lambda body: 'Now.'
    page.get_by_role('button', name='Try now').click()
    settle(page)
    assert text_of(page) == 'Now.'


def test_errors_are_shown_and_can_be_tried_again(scripted, open_page):
    broken = [
        (
            lambda body: refusal(400, 'top_k=-1: use 0 or more'),
            'top_k=-1: use 0 or more.',
        ),
        (lambda body: refusal(404, 'no model small'), 'This checkpoint is not served.'),
        (lambda body: refusal(500, 'it failed'), 'The server failed.'),
        (
            lambda body: refusal(503, 'the engine stopped: no memory', 'engine_failed'),
            'The server failed. The engine stopped: no memory.',
        ),
        (lambda body: refusal(503, 'a proxy'), 'The server failed. A proxy.'),
        (lambda body: iter([chunk('Half'), dict(error=dict(message='lost'))]), 'lost'),
        (lambda body: iter([chunk('Half')]), 'The connection broke off.'),
        (lambda body: iter(['no JSON']), 'The connection broke off.'),
    ]
    page = open_page()
    for answer, message in broken:
        scripted.answer = answer
        page.click('#new')
        say(page, 'Hello')
        page.locator('.notice.error', has_text=message).wait_for()
        assert page.get_by_text('Trying again').count() == 0
        scripted.answer = lambda body: ' whole.'
        last_reply(page).locator('[data-action=goOn]').click()
        settle(page)
        assert text_of(page).strip() in ('whole.', 'Half whole.')


def test_the_oldest_messages_go_where_the_context_is_full(scripted, open_page):
    page = open_page()
    scripted.answer = lambda body: 'word ' * 50
    say(page, 'one')
    say(page, 'two')
    say(page, 'three')
    contents = [message['content'] for message in scripted.requests[2]['messages']]
    assert contents[0] == 'two' and contents[-1] == 'three'
    notice = last_reply(page).locator('.left-out').inner_text()
    assert notice == 'The first 2 messages do not fit the context any more.'
    # If the server counts more tokens and refuses, the page sends fewer messages.
    long = refusal(400, 'too long', 'context_length_exceeded')
    scripted.answer = lambda body: long if len(body['messages']) > 1 else 'Good.'
    say(page, 'four')
    assert text_of(page) == 'Good.'
    # If the last message alone is too long, the user has to shorten it.
    scripted.answer = lambda body: long
    say(page, 'five')
    assert 'too long for this model. Too long.' in last_reply(page).inner_text()
    page.get_by_role('button', name='Shorten it').click()
    assert page.locator('.editor textarea').input_value() == 'five'


@pytest.mark.slow
def test_a_server_that_loads_or_goes(scripted, open_page):
    scripted.listing = refusal(503, 'Loading it.', 'loading', Retry_After=1)
    page = open_page(wait='#banner .notice')
    banner = page.locator('#banner')
    assert banner.inner_text() == 'Loading it. This goes on by itself.'
    scripted.listing = refusal(503, 'the engine stopped: x', 'engine_failed')
    page.locator('#banner', has_text='The engine stopped: x.').wait_for()
    assert 'loading' not in banner.inner_text().lower()
    scripted.listing = None
    page.locator('#openers button').first.wait_for()
    assert page.locator('#banner').inner_text() == ''
    scripted.close()
    say(page, 'Hello')
    assert 'cannot be reached' in last_reply(page).inner_text()
    assert 'still running' in page.locator('#banner').inner_text()
    again = Scripted(scripted.port)
    page.locator('#banner .notice').wait_for(state='detached')
    last_reply(page).locator('[data-action=goOn]').click()
    settle(page)
    assert text_of(page) == 'Fine, thank you.'
    again.close()


def test_an_api_key_is_asked_for(scripted, open_page):
    scripted.listing = refusal(401, 'no key')
    page = open_page(wait='#key-form')
    page.get_by_label('API key').fill('guess')
    page.get_by_role('button', name='Use it').click()
    page.get_by_text('That is not').wait_for()
    page.get_by_label('API key').fill('secret')
    page.get_by_role('button', name='Use it').click()
    page.locator('#openers button').first.wait_for()
    page.reload()  # this tab keeps the key
    page.locator('#openers button').first.wait_for()


# ---- the real server ---------------------------------------------------------------


@pytest.fixture(scope='module')
def address(served_run):
    """The address of a server with two checkpoints of random weights."""
    with servers.serving(served_run, f'--beside={served_run}@1') as server:
        yield server.address


@pytest.mark.slow
def test_with_the_real_server(open_page, address):
    page = open_page(address=address)
    page.click('#show-settings')
    page.fill('#field-max_tokens', '12')
    page.fill('#field-seed', '5')
    page.fill('#field-temperature', '1.5')
    page.press('#field-temperature', 'Tab')
    say(page, 'Hello <b>there</b>')
    last_reply(page).locator('.facts', has_text='seed 5').wait_for()
    first = text_of(page)
    last_reply(page).locator('.token').first.hover()
    page.locator('#card li').nth(7).wait_for()
    page.locator('#card [data-action=pick]').first.click()
    settle(page)
    assert '2 / 2' in last_reply(page).locator('.actions').inner_text()

    # The same seed gives the same reply; two checkpoints give different replies.
    page.click('#new')
    say(page, 'Hello <b>there</b>')
    assert text_of(page) == first
    page.click('#compare')
    say(page, 'And you?')
    page.locator('.facts', has_text='seed 5').nth(2).wait_for()
    assert page.locator('.notice.error').all_inner_texts() == []
    page.get_by_role('button', name='@1').click()
    for _ in range(3):  # more tokens than the context holds
        say(page, 'And then? ' * 20)
    assert page.locator('.notice.error').all_inner_texts() == []
    assert last_reply(page).locator('.left-out').is_visible()
