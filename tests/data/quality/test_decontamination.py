"""Decontamination: n-grams of any form of evaluation set, and bad sets."""

import json

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import documents
from gptjax.data.quality.decontamination import find_ngram, read_evaluation_sets

WORDS = [f'word{n}' for n in range(20)]
BEFORE, AFTER = 'It was said: ', ' and that was all.'


def write_lines(path, *records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path)


def read_sets(*paths, n=13):
    data = common.base().data
    data.evaluation_sets, data.decontaminate_ngram = paths, n
    return read_evaluation_sets(data)


@pytest.mark.parametrize('n', [5, 13])
def test_n_words_in_a_row_are_found_and_fewer_are_not(tmp_path, n):
    path = write_lines(tmp_path / 'tasks.jsonl', dict(text=' '.join(WORDS)))
    ngrams = read_sets(path, n=n)
    text = ', '.join(WORDS[3 : 3 + n]).upper()
    found = find_ngram(BEFORE + text + AFTER, ngrams)
    assert found == (' '.join(WORDS[3 : 3 + n]), 'tasks.jsonl:1')
    fewer = ' '.join(WORDS[3 : 2 + n])
    assert find_ngram(BEFORE + fewer + AFTER, ngrams) is None


def test_forms_of_evaluation_sets(tmp_path):
    half, rest = ' '.join(WORDS[:7]), ' '.join(WORDS[7:14])
    text = f'{half} {rest}'
    message = dict(role='assistant', content=[dict(type='text', text=rest)])
    records = [
        dict(prompt=half, references=['no', rest]),
        dict(prompt=half, choices=['no', rest], answer=1),
        dict(prompt=[dict(role='user', content=half)], references=[rest]),
        dict(messages=[dict(role='user', content=half), message]),
        dict(question=half, answer=rest),
        dict(text=text),
        dict(context=text, question='who?', answers=dict(text=['no'], start=[1])),
        dict(passage=text, question='is it?', answer=True),
        dict(question=half, solution=rest),
        dict(question='why?', context=dict(title=['no'], sentences=[[half, rest]])),
    ]
    for record in records:
        path = write_lines(tmp_path / 'one.jsonl', record)
        assert find_ngram(text, read_sets(path)), record
        assert find_ngram(BEFORE + half, read_sets(path)) is None
    (tmp_path / 'book.txt').write_text(f'{half}\n{rest}\n')
    (tmp_path / 'one.jsonl').write_text('{"text": "no"}')
    assert find_ngram(text, read_sets(str(tmp_path)))[1] == 'book.txt'  # a folder


def test_labels_ids_and_links_are_no_examples(tmp_path):
    text, link = ' '.join(WORDS[:8]), 'https://' + '/'.join(WORDS[::-1])
    record = dict(text=text, label='positive', doc_id=' '.join(WORDS[8:]), page=link)
    ngrams = read_sets(write_lines(tmp_path / 'a.jsonl', record))
    assert find_ngram(BEFORE + text + AFTER, ngrams)
    assert find_ngram(f'{BEFORE} positive {link} {record["doc_id"]}', ngrams) is None


def test_examples_are_found_in_documents_that_steps_changed(config, tmp_path):
    mail = 'Ask for the papers of the house: write to ann@river.org or bob@river.org'
    lines = [dict(id=str(n), text=f'Plain {n}') for n in range(9)]
    write_lines(tmp_path / 'own.jsonl', *lines, dict(id='mail', text=mail))
    config.data.evaluation_sets = (write_lines(tmp_path / 'e.jsonl', dict(text=mail)),)
    config.data.clean = ('mask_emails', 'remove_stop_words', 'decontaminate')
    manifest = documents.build_documents(config, tmp_path / 'run')
    assert manifest['sources']['own']['kept']['documents'] == 9
    write_lines(tmp_path / 'e.jsonl', dict(text=mail.replace('river', 'liver')))
    with pytest.raises(UserError, match=r'e\.jsonl: .* was made from other words'):
        documents.build_documents(config, tmp_path / 'run')


def test_short_examples_are_compared_whole(tmp_path):
    eight, seven = ' '.join(WORDS[:8]), ' '.join(WORDS[10:17])
    path = write_lines(tmp_path / 'a.jsonl', dict(text=eight), dict(text=seven))
    ngrams = read_sets(path)
    assert find_ngram(BEFORE + eight + AFTER, ngrams)
    assert find_ngram(BEFORE + seven + AFTER, ngrams) is None
    assert find_ngram(seven.upper() + '!', ngrams) == (seven, 'a.jsonl:2')


@pytest.fixture
def config(tmp_path):
    texts = [f'This is document {n}, which says {n * n}.' for n in range(10)]
    texts[3] = BEFORE + ' '.join(WORDS[:13]) + AFTER
    texts[4] = BEFORE + ' '.join(WORDS[:12]) + AFTER
    lines = [dict(id=str(n), text=text) for n, text in enumerate(texts)]
    path = write_lines(tmp_path / 'own.jsonl', *lines)
    config = common.base()
    config.data.sources = dict(own=common.source('jsonl', path))
    config.data.clean = ('decontaminate',)
    sets = write_lines(tmp_path / 'tasks.jsonl', dict(text=' '.join(WORDS)))
    config.data.evaluation_sets = (sets,)
    return config


def test_contaminated_documents_are_dropped_and_listed(config, tmp_path):
    manifest = documents.build_documents(config, tmp_path / 'run')
    assert manifest['sources']['own']['kept']['documents'] == 9
    (line,) = storage.read_jsonl(tmp_path / 'run/documents/removed.jsonl')
    text = BEFORE + ' '.join(WORDS[:13]) + AFTER
    assert line == dict(
        id='own/3',
        source='own',
        step='decontaminate',
        match='tasks.jsonl:1',
        ngram=' '.join(WORDS[:13]),
        text=text[:200],
    )
    assert 'decontaminate of data.clean left out 1 of 10 documents of own' in (
        documents.DOCUMENTS.details(manifest)
    )
    write_lines(tmp_path / 'tasks.jsonl', dict(text='another'))
    with pytest.raises(UserError, match=r'evaluation_sets=.*tasks\.jsonl: .* was made'):
        documents.build_documents(config, tmp_path / 'run')


def test_bad_sets_are_refused_before_anything_is_read(config, tmp_path):
    config.data.sources.own.path = 'missing'  # would be another error

    def refuses(pattern, *sets):
        config.data.evaluation_sets = sets
        with pytest.raises(UserError, match=pattern):
            documents.build_documents(config, tmp_path / 'run')
        assert not (tmp_path / 'run' / 'documents').exists()

    refuses(r"'decontaminate' needs data\.evaluation_sets")
    refuses(r'data\.evaluation_sets=.*none\.jsonl: no such file', 'none.jsonl')
    empty = tmp_path / 'empty.jsonl'
    empty.write_text('')
    refuses(r'data\.evaluation_sets=.*empty\.jsonl: it has no words', str(empty))
    other = write_lines(tmp_path / 'other.jsonl', dict(id='x', label=1))
    refuses(r"other\.jsonl: line 1 has no field with a text.*, it has 'id'", other)
    config.data.clean = ()
    refuses(r"evaluation_sets=.*no source has the step 'decontaminate'", other)
