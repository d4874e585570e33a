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


def test_a_folder_of_something_else_says_how_to_read_it(tmp_path):
    (tmp_path / 'a.jsonl.gz').touch()
    with pytest.raises(ValueError, match=rf'but \.jsonl\.gz: .*:jsonl={tmp_path};'):
        own.get_config(str(tmp_path))
    (tmp_path / 'a.jsonl.gz').rename(tmp_path / 'a.csv')
    with pytest.raises(ValueError, match='but .csv: convert it to JSON Lines'):
        own.get_config(str(tmp_path))
    (tmp_path / 'a.md').touch()
    assert own.get_config(str(tmp_path)).data.sources.own.kind == 'text'


def test_tables_are_to_be_converted():
    with pytest.raises(ValueError, match='convert it to JSON Lines') as caught:
        own.get_config('notes.csv')
    assert 'text=' not in str(caught.value)


@pytest.mark.parametrize('variant', ('notes.csv', 'notes', 'json=a.json'))
def test_an_unknown_ending_is_refused(variant):
    with pytest.raises(ValueError, match=f'{variant}: .* use KIND=PATH'):
        own.get_config(variant)
