import errno
import os

import pytest

from gptjax.core import artifact, storage
from gptjax.core.console import UserError


def make(folder, settings):
    with artifact.draft(folder) as path:
        storage.write_text(path / 'result', 'whole')
        storage.write_json(
            path / 'manifest.json',
            {'inputs': storage.fingerprint(settings), 'settings': settings},
        )


def test_finished_is_what_the_same_settings_made(tmp_path):
    folder = tmp_path / 'prepared'
    assert artifact.finished(folder, {'data.context': 64}) is None
    make(folder, {'data.context': 64})
    assert artifact.finished(folder, {'data.context': 64})['settings']
    with pytest.raises(UserError) as info:
        artifact.finished(folder, {'data.context': 128, 'data.new': 1})
    assert str(info.value) == (
        f'{folder} was made with another config (data.context: 64 there, 128 here; '
        f'data.new: None there, 1 here): use another --workdir, or delete {folder}'
    )


def test_a_hash_is_shortened_in_the_message(tmp_path):
    make(tmp_path / 'tokenizer', {'documents': 'a' * 64})
    with pytest.raises(UserError, match='documents: aaaaaaaaaaaa… there, bbb… here'):
        artifact.finished(tmp_path / 'tokenizer', {'documents': 'bbb…'})


def test_draft_is_all_or_nothing(tmp_path):
    folder = tmp_path / 'prepared'
    with pytest.raises(RuntimeError), artifact.draft(folder) as path:
        storage.write_text(path / 'result', 'half')
        raise RuntimeError
    assert not folder.exists()
    folder.mkdir()
    storage.write_text(folder / 'left over', '')
    make(folder, {})
    assert sorted(p.name for p in folder.iterdir()) == ['manifest.json', 'result']
    assert [p.name for p in tmp_path.iterdir()] == ['prepared']


def test_require_names_the_stage(tmp_path):
    with pytest.raises(UserError, match='prepared is not there: run the stage `prep`'):
        artifact.require(tmp_path / 'prepared', 'prep')


@pytest.mark.parametrize('content', ('{"inputs": "a', '[]', ''))
def test_a_broken_manifest_is_one_clear_error(content, tmp_path):
    folder = tmp_path / 'documents'
    make(folder, {})
    (folder / 'manifest.json').write_text(content)
    for read in (
        lambda: artifact.finished(folder, {}),
        lambda: artifact.require(folder, 'data'),
    ):
        with pytest.raises(UserError, match=r'manifest\.json is damaged .*: delete '):
            read()


def test_a_missing_file_of_a_finished_stage_is_one_clear_error(tmp_path):
    folder = tmp_path / 'documents'
    make(folder, {})
    assert artifact.finished(folder, {}, ['result'])
    (folder / 'result').unlink()
    with pytest.raises(UserError, match='documents/result is missing: delete '):
        artifact.finished(folder, {}, ['result'])


def test_a_manifest_that_lacks_what_made_it_is_one_clear_error(tmp_path):
    folder = tmp_path / 'documents'
    make(folder, {})
    (folder / 'manifest.json').write_text('{"inputs": "a"}')
    with pytest.raises(UserError, match=r'manifest\.json is damaged .something is'):
        artifact.finished(folder, {})


@pytest.mark.parametrize('code', [errno.EMFILE, errno.ENOTSUP])
def test_a_mount_that_renames_no_folder_is_one_clear_error(code, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(code, os.strerror(code), source, None, target)

    replace = os.replace
    monkeypatch.setattr(
        os, 'replace', lambda a, b: (refuse if a.is_dir() else replace)(a, b)
    )
    with pytest.raises(UserError, match='tokenizer: .* --workdir .*rename-dir-limit='):
        make(tmp_path / 'tokenizer', {})


def test_too_many_open_files_are_no_rename():
    error = OSError(errno.EMFILE, 'Too many open files', 'a')
    with pytest.raises(OSError, match='open files'), artifact.renaming('folder'):
        raise error
