"""Conversations in the forms of the Hub, in JSON Lines, Parquet and Arrow files."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from configs import common
from gptjax.core.console import UserError
from gptjax.data import packed_conversations
from gptjax.data.packed_dataset import PackedDataset

TALKS = [(f'what is the cat {n}?', f'it sat on the mat {n}') for n in range(12)]
SYSTEM = 'see the dog'


def messages(question, reply):
    names = 'role', 'content'
    turns = ('system', SYSTEM), ('user', question), ('assistant', reply)
    return [dict(zip(names, turn, strict=True)) for turn in turns]


def from_value(question, reply):
    names = 'from', 'value'
    turns = ('system', SYSTEM), ('human', question), ('gpt', reply)
    return [dict(zip(names, turn, strict=True)) for turn in turns]


FORMS = {
    'messages': lambda q, a: dict(messages=messages(q, a)),
    'conversations': lambda q, a: dict(conversations=from_value(q, a)),
    'instruction/input/output': lambda q, a: dict(
        instruction=q, input='', output=a, system=SYSTEM
    ),
    'prompt/completion': lambda q, a: dict(prompt=messages(q, a)[:2], completion=a),
}


def with_ids(records):
    return [dict(record, id=f'talk {n}') for n, record in enumerate(records)]


def write_jsonl(folder, records):
    path = folder / 'own.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def write_parquet(folder, records):
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / 'own.parquet')
    return folder / 'own.parquet'


def write_arrow(folder, records):
    """As `Dataset.save_to_disk` writes a folder."""
    (folder / 'own').mkdir()
    table = pyarrow.Table.from_pylist(records)
    path = folder / 'own' / 'data-00000-of-00001.arrow'
    with ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=5)
    for name in ('dataset_info.json', 'state.json'):
        (folder / 'own' / name).write_text('{}')
    return folder / 'own'


def build(run, folder, path, **fields):
    """(tokens, marks, manifest) of the dialogue of a source of conversations."""
    run.copy_tokenizer(folder)
    config = common.base()
    config.data.context = 128
    source = common.source('chat', str(path), **fields)
    config.dialogue = common.dialogue_section(own=source)
    manifest = packed_conversations.build_dialogue(config, folder)
    splits = (PackedDataset(folder / 'dialogue', s) for s in ('train', 'validation'))
    read = [rows.read(rows.choose_pass_rows(np.arange(99))) for rows in splits]
    return [[part[n].tolist() for part in read] for n in range(2)], manifest


@pytest.fixture(scope='module')
def plain(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain')
    records = with_ids(FORMS['messages'](*talk) for talk in TALKS)
    return build(run, folder, write_jsonl(folder, records))[0]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('write', (write_jsonl, write_parquet, write_arrow))
def test_every_form_and_file_gives_the_same_tokens_and_marks(
    run, tmp_path, plain, form, write
):
    path = write(tmp_path, with_ids(FORMS[form](*talk) for talk in TALKS))
    found, manifest = build(run, tmp_path, path)
    assert found == plain
    assert dict(manifest['sources']['own']['forms']) == {form: len(TALKS)}
    details = packed_conversations.DIALOGUE.details(manifest)
    assert f'own: 12 conversations in the form {form}' in details


def test_datasets_reads_what_we_call_its_folders(tmp_path):
    """The library writes such folders, so its own folder is read, too."""
    datasets = pytest.importorskip('datasets')
    from gptjax.data.sources.open_source import list_source_files
    from gptjax.data.sources.record_files import read_records

    records = [FORMS['messages'](*talk) for talk in TALKS]
    made = datasets.Dataset.from_list(records)
    made.save_to_disk(str(tmp_path / 'one'))
    files = list_source_files('chat', str(tmp_path / 'one'), 'path')
    found = [r for _, _, r in read_records('path', files, lambda size: None, '')]
    assert found == records
    split = made.train_test_split(test_size=3, shuffle=False)
    split.save_to_disk(str(tmp_path / 'two'))
    with pytest.raises(UserError, match='the splits test, train: name those of one'):
        list_source_files('chat', str(tmp_path / 'two'), 'path')
    files = list_source_files('chat', str(tmp_path / 'two' / 'train'), 'path')
    found = [r for _, _, r in read_records('path', files, lambda size: None, '')]
    assert found == records[:9]


def test_columns_name_the_fields(run, tmp_path, plain):
    records = [
        dict(q=q, a=a, s=SYSTEM, output='not this', text='nor this') for q, a in TALKS
    ]
    columns = 'instruction=q', 'output=a', 'system=s'
    path = write_jsonl(tmp_path, with_ids(records))
    found, _ = build(run, tmp_path, path, columns=columns)
    assert found == plain


def test_replies_in_a_prompt_are_context(run, tmp_path):
    prompt = [*messages('cat?', 'the dog')[1:], dict(role='user', content='and?')]
    path = write_jsonl(tmp_path, [dict(prompt=prompt, completion='off')] * 4)
    _, manifest = build(run, tmp_path, path)
    counts = manifest['splits']['train']['own']
    assert counts['turns'] == counts['views']


HI = dict(instruction='Hi', output='Hello')


@pytest.mark.parametrize(
    'record, columns, pattern',
    (
        (dict(HI, messages=messages('a', 'b')), (), "both 'messages' and 'output'"),
        (dict(messages=messages('a', 'b'), text='a'), (), "'messages' and 'text'"),
        (dict(text='a'), (), 'has no list "messages", it has \'text\''),
        (HI, ('messages=talk',), "has no field 'talk', which columns calls"),
        (HI, ('output',), 'write OURS=YOURS'),
        (HI, ('answer=output',), 'write OURS=YOURS'),
        (dict(HI, history=[['a', 'b']]), (), 'has the field "history"'),
        (dict(prompt='a', completion='b', label=True), (), 'has the field "label"'),
        (dict(prompt='a', completion=3), (), '"completion" is neither a text nor'),
        (dict(HI, input=3), (), '"input" is no text'),
        (
            dict(conversations=[{'from': 'tool', 'value': 'a'}]),
            (),
            r"messages\[0\].role='tool'",
        ),
    ),
)
def test_what_a_form_cannot_say_is_refused(run, tmp_path, record, columns, pattern):
    path = write_jsonl(tmp_path, [record])
    with pytest.raises(UserError, match=pattern) as error:
        build(run, tmp_path, path, columns=columns)
    assert 'own.jsonl: line 1' in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'dialogue' / 'manifest.json').exists()
