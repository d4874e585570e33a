"""An artifact is made once, and it is complete or absent."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from gptjax import open_run
from gptjax.core import artifact, storage
from gptjax.core.console import UserError


def build(folder, inputs, **options):
    """Makes a folder with a file 'result' that has `inputs`; returns its manifest."""

    def make(folder):
        assert not [*folder.iterdir()]
        storage.write_json(folder / 'part' / 'result', inputs)
        return {'rows': 3}

    return artifact.build(folder, inputs, make, **options)


def test_made_once_by_the_same_inputs(tmp_path):
    folder = tmp_path / 'prepared'
    inputs = {'data.context': 64, 'data.clean': ('a', 'b')}
    made = build(folder, inputs)
    assert made == {
        'inputs': storage.fingerprint(inputs),
        'settings': {'data.context': 64, 'data.clean': ['a', 'b']},
        'rows': 3,
    }
    changed = (folder / 'manifest.json').stat().st_mtime_ns
    checked = []
    again = dict(needs=['part/result'], check=lambda *args: checked.append(args))
    assert build(folder, inputs, **again) == made
    assert (folder / 'manifest.json').stat().st_mtime_ns == changed
    assert checked == [(made, folder)]


def test_whether_a_folder_is_unfinished(tmp_path):
    folder, states = tmp_path / 'prepared', []

    def make(folder):
        states.append(artifact.is_unfinished(folder))
        raise Killed

    with pytest.raises(Killed):
        artifact.build(folder, {}, make)
    assert states == [True] and artifact.is_unfinished(folder)
    build(folder, {})
    assert not artifact.is_unfinished(folder)
    assert [path.name for path in tmp_path.iterdir()] == ['prepared']


def test_other_inputs_are_refused_by_name(tmp_path):
    folder = tmp_path / 'prepared'
    build(folder, {'data.context': 64, 'documents': 'a' * 64})
    with pytest.raises(UserError) as info:
        build(folder, {'data.context': 128, 'data.new': 1, 'documents': 'bbb…'})
    assert str(info.value) == (
        f'{folder} was made with another config (data.context: 64 there, 128 here; '
        'data.new: None there, 1 here; documents: aaaaaaaaaaaa… there, bbb… here): '
        f'use another --workdir, or delete {folder}'
    )
    assert storage.read_json(folder / 'part' / 'result')['data.context'] == 64


class Killed(BaseException):
    """Like a signal: no cleanup runs."""


@pytest.mark.parametrize('error', (Killed, RuntimeError))
def test_what_was_not_finished_is_absent_and_made_anew(error, tmp_path):
    folder = tmp_path / 'prepared'

    def fail(folder):
        storage.write_text(folder / 'deep' / 'half', 'hal')
        raise error

    with pytest.raises(error):
        artifact.build(folder, {}, fail)
    assert folder.exists() == (error is Killed)
    assert artifact.find_manifest(folder) is None
    with pytest.raises(UserError, match='prepared is not there: run the stage `prep`'):
        artifact.require(folder, 'prep')
    build(folder, {})
    assert sorted(path.name for path in folder.iterdir()) == ['manifest.json', 'part']
    assert [path.name for path in tmp_path.iterdir()] == ['prepared']
    assert artifact.require(folder, 'prep')['rows'] == 3


@pytest.mark.parametrize('content', ('{"inputs": "a', '[]', '', b'\xff'))
def test_a_broken_manifest_counts_as_absent(content, tmp_path, capsys):
    folder = tmp_path / 'documents'
    made = build(folder, {})
    content = content if isinstance(content, bytes) else content.encode()
    (folder / 'manifest.json').write_bytes(content)
    with pytest.raises(UserError, match='documents is not there: run .* `data`'):
        artifact.require(folder, 'data')
    assert build(folder, {}) == made
    assert 'manifest.json is damaged: building' in capsys.readouterr().out


def test_a_manifest_that_does_not_say_what_made_it_is_refused(tmp_path):
    folder = tmp_path / 'documents'
    storage.write_json(folder / 'manifest.json', {'rows': 3})
    with pytest.raises(UserError, match=r'another config \(a: None there, 1 here\)'):
        build(folder, {'a': 1})


def test_a_missing_file_is_one_clear_error(tmp_path):
    folder = tmp_path / 'documents'
    build(folder, {})
    (folder / 'part' / 'result').unlink()
    with pytest.raises(UserError, match='documents/part/result is missing: delete '):
        build(folder, {}, needs=['part/result'])


def test_the_screen_says_what_is_made_and_what_is_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(open_run, 'FLAGS', SimpleNamespace(multihost=False))
    item = artifact.Artifact(
        'part',
        lambda config, workdir: build(workdir / 'part', {}),
        lambda manifest: f'part: {manifest["rows"]} rows',
        lambda manifest: 'an audit',
    )
    for expected in (
        'an audit\npart: 3 rows (made in 0 s)\n',
        'part: 3 rows (found)\n',
    ):
        open_run.HELD.close()
        open_run.make_artifacts(ConfigDict(), tmp_path, [item])
        assert capsys.readouterr().out == expected
    open_run.HELD.close()


def test_an_equal_artifact_of_another_run_is_linked(tmp_path):
    runs = [tmp_path / name for name in ('other', 'damaged', 'part', 'first')]
    build(runs[0] / 'prepared', dict(seed=1))
    build(runs[1] / 'prepared', dict(seed=2))
    (runs[1] / 'prepared' / 'manifest.json').write_text('{')
    build(runs[2] / 'prepared', dict(seed=2))
    (runs[2] / 'prepared' / 'part' / 'result').unlink()
    first = build(runs[3] / 'prepared', dict(seed=2))
    checked = []
    with artifact.sharing(lambda: runs):
        again = build(
            tmp_path / 'new' / 'prepared',
            dict(seed=2),
            check=lambda *args: checked.append(args),
            needs=['part/result'],
        )
        build(tmp_path / 'unlike' / 'prepared', dict(seed=3))
    build(tmp_path / 'after' / 'prepared', dict(seed=2))

    def file_of(name):
        return (tmp_path / name / 'prepared' / 'part' / 'result').stat().st_ino

    assert again == first and [*again] == [*first]
    assert checked == [(first, runs[3] / 'prepared')]
    assert file_of('new') == file_of('first')
    names = ('other', 'first', 'unlike', 'after')
    assert len({file_of(name) for name in names}) == 4
