"""Our TFDS builders and other TFDS datasets, built and read offline."""

import errno
import importlib.metadata
import os
from types import SimpleNamespace

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.sources import open_source, tfds_source


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('datasets')


def open_tfds(path, data_dir, **fields):
    source = common.source('tfds', str(path), **fields)
    return open_source.open_source('mine', source, data_dir)


def read(source):
    return list(source.read(lambda amount: None))


@pytest.mark.slow
def test_chitchat(data_dir):
    import tensorflow_datasets as tfds

    opened = open_tfds('chitchat', data_dir, limit=50)
    assert opened.total == 7168
    assert opened.description['licence'] == 'MIT'
    assert 'Conversational Scaffolding' in opened.description['citation']
    version = importlib.metadata.version('chitchat-dataset')
    assert opened.description['version'] == f'chitchat/{version}'
    documents = read(opened)
    assert len(documents) == len(dict(documents)) == 50

    # Later stages read messages and ratings at random positions.
    table = tfds.data_source('chitchat', data_dir=data_dir, split='train')
    example = table[7]
    assert (example['id'].decode(), example['text'].decode()) == documents[7]
    messages = example['messages']
    assert {len(messages[name]) for name in messages} == {len(messages['text'])}
    assert set(example['ratings']) == {'witty', 'interesting', 'upbeat'}
    assert 0 <= example['ratings']['witty'] <= 10
    turns = [[] for _ in range(messages['turn'][-1] + 1)]
    for text, turn in zip(messages['text'], messages['turn'], strict=True):
        turns[turn].append(text.decode().strip())
    assert example['text'].decode() == '\n\n'.join(map('\n'.join, turns))


def test_chatterbot_by_language(data_dir):
    opened = open_tfds('chatterbot/french', data_dir)
    assert opened.description['licence'] == 'BSD'
    documents = dict(read(opened))
    assert documents['french/greetings#0'] == 'Salut\n\nSalut'
    assert all(identity.startswith('french/') for identity in documents)
    ukrainian = dict(read(open_tfds('chatterbot/ukrainian', data_dir)))
    # 'Хто ти? - Я просто …' is one string in the package
    assert 'Хто ти?\n\nЯ просто штучний інтелект.' in ukrainian.values()


@pytest.mark.slow
def test_chatterbot_is_every_language(data_dir):
    everything = read(open_tfds('chatterbot', data_dir))
    languages = {identity.split('/')[0] for identity, _ in everything}
    assert len(everything) > 7000 and len(languages) >= 28
    french = dict(read(open_tfds('chatterbot/french', data_dir)))
    assert french.items() <= dict(everything).items()


@pytest.mark.slow
def test_errors(data_dir):
    def refuses(pattern, path, **fields):
        with pytest.raises(UserError, match=pattern):
            open_tfds(path, data_dir, **fields)

    refuses(r'mine\.path=chitchatt: .* did you mean chitchat\?', 'chitchatt')
    refuses(r'mine\.path=chatterbot/elvish: .*english, .*french', 'chatterbot/elvish')
    french = 'chatterbot/french'
    refuses(r'mine\.split=test: .* has train', french, split='test')
    refuses(r'mine\.text_field=body: .*categories', french, text_field='body')
    refuses(r'mine\.id_field=key: .*categories', french, id_field='key')
    refuses(r'mine\.path=/no/where: .*dataset_info.json', '/no/where')
    with pytest.raises(UserError, match=r'mine\.text_field=categories: .*no string'):
        read(open_tfds(french, data_dir, text_field='categories'))


@pytest.mark.slow
def test_a_dataset_in_an_older_format_and_a_part_of_a_split(tmp_path, data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder('chatterbot/french', data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.file_format == tfds.core.FileFormat.TFRECORD
    same = read(open_tfds('chatterbot/french', data_dir))
    assert sorted(read(open_tfds(builder.data_path, data_dir))) == sorted(same)
    part = open_tfds('chatterbot/french', data_dir, split='train[:10]')
    assert part.total == 10 and read(part) == same[:10]


BEAM = ModuleNotFoundError("No module named 'apache_beam.io'", name='apache_beam')


@pytest.mark.parametrize(
    'error, words',
    [
        (BEAM, ["No module named 'apache_beam.io'", '`pip install apache-beam`']),
        (AssertionError('Create it\nand get:\n  a.tar'), ['it and get: a.tar: mend']),
        (ConnectionError('no network'), ['ConnectionError: no network', 'source']),
        (OSError('Not enough disk space. Needed: 3'), ['Not enough disk space']),
        (OSError(errno.ENOSPC, 'No space left', '/home/a'), ['No space', '/home/a']),
        (ValueError('x' * 9000), ['xxx…: mend that']),
    ],
)
def test_a_dataset_that_tfds_cannot_make(error, words, data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    def fail():
        raise error

    builder = SimpleNamespace(is_prepared=lambda: False, download_and_prepare=fail)
    monkeypatch.setattr(tfds, 'builder', lambda *path, **options: builder)
    monkeypatch.setattr(tfds_source, 'import_tensorflow', lambda: None)
    with pytest.raises(UserError) as caught:
        open_tfds('c4/en', data_dir)
    message = str(caught.value)
    assert message.startswith('data.sources.mine.path=c4/en: TFDS cannot make it: ')
    assert '\n' not in message and len(message) < 600
    for word in words:
        assert word in message, message


def test_a_builder_where_no_folder_can_be_renamed_or_the_disk_is_full(
    tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    def refuse(source, target):
        raise OSError(errno.EMFILE, 'Too many open files', source, None, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'rename', refuse)
        with pytest.raises(UserError, match=r'cannot rename a folder .*--workdir'):
            open_tfds('chatterbot/french', tmp_path)
    full = 'Not enough disk space. Needed: 0 bytes'
    builder = SimpleNamespace(
        download_and_prepare=lambda: (_ for _ in ()).throw(OSError(full))
    )
    monkeypatch.setattr(tfds, 'builder', lambda *path, **options: builder)
    with pytest.raises(OSError) as caught:
        open_tfds('chatterbot/french', tmp_path / 'datasets')
    assert storage.unwritable(caught.value, tmp_path).endswith(full)  # `main` does this
