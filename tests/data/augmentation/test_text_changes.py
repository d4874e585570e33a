"""Changes of a text: examples and properties."""

from collections import Counter

import numpy as np
import pytest

from configs import common
from gptjax.data.augmentation import text_changes
from gptjax.data.augmentation.augmentations import read_options
from gptjax.data.augmentation.random_draws import Draws
from gptjax.data.augmentation.synonyms import read_synonyms

TEXT = 'One two, three. Four five six! Seven?\n\nEight nine ten. Eleven\ntwelve été.'


def change(name, text, seed=0, **fields):
    options = read_options(common.base().data)._replace(**fields)
    return getattr(text_changes, name)(text, Draws(seed), options)


def test_numbers_depend_on_the_key():
    draws = Draws(1, 'a')
    first = [draws() for _ in range(300)]
    again = Draws(1, 'a')
    assert first == [again() for _ in range(300)]
    assert len({*first}) == 300 and 0.4 < np.mean(first) < 0.6
    assert Draws(1, 'b')() != first[0]


def test_neighbours_on_the_keyboard():
    neighbours = {key: {*value} for key, value in text_changes.NEIGHBOURS.items()}
    assert neighbours['g'] == {*'tyfhvb'} and neighbours['q'] == {*'wa'}
    for key, others in neighbours.items():
        assert all(key in neighbours[other] for other in others)


def test_character_noise_changes_a_share_of_the_letters():
    text = 'abc def. ' * 1000
    changed = change('character_noise', text, typo_rate=0.1)
    kinds = Counter(len(word) - 3 for word in changed.replace('.', '').split())
    assert 0.1 < kinds[-1] / 2000 * 4 / 3 < 0.13 or kinds[-1]
    assert 0.03 < kinds[1] / 2000 < 0.12 and 0.03 < kinds[-1] / 2000 < 0.12
    assert changed.count('.') == 1000 and changed.count(' ') == 2000


@pytest.mark.parametrize('distance', (0, 1, 3))
def test_words_move_a_few_places(distance):
    words = [f'w{n}' for n in range(200)]
    text = ' '.join(words[:100]) + ' \n\t' + '  '.join(words[100:])
    changed = change('reorder_words', text, reorder_distance=distance)
    moved = [abs(n - words.index(word)) for n, word in enumerate(changed.split())]
    assert max(moved) == distance and sorted(changed.split()) == sorted(words)
    first, _, second = changed.partition(' \n\t')
    assert {*first.split()} == {*words[:100]} and second.count('  ') == 99


def test_sentences_are_shuffled():
    changed = {
        change('shuffle_sentences', TEXT, seed, shuffle_rate=1.0) for seed in range(9)
    }
    assert len(changed) > 7
    for text in changed:
        assert sorted(text.split()) == sorted(TEXT.split())
        assert text.count('\n\n') == 1 and 'Four five six!' in text
    assert change('shuffle_sentences', '日。本。', 3, shuffle_rate=1.0) in (
        '日。本。',
        '本。日。',
    )


def test_a_document_is_rotated():
    changed = {
        change('rotate_document', ' a b, c d\n', s, rotation_rate=1.0)
        for s in range(20)
    }
    assert changed == {' b, c d a\n', ' c d a b,\n', ' d a b, c\n'}
    assert change('rotate_document', 'alone', rotation_rate=1.0) == 'alone'


def test_spans_are_deleted():
    text = '\n'.join(
        ' '.join(f'w{m}' for m in range(n, n + 50)) for n in range(0, 5000, 50)
    )
    changed = change('delete_spans', text, deletion_rate=0.15)
    assert 0.11 < 1 - len(changed.split()) / 5000 < 0.17
    assert changed.count('\n') == text.count('\n')
    assert '  ' not in changed


def test_synonyms_have_the_case_of_the_word(tmp_path):
    path = tmp_path / 'a.tsv'
    path.write_text('Big\tlarge\nbig\t very large \r\nété\tsummer\n')
    table = read_synonyms(str(path))
    assert table == {'big': ('large', 'very large'), 'été': ('summer',)}
    lines = tmp_path / 'b.jsonl'
    lines.write_text('{"word": "Big", "synonyms": ["large"]}\n')
    table = read_synonyms(str(lines))
    text = change(
        'replace_synonyms', 'Big BIG bigger, big.', synonyms=table, synonym_rate=1.0
    )
    assert text == 'Large LARGE bigger, large.'
