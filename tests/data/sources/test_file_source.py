"""Every kind of source on small files, and every error of a source."""

import gzip
import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from configs import common
from gptjax.core import files
from gptjax.core.console import UserError
from gptjax.data.sources import file_source, open_source


def documents(kind, path, data_dir='unused', **fields):
    source = common.source(kind, str(path), **fields)
    opened = open_source.open_source('mine', source, data_dir)
    advances = []
    found = list(opened.read(advances.append))
    if not source.limit:
        assert sum(advances) == opened.total  # the progress bar needs this total
    return found


def refuses(words, kind, path, **fields):
    """Asserts an error of one line that has the field, then the words in this order."""
    with pytest.raises(UserError) as caught:
        documents(kind, path, **fields)
    message = str(caught.value)
    assert message.startswith('data.sources.mine.') and '\n' not in message
    place = 0
    for word in words:
        assert word in message[place:], message
        place = message.index(word, place)


def write_lines(path, *records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


# ---- Text


def test_a_folder_of_text_is_a_document_a_file(tmp_path):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'b.txt').write_text('bee\n\nbee', encoding='utf-8-sig')
    (tmp_path / 'sub' / 'a.md').write_text('ä')
    (tmp_path / 'empty.txt').write_text(' \n')
    (tmp_path / '.hidden.txt').write_text('no')
    (tmp_path / 'other.csv').write_text('no')
    (tmp_path / 'z.txt.gz').write_bytes(gzip.compress(b'zip'))
    expected = [('b.txt', 'bee\n\nbee'), ('sub/a.md', 'ä'), ('z.txt.gz', 'zip')]
    assert documents('text', tmp_path) == expected
    assert documents('text', tmp_path / '**' / '*.[mt][dx]*') == expected
    assert documents('text', tmp_path, limit=2) == expected[:2]


def test_one_file_is_cut_at_empty_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f'{n} ' + 'word ' * 150 + '\n\n' for n in range(100)]
    path = tmp_path / 'book.txt'
    path.write_text(''.join(paragraphs))
    found = documents('text', path)
    assert [identity for identity, _ in found] == [f'book.txt#{n}' for n in range(8)]
    assert ''.join(text for _, text in found) == ''.join(paragraphs)
    size = file_source.PART_CHARACTERS
    for _, text in found[:-1]:
        assert size <= len(text) < size + 1000 and text.endswith('\n\n')


@pytest.mark.parametrize(
    'text',
    ['word ' * 9000, 'x' * 45_000, 'word word\n' * 4500, 'Old Mac.\r\r' * 4500],
)
def test_one_file_without_empty_lines_is_cut_all_the_same(tmp_path, text):
    path = tmp_path / 'book.txt'
    path.write_text(text)
    found = [piece for _, piece in documents('text', path)]
    assert ''.join(found) == text
    assert len(found) >= 2
    assert max(map(len, found)) <= 3 * file_source.PART_CHARACTERS
    if ' ' in text:
        assert all(piece[-1].isspace() for piece in found)
    if '\r' in text:
        assert all(piece.endswith('\r') for piece in found)


def test_text_errors(tmp_path):
    refuses(['.path=', 'no such file', 'folder or glob'], 'text', tmp_path / 'no.txt')
    refuses(['make it with the stage `task`'], 'chat', tmp_path / 'task' / 'no.jsonl')
    refuses(['.path=', 'no file matches'], 'text', tmp_path / '*.txt')
    refuses(['.path=', 'no file in this folder', '.txt'], 'text', tmp_path)
    empty = tmp_path / 'empty.txt'
    empty.write_text('\n')
    refuses(['.path=', 'empty.txt', 'empty'], 'text', empty)
    refuses(['.path=', 'empty'], 'text', tmp_path)
    binary = tmp_path / 'image.txt'
    binary.write_bytes(b'ok\nok\n\x89PNG\0\0')
    refuses(['image.txt', 'line 3', 'binary'], 'text', binary)
    # With a byte-order mark, and without: then the NUL bytes of Latin letters tell.
    for text, encoding in (('你好', 'utf-16'), ('Notepad\n', 'utf-16-le')):
        binary.write_bytes(text.encode(encoding))
        refuses(['image.txt', 'UTF-16', 'iconv -f UTF-16'], 'text', binary)
    latin = tmp_path / 'latin.txt'
    latin.write_bytes('ok\nschön'.encode('latin-1'))
    refuses(['latin.txt', 'line 2', 'UTF-8', '0xf6', 'iconv'], 'text', latin)
    cut = tmp_path / 'cut.txt.gz'
    cut.write_bytes(gzip.compress(b'x' * 1000)[:-8])
    refuses(['cut.txt.gz', 'damaged'], 'text', cut)
    flipped = bytearray(gzip.compress(b'one\ntwo\n' * 1000))
    flipped[20] ^= 0xFF
    cut.write_bytes(flipped)
    refuses(['cut.txt.gz', 'damaged after line'], 'text', cut)
    (tmp_path / 'gone').mkdir()
    (tmp_path / 'gone' / 'a.txt').symlink_to('nowhere')
    refuses(['gone: ', 'No such file', 'readable file'], 'text', tmp_path / 'gone')


# ---- JSON Lines and chat


def test_jsonl(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": "x"}\n{"text": "3"}')
    expected = [('a.jsonl#1', 'one'), ('x', 'two'), ('a.jsonl#4', '3')]
    assert documents('jsonl', path) == expected
    assert documents('jsonl', tmp_path) == expected
    write_lines(path, {'body': 'one', 'key': 7, 'id': 'not this'})
    named = dict(text_field='body', id_field='key')
    assert documents('jsonl', path, **named) == [('7', 'one')]


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"text": "a\\ud83d b\\ud83d\\ude00", "id": "b\\ud83d"}\n')
    assert documents('jsonl', path) == [('b\ufffd', 'a\ufffd b😀')]


