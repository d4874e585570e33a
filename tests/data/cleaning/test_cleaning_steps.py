"""Each cleaning step on texts whose right result was decided by a person."""

import ast
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
from gptjax.data.cleaning.cleaning_steps import StepCount, clean_text, is_duplicate

OPTIONS = cleaning_steps.read_options(common.base().data)
MASKS = ('mask_emails', 'mask_phone_numbers', 'mask_handles', 'mask_user_ids')


def take(step, text, **options):
    return cleaning_steps.STEPS[step](text, OPTIONS._replace(**options))


EXAMPLE = re.compile(r"""(?:: |^ +)(['"].*['"]) → (['"].*['"])$""", re.MULTILINE)


@pytest.mark.parametrize('step', cleaning_steps.TRANSFORMS, ids=lambda s: s.__name__)
def test_the_examples_in_the_docstring(step):
    examples = EXAMPLE.findall(step.__doc__)
    assert examples
    for before, after in examples:
        assert step(ast.literal_eval(before), OPTIONS) == ast.literal_eval(after)


@pytest.mark.parametrize(
    'step, before, after',
    [
        ('repair_unicode', 'cafe\u0301', 'café'),
        ('repair_unicode', '“curly” ﬁsh Ｆｕｌｌ', '“curly” ﬁsh Ｆｕｌｌ'),
        ('repair_unicode', 'a &amp; b <3', 'a &amp; b <3'),
        ('remove_control_characters', 'a\0b\x1bc\x7fd\ufeffe\u200bf', 'abcdef'),
        ('remove_control_characters', 'a\tb\nc\r\nd\re', 'a\tb\nc\nd\ne'),
        (
            'remove_control_characters',
            'a\vb\fc\x1cd\x1de\x1ef\x1fg',
            '\n'.join('abcdefg'),
        ),
        ('normalize_whitespace', 'a\vb \x1c\x1fc', 'a\nb\n\nc'),
        ('remove_control_characters', 'می‌خواهم 👩‍🚀', 'می‌خواهم 👩‍🚀'),
        ('normalize_whitespace', 'a\u00a0b \t\n  c  ', 'a b\n  c'),
        ('normalize_whitespace', 'if x:\n    y  =\t1\n', 'if x:\n    y =\t1'),
        ('normalize_whitespace', '\n \n\n a\n \n \nb\n \n', ' a\n\nb'),
        ('remove_punctuation', '“stop”! ☺', 'stop ☺'),
        ('mask_emails', "mail 'ann.o+x@mail.byu.edu'.", "mail '[email]'."),
        ('mask_emails', 'bo [at] gmx.de', '[email]'),
        ('mask_emails', *['look at yahoo.com, hi@ @ home'] * 2),
        ('mask_phone_numbers', 'me: (808) 782-1557!', 'me: [phone]!'),
        ('mask_phone_numbers', '808.782.1557 808 782 1557.', '[phone] [phone].'),
        ('mask_phone_numbers', '8087821557 or 1-808-782-1557', '[phone] or [phone]'),
        ('mask_phone_numbers', '0049 30 901820', '[phone]'),
        ('mask_phone_numbers', '030 / 901820 06 12 34 56 78', '[phone] [phone]'),
        ('mask_phone_numbers', 'my number is 782-1557', 'my number is [phone]'),
        ('mask_handles', 'insta @pito.bedo.', 'insta [handle].'),
        ('mask_handles', 'u/some_one, ann#1234', '[handle], [handle]'),
        ('mask_handles', *['yeah@ !@#$% @3pm a@b Issue#1234 and/or'] * 2),
        ('mask_user_ids', 'by 22578ac2-6317-44d5-8052-0a59076e0b96', 'by [id]'),
        ('mask_user_ids', '123456789012345678', '[id]'),
        ('mask_user_ids', 'd41d8cd98f00b204e9800998ecf8427e', '[id]'),
        ('mask_user_ids', '078-05-1120', '[id]'),
        # Not HTML
        ('html_to_text', *['i <3 you, a < b and c > d'] * 2),
        ('html_to_text', *['the <b> tag and <insert swear word here>'] * 2),
        ('html_to_text', *['<<soap making date huh>> x</3'] * 2),
        ('html_to_text', *['see <link> or <input>'] * 2),
        ('html_to_text', *['R&D, AT&T; ham & eggs'] * 2),
        ('html_to_text', '&#39;n&#x27; &nosuchname;', "'n' &nosuchname;"),
        # HTML
        ('html_to_text', 'never <em>I</em>\nline\n\nline', 'never I\nline\n\nline'),
        ('html_to_text', '<strong>no</strong> <grin> a < b <3', 'no <grin> a < b <3'),
        ('html_to_text', '<p>one\ntwo</p>three<br>four', 'one two\n\nthree\nfour'),
        ('html_to_text', '<ul><li>a<li>b</ul>', 'a\nb'),
        ('html_to_text', '<table><tr><td>a</td><td>b</td></tr></table>', 'a\tb'),
        ('html_to_text', '<pre>\nif x:\n    y\n</pre>', 'if x:\n    y'),
        (
            'html_to_text',
            '<!doctype html><html><head><title>t</title><style>p{}</style></head>'
            '<body><!-- c --><h1>Hi</h1>x<script>y</script></body></html>',
            'Hi\n\nx',
        ),
        ('html_to_text', 'a <script> tag <b>much</b>', 'a <script> tag much'),
        ('html_to_text', 'open <!-- and <i>go</i> on', 'open <!-- and go on'),
    ],
)
def test_step(step, before, after):
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
def test_masks_keep_other_numbers(text):
    assert clean_text(text, MASKS, OPTIONS, {}) == text


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
    assert once.split() == text.split()
    assert '\n\n\n' not in once and '\r' not in once


