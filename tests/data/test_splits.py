"""Splits by a hash, of which none stays empty."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from gptjax.core import storage
from gptjax.data import conversations, documents
from gptjax.data.splits import SPLITS, assign_split, fill_splits

THREE = ('train', 'validation', 'test')


def is_large(key):
    return 'validation' if key > 'b' else 'train'


def test_a_hash_that_fills_all_splits_decides():
    found = fill_splits(['a', 'c', 'b', 'c'], is_large)
    assert found == dict(train=[0, 2], validation=[1, 3])


@given(st.lists(st.text(max_size=2), min_size=1, max_size=9), st.sampled_from(THREE))
def test_no_split_is_empty(keys, same):
    found = fill_splits(keys, lambda key: same, THREE)
    every = [number for numbers in found.values() for number in numbers]
    assert {*every} == {*range(len(keys))} and all(found.values())
    different = len({*keys})
    if different >= 3:  # no key is in two splits
        names = [{keys[number] for number in numbers} for numbers in found.values()]
        assert sum(map(len, names)) == different
    if different >= 3 or (different == 1 and len(keys) >= 3):
        assert len(every) == len(keys) and len(found['validation']) <= len(keys) - 2


def test_the_smallest_hash_is_moved():
    keys = sorted('abcdefgh', key=storage.fingerprint)
    for same in ('train', 'validation'):
        found = fill_splits(keys, lambda key, same=same: same)
        assert found == dict(train=[*range(1, 8)], validation=[0])


# ---- files


def build(workdir, source, **fields):
    """The lines of both splits and the manifest of RUN/documents."""
    config = common.base()
    config.data.sources = dict(own=source)
    config.data.update(clean=(), **fields)
    manifest = documents.build_documents(config, workdir)
    folder = workdir / 'documents'
    assert not [*folder.glob('*.draft')]
    for split in SPLITS:
        lines = [*storage.read_jsonl(folder / f'{split}.jsonl')]
        found = manifest['splits'][split]
        assert found['documents'] == len(lines) > 0
        assert found['characters'] == sum(len(line['text']) for line in lines)
        assert found['sha256'] == storage.sha256_of_file(folder / f'{split}.jsonl')
        yield lines
    yield manifest


@pytest.mark.parametrize('name', ('notes.txt', 'a.txt', 'x.txt', 'diary.txt'))
@pytest.mark.parametrize('fraction', (1e-9, 0.05, 0.99))
def test_a_short_text_is_cut_and_none_is_lost(tmp_path, name, fraction):
    text = ''.join(f'line {n} of a short text\n' for n in range(25))
    (tmp_path / name).write_text(text)
    *splits, _ = build(
        tmp_path,
        common.source('text', str(tmp_path / name)),
        validation_fraction=fraction,
    )
    lines = sorted((line for s in splits for line in s), key=place_of)
    assert ''.join(line['text'] for line in lines) == text and len(lines) > 4


def place_of(line):
    return int(line['id'].rpartition('.')[2])


@pytest.mark.parametrize('count', (2, 3, 20))
@pytest.mark.parametrize('fraction', (1e-9, 0.999999))
def test_a_few_documents_are_split(tmp_path, count, fraction):
    path = tmp_path / 'few.jsonl'
    path.write_text(''.join(f'{{"text": "text {n}"}}\n' for n in range(count)))
    train, validation, _ = build(
        tmp_path, common.source('jsonl', str(path)), validation_fraction=fraction
    )
    ids = [f'few.jsonl#{n + 1}' for n in range(count)]
    assert [one['id'] for one in validation] == [
        f'own/{min(ids, key=storage.fingerprint)}'
    ]
    assert len(train) == count - 1


USER = dict(role='user', content='hi')
REPLY = dict(role='assistant', content='hello')
SYSTEM = dict(role='system', content='be kind')


def write_conversations(tmp_path, *lines):
    path = tmp_path / 'a.jsonl'
    path.write_text(''.join(json.dumps(dict(messages=m)) + '\n' for m in lines))
    config = common.base()
    config.dialogue = common.dialogue_section(own=common.source('chat', str(path)))
    found = conversations.write_conversations(config, tmp_path, tmp_path)
    views = [[*storage.read_jsonl(tmp_path / f'{split}.jsonl')] for split in SPLITS]
    sizes = found['own']['splits']
    assert [sizes[split]['views'] for split in SPLITS] == [*map(len, views)]
    return views


def test_one_conversation_is_cut_between_two_replies(tmp_path):
    turns = [dict(one, content=str(n)) for n in range(3) for one in (USER, REPLY)]
    halves = [
        dict(id='own/a.jsonl#1.0', source='own', messages=[SYSTEM, *turns[:4]]),
        dict(id='own/a.jsonl#1.1', source='own', messages=[SYSTEM, *turns[4:]]),
    ]
    views = write_conversations(tmp_path, [SYSTEM, *turns])
    assert sorted(views, key=lambda one: one[0]['id']) == [[half] for half in halves]


def test_one_reply_is_in_both_splits(tmp_path):
    train, validation = write_conversations(tmp_path, [USER, REPLY])
    assert train == validation and len(train) == 1


def test_the_file_of_a_split_does_not_depend_on_how_it_began(tmp_path):
    """The parts that are kept in memory until both splits have one change nothing."""
    ids = [f'many.jsonl#{n + 1}' for n in range(200)]
    path = tmp_path / 'many.jsonl'
    path.write_text(''.join(f'{{"text": "text {n}"}}\n' for n in range(200)))
    *splits, _ = build(tmp_path, common.source('jsonl', str(path)))
    for split, lines in zip(SPLITS, splits, strict=True):
        expected = [f'own/{name}' for name in ids if assign_split(name, 0.05) == split]
        assert [line['id'] for line in lines] == expected


@pytest.mark.parametrize('kind', ('jsonl', 'parquet', 'chat'))
@pytest.mark.parametrize('values, name', ((1, 'id'), (3, 'label')))
def test_a_field_that_repeats_a_few_values_is_no_id(tmp_path, kind, values, name):
    path = tmp_path / f'a.{kind}'
    texts = [
        dict(messages=[USER, REPLY]) if kind == 'chat' else dict(text=f'text {n}')
        for n in range(60)
    ]
    records = [one | {name: n % values} for n, one in enumerate(texts)]
    if kind == 'parquet':
        pyarrow = pytest.importorskip('pyarrow')
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text(''.join(json.dumps(one) + '\n' for one in records))
    id_field = '' if name == 'id' else name
    source = common.source(kind, str(path), id_field=id_field)
    train, validation, manifest = build(tmp_path, source)
    first = 0 if kind == 'parquet' else 1
    assert {line['id'] for line in train + validation} == {
        f'own/a.{kind}#{n}' for n in range(first, 60 + first)
    }
    note = f'60 records have {values} different {name!r}, so it is no id: the place'
    assert note in documents.DOCUMENTS.details(manifest)


def test_ids_that_a_few_records_share_stay(tmp_path):
    """Parts of one document have its id: they are in one split."""
    path = tmp_path / 'parts.jsonl'
    lines = (dict(id=f'book {n % 25}', text=f'part {n}') for n in range(100))
    path.write_text(''.join(json.dumps(one) + '\n' for one in lines))
    train, validation, manifest = build(tmp_path, common.source('jsonl', str(path)))
    assert 'ids' not in manifest['sources']['own']
    names = [{line['id'] for line in split} for split in (train, validation)]
    assert all(names) and not names[0] & names[1] and len(names[0] | names[1]) == 25
