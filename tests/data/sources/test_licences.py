"""data.licences: what is left out, and sources that state no licence."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import documents

LICENCES = ['MIT', 'mit ', 'GPL-3.0', None, 'CC-BY-4.0', '']


@pytest.fixture(params=['jsonl', 'parquet', 'chat'])
def config(request, tmp_path):
    records = [
        dict(id=str(n), text=f'document {n}', terms=licence)
        for n, licence in enumerate(LICENCES)
    ]
    for record in records:
        if request.param == 'chat':
            record['messages'] = [dict(role='user', content=record.pop('text'))]
    path = tmp_path / f'own.{request.param}'
    if request.param == 'parquet':
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    config = common.base()
    source = common.source(request.param, str(path), licence_field='terms')
    config.data.sources = dict(own=source)
    return config


def kept_ids(workdir):
    lines = [
        line
        for split in ('train', 'validation')
        for line in storage.read_jsonl(workdir / f'documents/{split}.jsonl')
    ]
    return {line['id'].removeprefix('own/') for line in lines}


def test_licences_of_records(config, tmp_path):
    config.data.clean = ()
    config.data.licences = ('mit', 'CC-BY-4.0')
    manifest = documents.build_documents(config, tmp_path / 'run')
    assert kept_ids(tmp_path / 'run') == {'0', '1', '4'}
    own = manifest['sources']['own']
    assert own['read']['documents'] == 6 and own['read']['other_licence'] == 3
    read = {'': 2, 'CC-BY-4.0': 1, 'GPL-3.0': 1, 'MIT': 1, 'mit': 1}
    assert own['licences'] == read
    assert "data.licences=['mit', 'CC-BY-4.0'] left out 3 of 6 documents of own" in (
        documents.DOCUMENTS.details(manifest)
    )
    config.data.sources.own.licence = 'Mit'  # of the records that state none
    documents.build_documents(config, tmp_path / 'two')
    assert kept_ids(tmp_path / 'two') == {'0', '1', '3', '4', '5'}
    config.data.licences = ()
    documents.build_documents(config, tmp_path / 'all')
    assert kept_ids(tmp_path / 'all') == {'0', '1', '2', '3', '4', '5'}


def test_errors(config, tmp_path):
    def refuses(pattern, **fields):
        config.data.sources.own.update(fields)
        with pytest.raises(UserError, match=pattern):
            documents.build_documents(config, tmp_path / 'run')

    config.data.licences = ('BSD',)
    refuses(r"data\.licences=\['BSD'\]: allows none of the 6 documents")
    refuses(r'own\.licence_field=colour', licence_field='colour')
    refuses(r'own\.licence is empty, and data\.licences .* BSD', licence_field='')
