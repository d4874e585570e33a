import pytest

from gptjax.data.cleaning.cleaning_steps import StepCount
from gptjax.data.cleaning.deduplication import is_duplicate


def test_the_first_of_equal_texts_stays():
    count, seen = StepCount(), set()
    texts = ['Hello  you', 'other', 'hello\nyou', 'OTHER ']
    assert [is_duplicate(text, seen, count) for text in texts] == [0, 0, 1, 1]
    assert count == StepCount(documents_dropped=2, characters_removed=15)


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
    is_duplicate(text, seen, StepCount())
    assert is_duplicate(other, seen, StepCount()) == equal
    assert {len(key) for key in seen} == {16}
