"""The chat page: conversations that are kept, exported and imported."""

import json
import threading

import pytest

from gptjax.infer.request import Token
from gptjax.serve.session import Message, conversation_json
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests import servers
from tests.chat_page import (
    SECONDS,
    chunk,
    last_reply,
    needs_browser,
    open_tab,
    say,
    settle,
    text_of,
)

pytestmark = needs_browser


def test_conversations_are_kept_renamed_and_deleted(scripted, open_page):
    page = open_page()
    say(page, 'About <b>bread</b>')
    page.click('#new')
    say(page, 'About cheese')
    page.reload()
    page.locator('.assistant').wait_for()
    titles = page.locator('#conversations .open')
    assert titles.all_inner_texts() == ['About cheese', 'About <b>bread</b>']
    titles.nth(1).click()
    assert page.locator('.user .body').inner_text() == 'About <b>bread</b>'
    page.locator('.current [data-action=renameConversation]').click()
    page.locator('#conversations input').fill('Bakery')
    page.keyboard.press('Enter')
    assert titles.all_inner_texts() == ['About cheese', 'Bakery']
    page.locator('.current [data-action=deleteConversation]').click()
    assert titles.all_inner_texts() == ['About cheese']
    page.get_by_role('button', name='Undo').click()
    assert titles.all_inner_texts() == ['About cheese', 'Bakery']
    page.reload()
    titles.nth(1).wait_for()
    assert titles.all_inner_texts() == ['About cheese', 'Bakery']


@pytest.mark.slow
def test_two_tabs_see_one_another(scripted, open_page):
    page = open_page()
    say(page, 'Apples')
    other = open_tab(page)
    other.click('#new')
    say(other, 'Pears')
    titles = page.locator('#conversations .open')
    titles.nth(1).wait_for()
    assert titles.all_inner_texts() == ['Pears', 'Apples']
    say(page, 'More')
    other.locator('#conversations li:first-child', has_text='Apples').wait_for()
    other.locator('#conversations .open').first.click()
    other.locator('.message').nth(3).wait_for()
    other.locator('.current [data-action=deleteConversation]').click()
    titles.nth(1).wait_for(state='detached')
    assert titles.all_inner_texts() == ['Pears']


@pytest.mark.slow
def test_a_reply_cut_short_by_a_reload_can_go_on(scripted, open_page):
    rest = threading.Event()

    def slowly(body):
        yield chunk('So far')
        rest.wait(SECONDS)

    scripted.answer = slowly
    page = open_page()
    say(page, 'Hello', wait=False)
    page.get_by_text('So far').wait_for()
    page.reload()
    page.get_by_role('button', name='Continue').wait_for()
    rest.set()
    assert text_of(page) == 'So far'


def halting(scripted, *texts):
    """Replies to these messages stop half-way until the event is set."""
    rest = threading.Event()

    def answer(body):
        if body['messages'][-1]['content'] not in texts:
            return 'Fine, thank you.'

        def slowly():
            yield chunk('So far')
            rest.wait(SECONDS)
            yield chunk(' so good.', finish='stop')
            yield '[DONE]'

        return slowly()

    scripted.answer = answer
    return rest


@pytest.mark.slow
def test_a_conversation_deleted_while_a_reply_comes_stays_deleted(scripted, open_page):
    halting(scripted, 'Hello')
    page = open_page()
    say(page, 'Hello', wait=False)
    page.get_by_text('So far').wait_for()
    page.locator('.current [data-action=deleteConversation]').click()
    page.get_by_text('was deleted').wait_for()
    servers.wait_for(lambda: not page.evaluate('streams.size'), 'the reply has ended')
    assert page.locator('#conversations .open').count() == 0
    page.reload()
    page.locator('#openers button').first.wait_for()
    assert page.locator('#conversations .open').count() == 0


@pytest.mark.slow
def test_one_deleted_in_another_tab_while_a_reply_comes_stays_deleted(
    scripted, open_page
):
    rest = halting(scripted, 'Hello')
    page = open_page()
    say(page, 'Hello', wait=False)
    page.get_by_text('So far').wait_for()
    other = page.context.new_page()
    other.goto(scripted.address)
    other.locator('.current [data-action=deleteConversation]').click()
    page.locator('#conversations .open').wait_for(state='detached')
    rest.set()
    settle(page)
    other.reload()
    other.locator('#openers button').first.wait_for()
    assert other.locator('#conversations .open').count() == 0


