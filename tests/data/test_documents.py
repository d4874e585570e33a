"""The whole stage: files, counts, splits and errors."""

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import documents, splits


@pytest.fixture
def config(tmp_path):
    """Two sources: 40 lines of JSON and a folder of 10 files, two texts in both."""
    lines = [dict(id=f'line {n}', text=f'This is line {n}. ' * 5) for n in range(40)]
    lines[1]['text'] = 'short'
    lines[2]['text'] = 'Write to ann@example.org,  please.'
    lines[3]['text'] = ' '
    path = tmp_path / 'lines.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    folder = tmp_path / 'texts'
    folder.mkdir()
    for n in range(10):
        (folder / f'{n}.txt').write_text(f'This is file {n}.\n' * 5)
    for n in range(4, 6):
        (folder / f'{n}.txt').write_text(lines[n]['text'].upper())
    config = common.base()
    config.data.sources = dict(
        lines=common.source('jsonl', str(path), licence='CC0'),
        texts=common.source('text', str(folder)),
    )
    config.data.validation_fraction = 0.3
    return config


def read(workdir, split):
    return list(storage.read_jsonl(workdir / 'documents' / f'{split}.jsonl'))


def test_what_is_written_and_counted(config, tmp_path):
    workdir = tmp_path / 'run'
    manifest = documents.build_documents(config, workdir)
    assert manifest == storage.read_json(workdir / 'documents' / 'manifest.json')
    train, validation = read(workdir, 'train'), read(workdir, 'validation')
    both = {line['id']: line for line in train + validation}
    # 40 lines less one short and one empty; 10 files less two duplicates
    assert len(both) == len(train) + len(validation) == 38 + 8
    assert both['lines/line 2'] == dict(
        id='lines/line 2', source='lines', text='Write to [email], please.'
    )
    assert 'texts/3.txt' in both and 'texts/4.txt' not in both

    lines, texts = manifest['sources']['lines'], manifest['sources']['texts']
    assert lines['read']['documents'] == 40 and lines['read']['empty'] == 1
    assert lines['steps']['drop_short'] == dict(
        documents_changed=0, documents_dropped=1, characters_removed=5
    )
    assert lines['steps']['mask_emails']['documents_changed'] == 1
    assert lines['kept']['documents'] == 38
    assert texts['steps']['drop_duplicates']['documents_dropped'] == 2
    assert texts['kept']['documents'] == 8
    assert manifest['licences'] == dict(lines='CC0', texts='')
    for split, found in (('train', train), ('validation', validation)):
        text = [line['text'] for line in found]
        ids = [line['id'].partition('/')[2] for line in found]  # without the source
        assert {splits.assign_split(name, 0.3) for name in ids} == {split}
        assert manifest['splits'][split] == dict(
            documents=len(found),
            characters=sum(map(len, text)),
            bytes=sum(len(one.encode()) for one in text),
            sha256=storage.sha256_of_file(workdir / 'documents' / f'{split}.jsonl'),
        )
        by_source = Counter(line['source'] for line in found)
        for name, source in manifest['sources'].items():
            assert source['splits'][split]['documents'] == by_source[name]
    for source in (lines, texts):
        removed = sum(step['characters_removed'] for step in source['steps'].values())
        removed += source['read']['empty']  # an empty document has one blank character
        assert source['read']['characters'] - removed == source['kept']['characters']


def test_processes_change_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, 'CHUNK_CHARACTERS', 200)
    config.data.workers = 1
    alone = documents.build_documents(config, tmp_path / 'one')
    monkeypatch.setattr(documents, 'CHUNKS_BEFORE_PROCESSES', 2)
    config.data.workers = 2
    assert documents.build_documents(config, tmp_path / 'two') == alone


@given(st.text(max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_split_of(identity, one, other):
    fraction = int(hashlib.sha256(identity.encode()).hexdigest()[:16], 16) / 2**64
    expected = 'validation' if fraction < one else 'train'
    assert splits.assign_split(identity, one) == expected
    if splits.assign_split(identity, min(one, other)) == 'validation':
        assert splits.assign_split(identity, max(one, other)) == 'validation'


def test_what_is_left_out_is_told_with_the_field_to_change(config, tmp_path):
    manifest = documents.build_documents(config, tmp_path / 'run')
    assert documents.DOCUMENTS.details(manifest) == (
        'empty text left out 1, data.min_characters=16 left out 1 of 40 documents of '
        'lines\n'
        'warning: drop_duplicates of data.clean left out 2 of 10 documents of texts'
    )


def test_steps_are_taken_in_order_around_duplicates(config, tmp_path):
    config.data.clean = ('normalize_whitespace', 'drop_duplicates', 'lowercase')
    manifest = documents.build_documents(config, tmp_path / 'run')
    dropped = manifest['sources']['texts']['steps']['drop_duplicates']
    assert dropped['documents_dropped'] == 2
    texts = [line['text'] for line in read(tmp_path / 'run', 'train')]
    assert texts == [text.lower() for text in texts]


def test_made_once_and_refused_for_another_config_or_changed_files(config, tmp_path):
    workdir = tmp_path / 'run'
    for name in ('a.csv', 'b.jsonl', '.hidden'):
        (tmp_path / 'texts' / name).write_text('some words')
    first = documents.build_documents(config, workdir)
    assert documents.describe_documents(first).endswith(
        '; texts: 10 files read, 2 skipped (.csv, .jsonl)'
    )
    made = (workdir / 'documents' / 'train.jsonl').stat().st_mtime_ns
    config.data.sources.lines.weight = 0.5  # does not change the documents
    config.data.workers = 1
    config.data.context = 7
    (tmp_path / 'lines.jsonl').rename(tmp_path / 'elsewhere')  # no longer needed
    assert documents.build_documents(config, workdir) == first
    assert (workdir / 'documents' / 'train.jsonl').stat().st_mtime_ns == made
    (tmp_path / 'texts' / 'new.txt').write_text('A new file has come.')
    with pytest.raises(UserError, match=r'sources\.texts\.path=.* now there are 11'):
        documents.build_documents(config, workdir)
    config.data.sources.lines.limit = 10
    with pytest.raises(UserError, match=r'data\.sources\.lines\.limit: 0 .*10 here'):
        documents.build_documents(config, workdir)


def test_errors(config, tmp_path):
    def refuses(pattern, **fields):
        bad = config.copy_and_resolve_references()
        bad.data.update(fields)
        with pytest.raises(UserError, match=pattern):
            documents.build_documents(bad, tmp_path / 'bad')
        assert not (tmp_path / 'bad' / 'documents').exists()

    refuses(r"data\.clean: no step is called 'stem'", clean=('stem',))
    refuses(
        r"data\.clean: none of the 40 .*data\.sources\.lines .*'drop_short'",
        min_characters=1000,
    )
    empty = tmp_path / 'empty.jsonl'
    empty.write_text('{"text": ""}\n')
    config.data.sources = dict(none=common.source('jsonl', str(empty)))
    refuses(r'data\.sources\.none: all 1 documents are empty', clean=())
    config.data.sources = {}
    refuses(r'data\.sources is empty')
