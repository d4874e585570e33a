"""Conversations are compared, listed and left out as documents are."""

import json

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import conversations

QUESTION = (
    'Which wide rivers of this country flow past large cities, and reach no lake?'
)


def ask(question, **fields):
    reply = f'I do not know, and nobody has told me about: {question}'
    messages = [('user', question), ('assistant', reply)]
    return dict(fields, messages=[dict(role=r, content=text) for r, text in messages])


@pytest.fixture
def config(tmp_path):
    records = [ask(f'What is {n}?', terms='MIT') for n in range(8)]
    records += [ask(QUESTION, terms='MIT'), ask(QUESTION.upper(), terms='mit')]
    records += [ask('Is it blue?', terms='GPL-3.0')]
    path = tmp_path / 'own.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    config = common.base()
    source = common.source('chat', str(path), licence_field='terms')
    config.dialogue = common.dialogue_section(own=source)
    config.data.near_duplicate_similarity = 0.7
    return config


def write(config, tmp_path, *steps):
    """(skipped, ids and matches of removed.jsonl)."""
    folder = tmp_path / 'made'
    folder.mkdir(exist_ok=True)
    config.dialogue.sources.own.clean = steps
    sources = conversations.write_conversations(config, tmp_path, folder)
    removed = list(storage.read_jsonl(folder / 'removed.jsonl'))
    assert 'c4_repeated_spans' not in sources['own']['steps']  # it does not run
    return sources['own']['skipped'], {line['id']: line['match'] for line in removed}


def test_near_duplicates(config, tmp_path):
    skipped, removed = write(config, tmp_path, 'drop_near_duplicates')
    assert skipped == {'drop_near_duplicates': 1}
    assert removed == {'own/own.jsonl#10': 'own/own.jsonl#9'}


def test_contaminated_conversations(config, tmp_path, capsys):
    path = tmp_path / 'tasks.jsonl'
    path.write_text(json.dumps(dict(prompt=QUESTION, level='hard')))
    config.data.evaluation_sets = (str(path),)
    steps = 'decontaminate', 'remove_stop_words', 'c4_repeated_spans'
    skipped, removed = write(config, tmp_path, *steps)
    assert skipped == {'decontaminate': 2}
    assert {*removed.values()} == {'tasks.jsonl:1'}
    assert not capsys.readouterr().out
    write(config, tmp_path, 'drop_near_duplicates')
    assert 'dialogue.sources.own: may have texts of data.evaluation_sets' in (
        capsys.readouterr().out
    )


def test_licences(config, tmp_path):
    config.data.licences = ('MIT',)
    skipped, _ = write(config, tmp_path, 'drop_near_duplicates')
    assert skipped == dict(drop_near_duplicates=1, other_licence=1)
    config.dialogue.sources.own.licence_field = ''
    with pytest.raises(UserError, match=r'dialogue\.sources\.own\.licence is empty'):
        write(config, tmp_path)
