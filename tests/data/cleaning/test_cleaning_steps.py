"""Each cleaning step on texts that a person judged by eye."""

import re
import time
import unicodedata
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from gptjax.core.console import UserError
from gptjax.data.cleaning import cleaning_steps

OPTIONS = cleaning_steps.read_options(common.base().data)


def take(step, text, **options):
    return cleaning_steps.STEPS[step](text, OPTIONS._replace(**options))


@pytest.mark.parametrize(
    'step, before, after',
    [
        ('repair_unicode', 'schÃ¶n, cafÃ©', 'schön, café'),
        ('repair_unicode', 'cafe\u0301', 'café'),
        ('repair_unicode', '“curly” ﬁsh Ｆｕｌｌ', '“curly” ﬁsh Ｆｕｌｌ'),
        ('repair_unicode', 'a &amp; b <3', 'a &amp; b <3'),
        ('remove_control_characters', 'a\0b\x1bc\x7fd\ufeffe\u200bf', 'abcdef'),
        ('remove_control_characters', 'a\tb\nc\r\nd\re', 'a\tb\nc\nd\ne'),
        ('remove_control_characters', 'می‌خواهم 👩‍🚀', 'می‌خواهم 👩‍🚀'),
        (
            'normalize_whitespace',
            '  a   b \t\n\n\n\nc\r\nd\u00a0e  ',
            '  a b\n\nc\nd e',
        ),
        ('normalize_whitespace', 'if x:\n    y  =\t1\n', 'if x:\n    y =\t1'),
        ('normalize_whitespace', '\n \n\n a\n \n \nb\n \n', ' a\n\nb'),
        ('lowercase', 'ÀB', 'àb'),
        ('remove_punctuation', "Don't, “stop”! $5 ☺", 'Dont stop $5 ☺'),
        ('remove_stop_words', "It's the cat.\nAnd a dog", 'cat.\ndog'),
        ('split_sentences', 'Hi Mr. Bean. How are you?', 'Hi Mr. Bean.\nHow are you?'),
        (
            'tokenize_words',
            "Hi, don't pay 1,000.50!\nok",
            "Hi , don't pay 1,000.50 !\nok",
        ),
    ],
)
def test_step(step, before, after):
    assert take(step, before) == after


@pytest.mark.parametrize(
    'text',
    [
        'i <3 you, a < b and c > d',
        'the <b> tag and <insert swear word here>',
        '<<soap making date huh>> x</3',
        'see <link> or <input>',
        'R&D, AT&T; ham & eggs',
    ],
)
def test_what_is_not_html_stays(text):
    assert take('html_to_text', text) == text


@pytest.mark.parametrize(
    'before, after',
    [
        ('fish &amp; chips &#39;n&#x27; &nosuchname;', "fish & chips 'n' &nosuchname;"),
        ('never <em>I</em> think\nline\n\nline', 'never I think\nline\n\nline'),
        ('<strong>no</strong> <tongue_face> a < b <3', 'no <tongue_face> a < b <3'),
        ('<p>one\ntwo</p><p>three<br>four</p>', 'one two\n\nthree\nfour'),
        ('<ul><li>a<li>b</ul>', 'a\nb'),
        ('<table><tr><td>a</td><td>b</td></tr></table>', 'a\tb'),
        ('<pre>\nif x:\n    y\n</pre>', 'if x:\n    y'),
        (
            '<!doctype html><html><head><title>t</title><style>p{}</style></head>'
            '<body><!-- c --><h1>Hi</h1>x<script>y</script></body></html>',
            'Hi\n\nx',
        ),
        ('I like <script> tags <b>much</b>', 'I like <script> tags much'),
        ('open <!-- and <i>go</i> on', 'open <!-- and go on'),
    ],
)
def test_html(before, after):
    assert take('html_to_text', before) == after


