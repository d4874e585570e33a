"""Files are written completely or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from gptjax.core import storage


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'a.json'
    value = {'text': 'naïve ▁ \u2028', 'numbers': [1, 0.1, None]}
    storage.write_json(path, value)
    assert storage.read_json(path) == value
    assert 'naïve' in path.read_text(encoding='utf-8')
    assert [p.name for p in path.parent.iterdir()] == ['a.json']


DAMAGED = (b'', b'\0\0\0\0\0', b'{"a": ', b'3', b'null', b'\xff\xfe{', b'[' * 10**5)


@pytest.mark.parametrize('content', DAMAGED)
def test_a_damaged_file_is_ignored_with_a_word(content, tmp_path, capsys):
    path = tmp_path / 'eval.json'
    assert storage.read_undamaged(path) is None
    assert capsys.readouterr().err == ''
    path.write_bytes(content)
    for kind in (dict, list, dict):
        assert storage.read_undamaged(path, kind) is None
    assert capsys.readouterr().err == f'{path} is damaged: it is ignored\n'
    storage.write_json(path, {'a': 1})
    assert storage.read_undamaged(path) == {'a': 1}


@pytest.mark.parametrize('broken', ('fsync', 'replace'))
def test_a_failed_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    storage.write_text(path, 'old')

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError):
        storage.write_text(path, 'new')
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_hashes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert storage.sha256_of_file(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
    assert storage.fingerprint({'a': 1, 'b': [2]}) == storage.fingerprint(
        {'b': [2], 'a': 1}
    )
    assert storage.fingerprint({'a': 1}) != storage.fingerprint({'a': '1'})


RUN = Path('/runs/a')
FULL = 'No space left on device'


@pytest.mark.parametrize(
    'error, why',
    (
        (OSError(errno.ENOSPC, FULL, '/runs/a/b'), f'/runs/a/b: {FULL}'),
        (OSError(errno.EACCES, 'No right', '/runs/a'), '/runs/a: No right'),
        (OSError(errno.ENOENT, 'No such', '/runs'), '/runs: No such'),
        (OSError(errno.ENOSPC, FULL), FULL),  # an error of writing to an open file
        (ValueError(f'RESOURCE_EXHAUSTED: {FULL}; a'), FULL),
        (OSError('1048576 requested and 4096 written'), FULL),
        (OSError('8 requested and 4 written, or so'), None),
        (ValueError('8 requested and 4 written'), None),
        (OSError(errno.EACCES, 'No right', '/etc/shadow'), None),
        (OSError(errno.EACCES, 'No right', '/runs/b'), None),
        # An error of a socket or a signal.
        (OSError(errno.EPERM, 'Not permitted'), None),
        (OSError(errno.EEXIST, 'File exists', '/tmp/a'), None),
        (OSError(errno.ENOENT, 'No such file', '/runs/a/b'), None),
        (ValueError('out of range'), None),
    ),
)
def test_why_a_place_cannot_be_written_to(error, why):
    assert storage.unwritable(error, RUN) == why
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError('while saving') from cause
    except RuntimeError as raised:
        assert storage.unwritable(raised, RUN) == why


def test_trying_a_place_leaves_nothing_behind(tmp_path):
    storage.try_writing(tmp_path / 'new' / 'a.json')
    assert not [*tmp_path.iterdir()]
    (tmp_path / 'file').write_text('')
    for place in (tmp_path / 'file' / 'a.json', Path('/proc/none/a.json')):
        with pytest.raises(OSError):
            storage.try_writing(place)
