"""Accessibility of the chat page: contrast, names, keyboard, small screens."""

import pytest

from tests.chat_page import (
    MARKDOWN,
    last_reply,
    model_card,
    needs_browser,
    refusal,
    reply,
    say,
    settle,
)

pytestmark = [needs_browser, pytest.mark.slow]


# Lists texts whose contrast with the background is below 4.5 (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const parse = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, low) => [0, 1, 2]
    .map((i) => top[i] * top[3] + low[i] * (1 - top[3])).concat(1);
  const behind = (e) => {
    const low = e.parentElement ? behind(e.parentElement) : [255, 255, 255, 1];
    return over(parse(getComputedStyle(e).backgroundColor), low);
  };
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (colour) => [0.2126, 0.7152, 0.0722]
    .reduce((sum, weight, i) => sum + weight * linear(colour[i] / 255), 0);
  const seen = { opacityProperty: true, visibilityProperty: true };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const disabled = e.closest('[aria-disabled=true], :disabled');
    if (!own || disabled || !e.checkVisibility(seen)) continue;
    const back = behind(e);
    const fore = over(parse(getComputedStyle(e).color), back);
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${ratio} ${e.className} ${e.textContent}`);
  }
  return poor;
}"""
NAMELESS = """() => {
  const named = (e) => e.getAttribute('aria-label') || e.textContent.trim()
    || e.getAttribute('aria-labelledby') || e.labels?.length;
  const parts = 'button, input, textarea, select, [role=dialog], nav, aside, a';
  return [...document.querySelectorAll(parts)]
    .filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML);
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_everything_has_a_name_and_can_be_read(scripted, open_page, scheme):
    scripted.cards['small'] = model_card('small', add=0.9, sort=0.2)
    page = open_page(color_scheme=scheme)
    problems = []

    def look():
        problems.extend(page.evaluate(CONTRAST))
        problems.extend(page.evaluate(NAMELESS))

    look()
    page.keyboard.press('Alt+a')
    look()
    page.keyboard.press('Escape')
    scripted.answer = lambda body: MARKDOWN
    say(page, 'Hello')
    page.click('#show-settings')
    last_reply(page).hover()
    look()
    for probability in (0.6, 0.3, 0.05, 0.005):
        scripted.answer = lambda body, p=probability: reply(
            'A token or two.', probability=p
        )
        page.click('#new')
        say(page, 'Hello')
        page.keyboard.press('Alt+i')
        page.keyboard.press('Enter')
        look()
        page.keyboard.press('Escape')
    scripted.answer = lambda body: refusal(400, 'refused')
    page.click('#compare')
    say(page, 'Hello')
    look()
    assert not problems


def test_the_theme_can_be_switched(scripted, open_page):
    page = open_page(color_scheme='light')
    colour = 'getComputedStyle(document.body).backgroundColor'
    light = page.evaluate(colour)
    page.click('#theme')
    assert page.evaluate(colour) == light
    page.click('#theme')
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    page.locator('#openers button').first.wait_for()
    assert page.evaluate(colour) == dark
    page.click('#show-settings')
    page.get_by_label('System', exact=True).check()
    assert page.evaluate(colour) == light
    page.emulate_media(color_scheme='dark')
    assert page.evaluate(colour) == dark


def test_a_screen_reader_hears_a_reply_once(scripted, open_page):
    page = open_page()
    page.evaluate(
        """() => {
          window.heard = [];
          const status = document.getElementById('status');
          new MutationObserver(() => window.heard.push(status.textContent))
            .observe(status, { childList: true });
        }"""
    )
    scripted.answer = lambda body: 'word ' * 30
    say(page, 'Hello')
    page.locator('#status', has_text='Reply: word').wait_for(state='attached')
    heard = [text for text in page.evaluate('window.heard') if text]
    assert heard in (
        ['Replying.', 'Reply: ' + 'word ' * 30],
        ['Reply: ' + 'word ' * 30],
    )
    assert page.locator('#transcript').get_attribute('aria-live') == 'off'
    assert page.locator('article h2').all_inner_texts() == ['You', 'Reply of small']
    landmarks = ('navigation', 'main', 'log')
    assert all(page.get_by_role(role).count() == 1 for role in landmarks)


def test_keyboard(scripted, open_page):
    page = open_page()
    focused = 'document.activeElement.id || document.activeElement.dataset.action'
    assert page.evaluate(focused) == 'text'
    say(page, 'first')
    page.keyboard.press('Alt+r')
    settle(page)
    assert '2 / 2' in last_reply(page).locator('.actions').inner_text()
    page.keyboard.press('Alt+BracketLeft')
    assert '1 / 2' in last_reply(page).locator('.actions').inner_text()
    page.keyboard.press('Alt+m')
    page.keyboard.press('ArrowUp')
    assert page.locator('.editor textarea').input_value() == 'first'
    page.keyboard.press('Escape')
    assert page.locator('.editor').count() == 0
    assert page.evaluate(focused) == 'edit'
    page.keyboard.press('Alt+s')
    assert page.evaluate(focused) == 'system'
    page.keyboard.press('Escape')
    assert page.evaluate(focused) == 'show-settings'
    page.keyboard.press('Alt+k')
    assert page.locator('.lane').count() == 2
    page.keyboard.press('Alt+n')
    assert page.evaluate(focused) == 'text' and page.locator('.message').count() == 0
    page.keyboard.press('Alt+b')
    assert page.locator('#sidebar').is_hidden()
    page.get_by_role('button', name='Show the list').click()
    page.get_by_role('button', name='Shortcuts').click()
    assert page.locator('#shortcuts').is_visible()
    page.keyboard.press('Escape')
    assert page.locator('#shortcuts').is_hidden()
    # The focused element is visibly marked.
    for _ in range(12):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement === document.body'):
            continue
        outline = page.evaluate(
            """() => {
              const e = document.activeElement;
              const style = getComputedStyle(e.closest('#composer') ?? e);
              return style.outlineStyle !== 'none' || style.boxShadow !== 'none';
            }"""
        )
        assert outline, page.evaluate(focused)


def test_a_telephone(scripted, open_page):
    scripted.answer = lambda body: MARKDOWN + '\n\n' + 'unbreakable' * 30
    skills = dict(count_letter=0.9, opposite=0.8, subtract=0.7, sort=0.6, add=0.2)
    scripted.cards['small'] = model_card('small', **skills)
    page = open_page(width=360, height=640, has_touch=True, is_mobile=True)

    def fits():
        width = 'document.documentElement.scrollWidth'
        rows = 'document.getElementById("transcript").scrollWidth'
        return page.evaluate(width) <= 360 and page.evaluate(rows) <= 360

    assert fits() and page.locator('#sidebar').is_hidden()
    assert page.locator('#latest').is_hidden()  # though the suggestions can scroll
    page.locator('#show-about').tap()
    about = page.locator('#about').bounding_box()
    assert about['x'] >= 0 and about['x'] + about['width'] <= 360
    assert page.evaluate('about.scrollWidth <= about.clientWidth')
    page.get_by_role('button', name='Close').tap()
    say(page, 'Hello ' + 'long' * 60)
    assert fits()
    last_reply(page).locator('.token', has_text='bold').first.tap()
    box = page.locator('#card').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= 360
    assert box['y'] >= 0 and box['y'] + box['height'] <= 640
    page.locator('.user .body').tap()
    assert page.locator('#card').is_hidden()
    page.locator('#compare').tap()
    scripted.answer = lambda body: 'Short.'
    say(page, 'More')
    assert fits()
    page.locator('#show-sidebar').tap()
    page.locator('#sidebar').wait_for()
    box = page.locator('#sidebar').bounding_box()
    assert box['width'] < 360
    page.locator('#scrim').tap(position=dict(x=350, y=300))
    assert page.locator('#sidebar').is_hidden()
    page.locator('#show-settings').tap()
    assert fits() and page.locator('#settings').bounding_box()['width'] < 360