@pytest.mark.parametrize(
    'step, before, after',
    [
        ('mask_emails', "mail 'ann.o+x@mail.byu.edu'.", "mail '[email]'."),
        (
            'mask_emails',
            'ann at gmail dot com, or bo [at] gmx.de',
            '[email], or [email]',
        ),
        (
            'mask_emails',
            'look at yahoo.com, hi@ @ home',
            'look at yahoo.com, hi@ @ home',
        ),
        ('mask_phone_numbers', 'me: (808) 782-1557!', 'me: [phone]!'),
        ('mask_phone_numbers', '808.782.1557 808 782 1557.', '[phone] [phone].'),
        ('mask_phone_numbers', '8087821557 or 1-808-782-1557', '[phone] or [phone]'),
        ('mask_phone_numbers', '+44 20 7946 0958, 0049 30 901820', '[phone], [phone]'),
        ('mask_phone_numbers', '030 / 901820 06 12 34 56 78', '[phone] [phone]'),
        ('mask_phone_numbers', 'my number is 782-1557', 'my number is [phone]'),
        ('mask_handles', 'insta @pito.bedo. @ann@host.org', 'insta [handle]. [handle]'),
        ('mask_handles', 'u/some_one, ann#1234', '[handle], [handle]'),
        ('mask_handles', 'yeah@ !@#$% @3pm a@b', 'yeah@ !@#$% @3pm a@b'),
        ('mask_handles', 'Issue#1234 and/or', 'Issue#1234 and/or'),
        ('mask_user_ids', 'by 22578ac2-6317-44d5-8052-0a59076e0b96', 'by [id]'),
        ('mask_user_ids', '<@U024BE7LH> 123456789012345678', '[id] [id]'),
        ('mask_user_ids', 'd41d8cd98f00b204e9800998ecf8427e', '[id]'),
        ('mask_user_ids', '4111 1111 1111 1111, 078-05-1120', '[id], [id]'),
    ],
)
def test_masks(step, before, after):
    assert take(step, before) == after


@pytest.mark.parametrize(
    'text',
    [
        'from 2014-2016, 1910-1920, in 2020, 2022, 2024',
        'won $1000000 or 1000000 or 30000, 100, 200, 500, 1000',
        'pi is 3.141592653589793238, 999.9999%, 6.21371miles',
        '9998017 * 9997647 = 0110101110001010110101 0010010010',
        'score 21-15, on 2018-05-02 19:38:15, 01/02/2018, 01 02 03 04 05',
        'http://www.imdb.com/title/tt2872732/ v1.2.3.4 192.168.100.200',
        'i had like 403902930493 words, 10000000x, 800-1200 words',
        'ISBN 978-0-306-40615-7, decade effaced 0x7fff',
    ],
)
def test_numbers_of_another_kind_stay(text):
    masked = text
    for step in ('mask_emails', 'mask_phone_numbers', 'mask_handles', 'mask_user_ids'):
        masked = take(step, masked)
    assert masked == text


def test_filters():
    assert take('drop_short', 'x' * 16) == 'x' * 16
    assert take('drop_short', 'x' * 15) is None
    assert take('drop_long', 'xyz', max_characters=3) == 'xyz'
    assert take('drop_long', 'wxyz', max_characters=3) is None
    english = 'The weather was fine, and so we walked along the river to the old mill.'
    german = 'Das Wetter war schön, und so gingen wir am Fluss entlang bis zur Mühle.'
    assert take('keep_languages', english) == english
    assert take('keep_languages', german) is None
    assert take('keep_languages', german, languages=('en', 'de')) == german


def test_repetition_is_judged_by_lines_and_by_word_sequences():
    words = ' '.join(f'word{n}' for n in range(60))
    assert take('drop_repetitive', words) == words
    assert take('drop_repetitive', f'{words}\n{words}') == f'{words}\n{words}'  # half
    assert take('drop_repetitive', f'{words}\n{words}\n{words}') is None
    assert take('drop_repetitive', ' '.join([words] * 3)) is None
    assert take('drop_repetitive', 'hi\n' * 20) == 'hi\n' * 20  # too short to judge