@pytest.mark.slow
def test_two_tabs_on_one_conversation_lose_no_message(scripted, open_page):
    rest = halting(scripted, 'slow')
    page = open_page()
    say(page, 'first')
    other = open_tab(page)
    say(page, 'slow', wait=False)
    page.get_by_text('So far').wait_for()
    # The other tab regenerates the first reply while this tab streams.
    other.locator('.assistant').first.locator('[data-action=regenerate]').click()
    settle(other)
    branches = page.locator('.assistant').first.locator('.branches')
    branches.get_by_text('/ 2').wait_for()
    assert page.get_by_text('So far').is_visible()
    rest.set()
    settle(page)
    say(page, 'third')
    for tab in (page, other):
        tab.reload()
        tab.locator('.assistant').first.wait_for()
        kept = tab.evaluate('JSON.stringify([...state.conversations.values()])')
        assert kept.count('"role":"assistant"') == 4
        for text in ('first', 'slow', 'So far so good.', 'third'):
            assert f'"content":"{text}"' in kept, text


DEAF = """
addEventListener('storage', (event) => event.stopImmediatePropagation(), true);
"""


@pytest.mark.slow
def test_both_tabs_say_something_at_once(scripted, open_page):
    """Both tabs write before either is informed about the other."""
    page = open_page(script=DEAF)
    say(page, 'first')
    other = open_tab(page, DEAF)
    say(page, 'one')
    # The browser informs the other tab of a change with a short delay.
    other.wait_for_function("Object.values(localStorage).join().includes('one')")
    say(other, 'two')
    other.reload()
    other.locator('.assistant').first.wait_for()
    kept = other.evaluate('JSON.stringify([...state.conversations.values()])')
    assert '"content":"one"' in kept and '"content":"two"' in kept
    assert kept.count('"role":"assistant"') == 3


@pytest.mark.slow
def test_what_is_being_edited_is_left_alone(scripted, open_page):
    page = open_page()
    say(page, 'first')
    other = open_tab(page)
    page.locator('.user').first.hover()
    page.locator('.user [data-action=edit]').first.click()
    page.keyboard.type(' and more')
    say(other, 'second')
    title = 'Renamed'
    other.locator('.current [data-action=renameConversation]').click()
    other.locator('#conversations input').fill(title)
    other.keyboard.press('Enter')
    page.locator('#conversations .open', has_text=title).wait_for()
    assert page.evaluate('document.activeElement.value') == 'first and more'
    assert page.locator('.message').count() == 2
    page.keyboard.press('Escape')
    page.locator('.message').nth(3).wait_for()


@pytest.mark.slow
def test_a_comparison_opened_or_closed_in_another_tab(scripted, open_page):
    page = open_page()
    say(page, 'first')
    other = open_tab(page)
    page.click('#compare')
    other.locator('.lane').nth(1).wait_for()
    say(other, 'second')
    page.locator('.assistant').nth(2).wait_for()
    page.click('#compare')
    other.locator('.lane').nth(1).wait_for(state='detached')
    say(other, 'third')
    page.reload()
    page.locator('.assistant').nth(2).wait_for()
    assert page.locator('.lane').count() == 1


FULL = """
const set = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, text) {
  let used = text.length;
  for (let i = 0; i < this.length; i += 1) {
    if (this.key(i) !== key) used += this.getItem(this.key(i)).length;
  }
  if (used > LIMIT) throw new DOMException('full', 'QuotaExceededError');
  set.call(this, key, text);
};
"""
OFF = """
Object.defineProperty(window, 'localStorage', {
  get() { throw new DOMException('denied', 'SecurityError'); },
});
"""


@pytest.mark.slow
def test_a_full_storage_gives_up_old_probabilities_first(scripted, open_page):
    page = open_page(script=FULL.replace('LIMIT', '4200'))
    scripted.answer = lambda body: 'word ' * 12
    for text in ('one', 'two', 'three'):
        page.click('#new')
        say(page, text)
    kept = page.evaluate(
        '() => Object.keys(localStorage).filter((key) => key.includes("conversation"))'
        '.map((key) => JSON.parse(localStorage.getItem(key)))'
    )
    nodes = [one['lanes'][0]['root']['children'][0] for one in kept]
    with_tokens = {
        node['content'] for node in nodes if node['children'][0].get('tokens')
    }
    assert {node['content'] for node in nodes} == {'one', 'two', 'three'}
    assert 'three' in with_tokens and 'one' not in with_tokens
    assert page.locator('#storage-note').is_hidden()