def test_a_file_name_that_is_not_utf_8(tmp_path):
    for name in (b'sch\xf6n.txt', b'z.txt'):
        with open(os.path.join(os.fsencode(tmp_path), name), 'w') as file:
            file.write('text')
    ids = [identity for identity, _ in documents('text', tmp_path)]
    assert ids == ['sch\ufffdn.txt', 'z.txt']
    refuses(['not UTF-8', 'rename'], 'text', tmp_path / 'sch\udcf6n.txt')


def test_jsonl_errors(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"text": "one"}\n{"text": "two"\n')
    refuses(['.path=', 'a.jsonl', 'line 2', 'not valid JSON', 'correct'], 'jsonl', path)
    path.write_bytes(b'{"text": "one"}\r{"text": "two"}\r')
    refuses(['line 1', 'carriage returns', 'old Mac', '`tr '], 'jsonl', path)
    write_lines(path, {'text': 'one'}, {'body': 'two', 'n': 1})
    refuses(['line 2', "'text'", "'body', 'n'", '.text_field'], 'jsonl', path)
    write_lines(path, {'text': ['one']})
    refuses(['line 1', '.text_field=text', 'list', 'no string'], 'jsonl', path)
    write_lines(path, {'text': 'one'})
    refuses(['line 1', '.id_field=key', "'text'"], 'jsonl', path, id_field='key')
    path.write_text('\n')
    refuses(['.path=', 'empty'], 'jsonl', path)


def test_chat(tmp_path):
    messages = [
        {'role': 'system', 'content': 'Be kind.'},
        {'role': 'user', 'content': 'Hi'},
        {'role': 'user', 'content': 'there'},
        {'role': 'assistant', 'content': 'Hello!'},
    ]
    path = write_lines(tmp_path / 'c.jsonl', {'messages': messages, 'id': 'one'})
    assert documents('chat', path) == [('one', 'Be kind.\n\nHi\nthere\n\nHello!')]
    write_lines(path, {'text': 'one'})
    words = ['line 1', '"messages"', "'text'", "set data.sources.mine.kind='jsonl'"]
    refuses(words, 'chat', path)


# ---- Parquet


def test_parquet(tmp_path):
    path = tmp_path / 'p.parquet'
    table = pyarrow.table({'text': [f't{n}' for n in range(2500)], 'n': range(2500)})
    parquet.write_table(table, path, row_group_size=700)
    expected = [(f'p.parquet#{n}', f't{n}') for n in range(2500)]
    assert documents('parquet', path) == expected
    assert documents('parquet', path, limit=3) == expected[:3]
    assert documents('parquet', tmp_path, id_field='n')[-1] == ('2499', 't2499')
    parquet.write_table(pyarrow.table({'text': ['a', None]}), path)
    null_is_empty = [('p.parquet#0', 'a'), ('p.parquet#1', '')]
    assert documents('parquet', path) == null_is_empty


def test_parquet_errors(tmp_path):
    path = tmp_path / 'p.parquet'
    parquet.write_table(pyarrow.table({'body': ['x', None], 'n': [1, 2]}), path)
    refuses(['.text_field=text', 'p.parquet', 'body, n'], 'parquet', path)
    named = dict(text_field='body')
    refuses(['.id_field=key', 'body, n'], 'parquet', path, id_field='key', **named)
    named = dict(text_field='n')
    refuses(['row 0', '.text_field=n', 'no string'], 'parquet', path, **named)
    path.write_text('text')
    refuses(['.path=', 'not a Parquet file'], 'parquet', path)
    # A damaged page
    table = pyarrow.table({'text': [f'text {n * n}' for n in range(3000)]})
    parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    second = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    begin = second.data_page_offset
    content[begin : begin + 2000] = b'\xff' * 2000
    path.write_bytes(content)
    words = ['.path=', 'p.parquet', 'damaged after 1000 rows', 'make this file again']
    refuses(words, 'parquet', path)


# ---- Remote files


def test_files_through_tensorflow_as_on_gs(tmp_path):
    """The same code reads `ram://` of TensorFlow and `gs://`."""
    gfile = files.import_tensorflow().io.gfile
    gfile.makedirs('ram://bucket/data/sub')
    for name, text in (('a.txt', 'one'), ('sub/b.txt', 'two'), ('c.csv', 'no')):
        with gfile.GFile(f'ram://bucket/data/{name}', 'w') as file:
            file.write(text)
    expected = [('a.txt', 'one'), ('sub/b.txt', 'two')]
    assert documents('text', 'ram://bucket/data') == expected
    assert documents('text', 'ram://bucket/data/*.txt') == [('a.txt#0', 'one')]
    refuses(['.path=', 'no such file'], 'text', 'ram://bucket/none.txt')
    # For an unknown scheme, TensorFlow raises an error that is not an OSError.
    refuses(['.path=none://a', 'not implemented', 'read'], 'text', 'none://a')
    refuses(['.path=none://a', 'not implemented', 'read'], 'tfds', 'none://a')
    gone = files.File('ram://bucket/none.txt', 'none.txt', 3)
    with pytest.raises(UserError, match='mine=ram://bucket/none.txt: .*readable file'):
        next(files.read_lines(gone, 'mine'))

    parquet.write_table(pyarrow.table({'text': ['x', 'y']}), tmp_path / 'p.parquet')
    gfile.copy(str(tmp_path / 'p.parquet'), 'ram://bucket/p.parquet')
    rows = [('p.parquet#0', 'x'), ('p.parquet#1', 'y')]
    assert documents('parquet', 'ram://bucket/p.parquet') == rows