@given(st.text())
def test_white_space_of_any_text(text):
    once = take('normalize_whitespace', text)
    assert take('normalize_whitespace', once) == once
    # Only white space is touched: the words are those of before.
    assert once.split() == text.split()
    assert '\n\n\n' not in once and '\r' not in once


@given(st.text(alphabet=' \t\n\ra', max_size=30))
def test_last_blanks_go_as_if_looked_for_everywhere(text):
    assert cleaning_steps._LAST_BLANKS.sub('\n', text) == re.sub(
        r'[ \t]+\n', '\n', text
    )


@pytest.mark.parametrize('blank', [' ', '\t', '\u3000', ' \t'])
def test_a_long_run_of_blanks_takes_no_time(blank):
    began = time.perf_counter()
    take('normalize_whitespace', 'a' + 200_000 * blank + 'b')
    assert time.perf_counter() - began < 1


@given(st.text())
def test_control_characters_of_any_text(text):
    kept = take('remove_control_characters', text)
    for character in kept:
        assert character in '\n\t\x85' or unicodedata.category(character) != 'Cc'
    assert take('remove_control_characters', kept) == kept


@given(st.text(alphabet=st.characters(codec='utf-8')))
def test_steps_never_fail_and_stay_valid_unicode(text):
    for name, step in cleaning_steps.STEPS.items():
        if name == 'keep_languages':
            continue
        result = step(text, OPTIONS)
        if result is not None:
            result.encode()  # raises for half a surrogate pair


def test_counts_of_a_text_through_steps():
    steps = ['normalize_whitespace', 'mask_emails', 'drop_short']
    counts = defaultdict(cleaning_steps.StepCount)
    assert cleaning_steps.clean_text('mail  a@b.org', steps, OPTIONS, counts) is None
    assert counts == {
        'normalize_whitespace': cleaning_steps.StepCount(1, 0, 1),
        'mask_emails': cleaning_steps.StepCount(1, 0, 0),  # '[email]' is as long
        'drop_short': cleaning_steps.StepCount(0, 1, 12),
    }


def test_a_step_that_leaves_nothing_drops():
    counts = defaultdict(cleaning_steps.StepCount)
    assert (
        cleaning_steps.clean_text('?!', ['remove_punctuation'], OPTIONS, counts) is None
    )
    assert counts['remove_punctuation'] == cleaning_steps.StepCount(0, 1, 2)


def test_an_unknown_step_is_named_with_those_there_are():
    cleaning_steps.check_steps(['lowercase', 'drop_duplicates'])
    with pytest.raises(UserError, match="'stem'.*repair_unicode.*drop_duplicates"):
        cleaning_steps.check_steps(['lowercase', 'stem'])
    with pytest.raises(UserError, match="'lowercase' stands there twice"):
        cleaning_steps.check_steps(['lowercase', 'drop_short', 'lowercase'])


def test_the_first_of_equal_texts_stays():
    count, seen = cleaning_steps.StepCount(), set()
    texts = ['Hello  you', 'other', 'hello\nyou', 'OTHER ']
    assert [cleaning_steps.is_duplicate(text, seen, count) for text in texts] == [
        0,
        0,
        1,
        1,
    ]
    assert count == cleaning_steps.StepCount(documents_dropped=2, characters_removed=15)


@pytest.mark.parametrize(
    'text, other, equal',
    [
        ('Straße\t1', ' STRASSE 1\n', True),
        ('cafe\u0301', 'café', True),
        ('a b', 'ab', False),
        ('a, b', 'a b', False),
    ],
)
def test_what_counts_as_equal(text, other, equal):
    seen = set()
    cleaning_steps.is_duplicate(text, seen, cleaning_steps.StepCount())
    assert cleaning_steps.is_duplicate(other, seen, cleaning_steps.StepCount()) == equal
    assert {len(key) for key in seen} == {16}
