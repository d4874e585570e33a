"""The page of the data: its counts, its samples, its bounds, and escaping."""

import json
import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from gptjax.core import storage
from gptjax.data import documents
from gptjax.data.sources import record_fields
from gptjax.eval.report import data_report, data_survey
from gptjax.eval.report.text_difference import SHOWN, mark_difference
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from tests import runs
from tests.eval.report.test_run_report import EVIL, Balance, text_of
from tests.tokenizer.made_tokenizers import byte_level, write_folder

WORDS = 'the cat sat on a mat and then it ran off to see what the dog had done'.split()


@pytest.fixture
def config(tmp_path):
    """A source of 40 lines with links and speakers, and one of a tiny text."""
    draw = random.Random(0)
    lines = [
        dict(
            id=f'{n}',
            text=' '.join(draw.choices(WORDS, k=30)),
            url=f'https://www.a{n % 2}.org/{n}',
        )
        for n in range(40)
    ]
    lines[1]['text'] = 'short'
    lines[2]['text'] += f'  {EVIL} write to ann@b.org'
    lines[2]['url'] = EVIL
    lines[3]['text'] = lines[4]['text'].upper()
    lines[5]['text'] += ' see http://b.net/x and https://www.b.net'
    path = tmp_path / 'lines.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (tmp_path / 'tiny.txt').write_text('One document, and a tiny one.')
    config = common.base()
    config.data.sources = dict(
        lines=common.source('jsonl', str(path), licence='CC0'),
        tiny=common.source('text', str(tmp_path / 'tiny.txt')),
    )
    config.data.clean = tuple(s for s in config.data.clean if s != 'html_to_text')
    return config


def page_of(config, workdir):
    page = data_report.write_data_report(config, workdir).read_text(encoding='utf-8')
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return page


def test_the_page_has_the_counts_and_samples_and_changes_nothing(config, tmp_path):
    workdir = tmp_path / 'run'
    documents.build_documents(config, workdir)
    before = {p: p.read_bytes() for p in (workdir / 'documents').iterdir()}
    page = page_of(config, workdir)
    assert before == {p: p.read_bytes() for p in (workdir / 'documents').iterdir()}
    assert page == page_of(config, workdir)
    assert '<script' not in page and not re.search(r'(src|href)=|url\(|@import', page)
    text = text_of(page)
    assert '39 of 41 documents' in text
    for words in (
        'lines CC0'.split(),
        ['mask emails 1 –'],
        ['drop short – 1 5'],
        ['drop duplicates – 1'],
        ['a0.org 19', 'a1.org 20'],  # a record's url
        ['b.net 2'],  # of links in the text
        ['1 dropped by data.min_characters=16'],
        ['run python -m gptjax tokenizer'],
        ['the sources again: all of them'],
        ['all, by kept documents en'],
        ['Median characters as kept: lines ', ', tiny 29.'],
    ):
        assert all(word in text for word in words), words
    assert '<del>ann@b.org</del>' in page.replace('</del><del>', '')
    assert '<ins>[email]</ins>' in page.replace('</ins><ins>', '')


