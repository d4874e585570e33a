"""Each rule at its published threshold, from both sides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from gptjax.core.console import UserError
from gptjax.data import documents
from gptjax.data.cleaning import cleaning_steps
from gptjax.data.cleaning.cleaning_steps import GROUPS, STEPS, StepCount, clean_text
from gptjax.data.quality import quality_rules

OPTIONS = cleaning_steps.read_options(common.base().data)


def words(count, length=4, between=' '):
    """Different words of so many characters."""
    return between.join(f'{n:x}'.rjust(length, 'g') for n in range(count))


def marked(count, mark, plain):
    """Lines, of which so many have the mark in place of '@'."""
    return '\n'.join([mark.replace('@', 'a')] * count + ['a'] * plain)


LONG, ONE, TWO = 'x' * 20 + '\n', 'aa bb cc dd ee', 'ff hh ii jj kk'
PARTS = '\n\n'.join('x' * 4) + '\n\n'
PAIRS = '\n\n'.join(f'first{n}\nsecond{n}' for n in range(6))
# (rule, a text that it keeps, a text that it drops), one step apart.
TEXT_CASES = [
    ('gopher_word_count', 'a ' * 50, 'a ' * 49),
    ('gopher_word_count', 'a ' * 100_000, 'a ' * 100_001),
    ('gopher_mean_word_length', 'ab abcd', 'ab abc'),
    ('gopher_mean_word_length', words(10, 10), words(9, 10) + ' ' + 'a' * 11),
    ('gopher_symbols', 'a ' * 18 + '# #', 'a ' * 17 + '# #'),
    ('gopher_symbols', 'a ' * 18 + 'a… b...', 'a ' * 17 + 'a… b...'),
    ('gopher_bullets', marked(9, '• @', 1), marked(10, '• @', 1)),
    ('gopher_bullets', marked(9, '- @', 1), marked(10, '- @', 1)),
    ('gopher_ellipses', marked(3, '@…', 7), marked(4, '@...', 9)),
    ('gopher_alphabetic_words', 'a b3 é д 5', 'a b3 é 5'),
    ('gopher_stop_words', 'The cat and I', 'the cat, the others'),
    ('fineweb_line_punctuation', marked(13, '@.', 87), marked(12, '@.', 88)),
    (
        'fineweb_short_lines',
        *(words(n, 30, '\n') + '\na' * (100 - n) for n in (34, 33)),
    ),
    ('fineweb_duplicated_characters', 'a\na\n' + 'b' * 9, 'a\na\n' + 'b' * 8),
    ('c4_sentences', 'It is. It was.\nGo.', 'It is. It was'),
    ('c4_lorem_ipsum', 'lorem', 'Lorem Ipsum dolor'),
    ('c4_curly_brackets', 'f(x)', 'f() {'),
    # Table A1: lines, their characters, paragraphs, n-grams of 2, 3 and 5 words
    ('gopher_repetition', *('x\n' * n + words(6, 9, '\n') for n in (4, 5))),
    ('gopher_repetition', *(LONG * 2 + words(n, 10, '\n') for n in (6, 5))),
    ('gopher_repetition', PARTS + PAIRS, 'x\n\n' + PARTS + PAIRS),
    ('gopher_repetition', '\n\n' + PARTS + PAIRS, 'x\n\n' + PARTS + PAIRS),
    ('gopher_repetition', *('ab cd ' * 2 + words(n) for n in (8, 7))),
    ('gopher_repetition', *('ab cd ef ' * 2 + words(n) for n in (14, 13))),
    (
        'gopher_repetition',  # 20 of 134 characters, and of 132
        *(f'{ONE} 1111 {TWO} 2222 {ONE} 3333 {TWO} {words(n, 2)}' for n in (41, 40)),
    ),
]


@pytest.mark.parametrize('rule, kept, dropped', TEXT_CASES)
def test_a_text_is_kept_up_to_the_threshold(rule, kept, dropped):
    assert STEPS[rule](kept, OPTIONS) == kept
    assert STEPS[rule](dropped, OPTIONS) is None


def cut_spans(*texts):
    spans = [quality_rules.find_spans(text, OPTIONS) for text in texts]
    return [
        quality_rules.remove_repeated_spans(
            text, spans[n], {key for one in spans[:n] for key in one.keys}
        )
        for n, text in enumerate(texts)
    ]


def test_of_equal_spans_of_three_sentences_the_first_is_left():
    first = 'One is here. Two is here.\nThree is here. Four is here.'
    again = 'New it is. two  is here. Three is here.\n\nFour is here. Last it is.'
    assert cut_spans(first, again) == [first, 'New it is.\n\nLast it is.']
    two = 'One is here. Two is here.'
    assert cut_spans(first, two) == [first, two]
    assert cut_spans('Ha it is.\n' * 9) == ['\n'.join(['Ha it is.'] * 3)]


@settings(max_examples=30)
@given(st.text('ab. \n#•…{', max_size=60))
def test_rules_are_pure(text):
    for rule in (*quality_rules.LINE_RULES, *quality_rules.TEXT_RULES):
        if rule is not quality_rules.c4_bad_words:
            once = rule(text, OPTIONS)
            assert rule(text, OPTIONS) == once
            assert once is None or len(once) <= len(text)


def test_c4_does_what_its_code_does():
    """tensorflow_datasets/text/c4_utils.py: what a line becomes, and the whole page."""
    whole = 'This is the first one. This is another one. And this is the last.'
    lines = {
        'A line with a citation of it.[1]': 'A line with a citation of it.',
        f'A line with a long {"w" * 1000}.': '',
        f'A line with a longer {"w" * 999}.': f'A line with a longer {"w" * 999}.',
        'Four words and none.[edit]': '',
        'You have to enable JavaScript {here}.': '',
    }
    rules = [name for name in GROUPS['c4'] if name in STEPS]
    counts = {name: StepCount() for name in rules}
    for line, kept in lines.items():
        text = clean_text(f'{whole}\n{line}', rules, OPTIONS, counts)
        assert text == f'{whole}\n{kept}'.strip()
    two = 'This is the first one. This is the last one.'
    for text in (
        f'{two}\nYou have to enable JavaScript here.',  # two sentences are left
        f'{two}\nThis is our privacy policy, too.',
        f'{whole}\nThis is the code of our privacy policy {{x}}.',
    ):
        assert clean_text(text, rules, OPTIONS, counts) is None


def test_groups_stand_for_their_rules():
    known = {*STEPS, *cleaning_steps.COMPARING}
    assert all({*rules} <= known for rules in GROUPS.values())
    names = ['lowercase', 'gopher']
    assert cleaning_steps.expand_groups(names) == ['lowercase', *GROUPS['gopher']]
    with pytest.raises(UserError, match="'c4_sentences' occurs twice"):
        cleaning_steps.check_steps(['c4', 'c4_sentences'])
    data = common.base().data
    data.clean = tuple(names)
    assert documents.cleaning_settings(data)['data.clean'][1:] == [*GROUPS['gopher']]
    counts = {name: StepCount() for name in GROUPS['fineweb']}
    assert clean_text('a\n' * 9, GROUPS['fineweb'], OPTIONS, counts) is None
    assert counts['fineweb_line_punctuation'].documents_dropped == 1


def test_bad_words(tmp_path):
    path = tmp_path / 'bad.txt'
    path.write_text('Darn\n\nheck it\n')
    options = OPTIONS._replace(bad_words=str(path))
    for text, kept in {'Oh DARN!': False, 'darned': True, 'heck it.': False}.items():
        assert (STEPS['c4_bad_words'](text, options) is not None) == kept
    path = tmp_path / 'other.txt'
    path.write_text('坏词\nspam\n')
    options = OPTIONS._replace(bad_words=str(path))
    for text in ('这是一个坏词的例子。', 'a坏词b', '这是spam的例子'):
        assert STEPS['c4_bad_words'](text, options) is None
    assert STEPS['c4_bad_words']('这是spams', options) == '这是spams'
    config = common.base()
    config.data.sources = dict(own=common.source('text', str(tmp_path / 'none.txt')))
    config.data.clean = ('c4_bad_words',)

    def refuses(pattern):
        with pytest.raises(UserError, match=pattern):
            documents.build_documents(config, tmp_path / 'run')

    refuses(r"'c4_bad_words' needs data\.bad_words")
    path = tmp_path / 'empty.txt'
    path.write_text('\n')
    config.data.bad_words = str(path)
    refuses(r'data\.bad_words=.*: no word in it')
    config.data.clean = ()
    refuses(r"data\.bad_words=.*: no source has the step 'c4_bad_words'")