@pytest.mark.slow
@pytest.mark.parametrize(
    'script, note',
    [(FULL.replace('LIMIT', '10'), 'storage is full'), (OFF, 'keeps nothing')],
    ids=['full', 'off'],
)
def test_without_storage_it_talks_and_says_so(scripted, open_page, script, note):
    page = open_page(script=script)
    say(page, 'Hello')
    assert text_of(page) == 'Fine, thank you.'
    assert note in page.locator('#storage-note').inner_text()


def test_export_and_import(scripted, open_page, tmp_path):
    page = open_page()
    say(page, 'Hello')
    last_reply(page).locator('[data-action=regenerate]').click()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role('button', name='Export', exact=True).click()
    path = tmp_path / 'kept.json'
    download.value.save_as(path)
    exported = json.loads(path.read_text())
    assert (
        exported['format'] == 'gptjax-conversations'
        and len(exported['conversations']) == 1
    )

    other = open_page()
    other.set_input_files('#import-file', path)
    other.locator('.assistant').wait_for()
    assert text_of(other) == 'Fine, thank you.'
    assert '2 / 2' in last_reply(other).locator('.actions').inner_text()
    other.set_input_files('#import-file', path)  # twice: two conversations
    other.locator('#conversations li').nth(1).wait_for()


@pytest.mark.slow
def test_what_the_terminal_saves_can_be_imported(scripted, open_page):
    tokenizer = Tokenizer(train_model(['Hello, I am fine. And you?'] * 9, 'bpe', 290))
    root = Message('root')
    user = root.add(Message('user', 'Hello'))
    for text in ('I am fine 😀', 'And you?'):
        ids = tokenizer.encode(text)
        top = tuple((other, -1.5) for other in (*ids[:3], tokenizer.eos_id))
        tokens = [Token(token, -0.5, top) for token in ids]
        reply = Message('assistant', text, tokens=tokens, finish='stop')
        user.add(reply)
    file = conversation_json(root, 'Be kind.', 'small', tokenizer)
    buffer = json.dumps(file).encode()
    page = open_page()
    named = dict(name='talk.json', mimeType='', buffer=buffer)
    page.set_input_files('#import-file', files=[named])
    page.locator('.assistant').wait_for()
    last_reply(page).locator('[data-action=previous]').click()
    assert text_of(page) == 'I am fine 😀'
    last_reply(page).locator('.token', has_text='😀').hover()
    page.locator('#card .head', has_text='60.7%').wait_for()


def damaged(change):
    """An exported file after `change` has damaged it."""
    node = dict(role='user', content='Hello', children=[], chosen=0)
    lane = dict(model='small', root=dict(children=[node], chosen=0))
    one = dict(id='a1', title='', created=1, updated=1, system='', lanes=[lane])
    file = dict(format='gptjax-conversations', version=1, conversations=[one])
    change(file, one, node)
    return json.dumps(file)


DAMAGED = {
    'JSON': ('{"format": ', 'is no JSON'),
    'format': (damaged(lambda f, c, n: f.update(version=2)), 'no export'),
    'role': (damaged(lambda f, c, n: n.update(role='root')), 'children[0].role'),
    'content': (damaged(lambda f, c, n: n.update(content=3)), 'content is no text'),
    'chosen': (damaged(lambda f, c, n: n.update(chosen=5)), 'names no child'),
    'lanes': (damaged(lambda f, c, n: c.update(lanes=[])), 'lanes is empty'),
    'id': (damaged(lambda f, c, n: c.update(id='../x')), 'id is no id'),
}


@pytest.mark.slow
def test_what_cannot_be_imported_is_refused_with_the_reason(scripted, open_page):
    page = open_page()
    for name, (content, reason) in DAMAGED.items():
        file = dict(name=f'{name}.json', mimeType='', buffer=content.encode())
        page.set_input_files('#import-file', files=[file])
        page.locator('#toast', has_text=f'{name}.json was not imported').wait_for()
        assert reason in page.locator('#toast').inner_text()
    assert page.locator('#conversations .open').count() == 0
