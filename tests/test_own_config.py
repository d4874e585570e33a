"""configs/own.py: the kind of a user's data by its ending."""

import pytest

from configs import own


@pytest.mark.parametrize(
    'variant, kind, path',
    (
        ('notes.txt', 'text', 'notes.txt'),
        ('notes.md.gz', 'text', 'notes.md.gz'),
        ('logs/*.ndjson.gz', 'jsonl', 'logs/*.ndjson.gz'),
        ('a.parquet', 'parquet', 'a.parquet'),
        ('folder/', 'text', 'folder/'),
        ('chat=talks.jsonl', 'chat', 'talks.jsonl'),
        ('text=notes.rst', 'text', 'notes.rst'),
        ('odd=name.txt', 'text', 'odd=name.txt'),
    ),
)
def test_the_ending_or_the_word_before_it_tells_the_kind(variant, kind, path):
    source = own.get_config(variant).data.sources.own
    assert (source.kind, source.path) == (kind, path)


def test_a_folder_that_is_there_is_one_of_texts(tmp_path):
    assert own.get_config(str(tmp_path)).data.sources.own.kind == 'text'


@pytest.mark.parametrize('variant', ('notes.csv', 'notes', 'json=a.json'))
def test_an_unknown_ending_is_refused(variant):
    with pytest.raises(ValueError, match=f'{variant}: .* use KIND=PATH'):
        own.get_config(variant)