@given(st.text(alphabet=' \t\n\ra', max_size=30))
def test_all_blanks_at_the_end_of_a_line_are_removed(text):
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
        if name in ('keep_languages', 'keep_quality'):
            continue
        result = step(text, OPTIONS)
        if result is not None:
            result.encode()  # raises for half a surrogate pair


def test_counts_of_a_text_through_steps():
    steps = ['normalize_whitespace', 'mask_emails', 'drop_short', 'remove_punctuation']
    counts = defaultdict(StepCount)
    assert clean_text('mail  a@b.org', steps, OPTIONS, counts) is None
    assert clean_text('?!' * 8, steps, OPTIONS, counts) is None  # nothing is left
    assert counts == {
        'normalize_whitespace': StepCount(1, 0, 1),
        'mask_emails': StepCount(1, 0, 0),  # '[email]' is as long
        'drop_short': StepCount(0, 1, 12),
        'remove_punctuation': StepCount(0, 1, 16),
    }


def test_an_unknown_or_repeated_step_is_refused():
    cleaning_steps.check_steps(['lowercase', 'drop_duplicates'])
    with pytest.raises(UserError, match="'stem'.*repair_unicode.*drop_duplicates"):
        cleaning_steps.check_steps(['lowercase', 'stem'])
    with pytest.raises(UserError, match="'lowercase' occurs twice"):
        cleaning_steps.check_steps(['lowercase', 'drop_short', 'lowercase'])


def test_the_first_of_equal_texts_is_kept():
    count, seen = StepCount(), set()
    texts = ['Straße\t1', 'cafe\u0301', ' STRASSE 1\n', 'CAFÉ', 'a b', 'ab', 'a, b']
    duplicates = [text for text in texts if is_duplicate(text, seen, count)]
    assert duplicates == [' STRASSE 1\n', 'CAFÉ']
    assert count == StepCount(documents_dropped=2, characters_removed=15)
    assert {len(key) for key in seen} == {16}
