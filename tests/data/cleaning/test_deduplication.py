from gptjax.data.cleaning.cleaning_steps import StepCount
from gptjax.data.cleaning.deduplication import drop_duplicates, text_key


def test_the_first_of_equal_texts_stays():
    count, seen = StepCount(), set()
    documents = [('1', 'Hello  you'), ('2', 'other'), ('3', 'hello\nyou')]
    kept = list(drop_duplicates(documents, seen, count))
    assert kept == [('1', 'Hello  you'), ('2', 'other')]
    assert count == StepCount(documents_dropped=1, characters_removed=9)
    # another source with the same memory
    assert list(drop_duplicates([('4', 'OTHER ')], seen, count)) == []
    assert count.documents_dropped == 2


def test_what_counts_as_equal():
    assert text_key('Straße\t1') == text_key(' STRASSE 1\n')
    assert text_key('cafe\u0301') == text_key('café')
    assert text_key('a b') != text_key('ab')
    assert text_key('a, b') != text_key('a b')
    assert len(text_key('')) == 16