def test_only_so_much_is_read(config, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    documents.build_documents(config, workdir)
    monkeypatch.setattr(data_survey, 'CHARACTERS', 600)
    page = text_of(page_of(config, workdir))
    assert 'the first 600 characters' in page and 'tiny 1 documents (all)' in page
    assert re.search(r'lines [34] documents,', page)
    assert 'a document that was not read again counts as kept' in page
    assert '39 of 41 documents' in page  # the counts are of all


def test_what_comparisons_removed_is_shown(config, tmp_path):
    workdir = tmp_path / 'run'
    documents.build_documents(config, workdir)
    line = dict(id='lines/7', source='lines', step='drop_near_duplicates')
    line.update(match='tiny/tiny.txt#0', similarity=0.876, text=EVIL)
    path = workdir / 'documents' / 'removed.jsonl'
    path.write_text(json.dumps(line) + '\n')
    page = page_of(config, workdir)
    assert '<script' not in page
    assert 'lines/7, drop near duplicates' in text_of(page)
    assert 'tiny/tiny.txt#0' in page and 'similarity 0.88' in text_of(page)


def test_duplicates_within_and_across_sources(config, tmp_path):
    workdir, draw = tmp_path / 'run', random.Random(1)
    text = ' '.join(draw.choices(WORDS, k=200))
    texts = ['One document,  and a tiny one.', text, text.upper(), f'{text} end']
    texts += [f'Another line {n} of its own, {n}.' for n in range(40)]
    lines = ''.join(json.dumps(dict(text=text)) + '\n' for text in texts)
    (tmp_path / 'web.jsonl').write_text(lines)
    more = [f'{text} and', 'Another line 1 of its own, 1.', 'Something else here.']
    lines = ''.join(json.dumps(dict(text=text)) + '\n' for text in more)
    (tmp_path / 'zoo.jsonl').write_text(lines)
    for name in ('web', 'zoo'):
        path = str(tmp_path / f'{name}.jsonl')
        config.data.sources[name] = common.source('jsonl', path, licence='CC0')
    config.data.clean = ('drop_duplicates', 'drop_near_duplicates')
    documents.build_documents(config, workdir)
    page = text_of(page_of(config, workdir))
    # sources: lines, tiny, web, zoo
    assert 'drop duplicates 1 – 2 1 … of the same source 1 – 1 –' in page
    assert '… of another source – – 1 1' in page
    near = page.partition('drop near duplicates')[2]
    assert near.startswith(' – – 1 1 … of the same source – – 1 –'), near[:99]


def test_documents_of_other_licences_are_not_counted_as_read(config, tmp_path):
    config.data.licences = ('CC0',)
    config.data.sources = dict(own=config.data.sources.lines)
    path = tmp_path / 'lines.jsonl'
    lines = [dict(line, of='CC0') for line in storage.read_jsonl(path)]
    for line in lines[10:15]:
        line['of'] = 'other'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    config.data.sources.own.licence_field = 'of'
    documents.build_documents(config, tmp_path / 'run')
    page = text_of(page_of(config, tmp_path / 'run'))
    assert ' of 35 documents' in page and 'all documents, without 5 of other' in page


def test_tokens_of_an_imported_tokenizer(config, tmp_path):
    workdir = tmp_path / 'run'
    documents.build_documents(config, workdir)
    size = write_folder(tmp_path / 'hf', byte_level())
    import_tokenizer(tmp_path / 'hf', workdir / 'tokenizer', size)
    page = text_of(page_of(config, workdir))
    assert f'tokens used of {size}' in page and 'no tokenizer' not in page


def test_report_goes_without_a_step_and_needs_no_config(config, tmp_path, capsys):
    documents.build_documents(config, tmp_path / 'run')
    words = ('data', '--workdir', tmp_path / 'run', '--report', '--step=0')
    assert runs.gptjax(*words) == 2
    assert 'error: --report: leave out --step' in capsys.readouterr().err


def test_samples_depend_on_the_keys_alone():
    keys = [f'{n}' for n in range(100)]
    samples = []
    for order in (keys, keys[::-1]):
        sample = data_survey.HashSample(5)
        for key in order:
            sample.add(lambda key=key: key, key)
        samples.append(sample.values())
    assert samples[0] == samples[1] and len({*samples[0]}) == 5
    assert samples[0] != keys[:5]


@given(st.text(alphabet='ab c.\n', max_size=60), st.text(alphabet='ab .', max_size=60))
def test_what_is_not_marked_is_in_both(before, after):
    marked = mark_difference(before, after)
    alike = [''.join(p.text for p in parts if not p.differs) for parts in marked]
    assert alike[0] == alike[1]
    for text, parts in zip((before, after), marked, strict=True):
        shown = ''.join(part.text for part in parts).removeprefix('…')
        assert text.endswith(shown.replace('↵', '').replace('·', ' '))


def test_the_first_change_of_a_long_text_is_shown():
    text = 'word ' * 10_000
    for place in (0, 1_000, 40_000):
        changed = f'{text[:place]}<changed> {text[place:]}'
        before, after = mark_difference(text, changed)
        assert ''.join(p.text for p in after if p.differs).strip('·') == '<changed>'
        for parts in (before, after):
            assert len(''.join(p.text for p in parts)) <= SHOWN + 2
            assert parts[-1].text == '…'


@pytest.mark.parametrize('one, other', [('a', 'b'), ('!', '?'), ('a b', 'c b')])
def test_the_comparison_takes_a_bounded_time(one, other):
    begun = time.process_time()
    mark_difference(f'{one} ' * 2000, f'{other} ' * 2000)
    assert time.process_time() - begun < 1


def test_invisible_characters_are_named():
    before, after = mark_difference('a\u200bb\u202e \0', 'ab\u202e ')
    assert ''.join(p.text for p in before) == 'a⟨U+200B⟩b⟨U+202E⟩ ⟨U+0000⟩'
    assert ''.join(p.text for p in after) == 'ab⟨U+202E⟩ '


def test_fields_of_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [dict(text='a', url='http://x.org/1', n=1), dict(text='b', url=None, n=2)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
    lines = [dict(messages=[dict(role='user', content='Hi')]), dict(text='b')]
    path = tmp_path / 'a.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    read = lambda kind, path: list(
        record_fields.read_fields(
            'a', common.source(kind, str(path)), tmp_path, ('url', 'messages')
        )
    )
    rows = [dict(url='http://x.org/1'), {}]
    assert read('parquet', tmp_path / 'a.parquet') == rows
    assert read('jsonl', path) == [dict(messages=lines[0]['messages']), {}]
    assert data_survey.count_values([*rows, lines[0], dict(categories=['a', 'a'])]) == {
        'url': {'x.org': 1},
        'messages.role': {'user': 1},
        'categories': {'a': 2},
    }
