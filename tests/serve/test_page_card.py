"""The chat page: suggestions and the model card."""

from tests.chat_page import HTML, model_card, needs_browser, settle, text_of, wait_for

pytestmark = needs_browser


def test_suggestions_of_a_run_with_skills(scripted, open_page):
    scripted.cards['small'] = model_card('small', count_letter=1.0, add=0.9, sort=0.2)
    scripted.cards['other'] = model_card('other', add=0.3)
    page = open_page()
    openers = page.locator('#openers button')
    question = f'add {HTML}?'
    assert openers.all_inner_texts() == [
        f'count_letter {HTML}?\nright 90 of 100 times',
        f'{question}\nright 80 of 100 times',
    ]
    assert 'at temperature 1' in page.locator('#counted').inner_text()
    page.click('#compare')
    both = 'small: right 80 of 100 times\nother: right 20 of 100 times'
    assert openers.last.inner_text() == f'{question}\n{both}'
    page.click('#compare')
    page.click('#show-settings')
    page.fill('#field-temperature', '0')
    page.press('#field-temperature', 'Tab')
    assert openers.first.inner_text().endswith('right 100 of 100 times')
    assert 'at temperature 0' in page.locator('#counted').inner_text()
    openers.last.click()
    settle(page)
    assert text_of(page) == 'Fine, thank you.'
    assert scripted.requests[0]['messages'] == [dict(role='user', content=question)]


def test_the_card(scripted, open_page):
    scripted.cards['small'] = model_card('small', count_letter=0.9, sort=0.2)
    page = open_page()
    page.keyboard.press('Alt+a')
    about = page.get_by_role('dialog', name='Model card')
    text = about.inner_text()
    for line in (
        '1,234 parameters',
        'stage sft, step 1,200',
        f'{HTML}: 7 documents, licence not stated',
        'Its files do not name its data.',
        'count letter\t90%\t85 to 95%\t80%',
        'sort\t20%\t15 to 25%\t10%',
        'It is small.',
        f'task: {HTML}',
        'accuracy\nchance: 0.250\n\t0.700\t–',
    ):
        assert line in text, line
    assert text.index('count letter') < text.index('cannot') < text.index('sort\t')
    assert page.locator('#about img').count() == 0
    page.keyboard.press('Alt+n')  # no shortcuts behind an open dialog
    page.keyboard.press('Escape')
    assert about.is_hidden()
    # The link under the suggestions opens it, too; each model has its own.
    scripted.cards['other'] = model_card('other')
    page.reload()
    wait_for(page, '#counted')
    page.click('#compare')
    page.get_by_role('button', name='What it can and cannot do').click()
    assert page.locator('#about h3').all_inner_texts() == ['small', 'other']
    assert 'It was not measured by skill.' in about.inner_text()
    about.get_by_role('button', name='Close').click()


def test_a_run_without_skills_keeps_its_page(scripted, open_page):
    page = open_page()
    openers = page.locator('#openers button')
    assert openers.first.inner_text() == 'Hello! How are you today?'
    assert page.locator('#counted').is_hidden()
    assert page.locator('#show-about').is_hidden()  # the server has no card
    openers.first.click()
    settle(page)
    [body] = scripted.requests
    assert body['messages'][0]['content'] == 'Hello! How are you today?'
