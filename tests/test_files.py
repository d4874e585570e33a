"""Files are written whole or not at all."""

import errno
import hashlib
import os

import pytest

from gptjax import files


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'a.json'
    value = {'text': 'naïve ▁ \u2028', 'numbers': [1, 0.1, None]}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert 'naïve' in path.read_text(encoding='utf-8')
    assert [p.name for p in path.parent.iterdir()] == ['a.json']


@pytest.mark.parametrize('broken', ('fsync', 'replace'))
def test_a_failed_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    files.write_text(path, 'old')

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError):
        files.write_text(path, 'new')
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_hashes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert files.sha256_of_file(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
    assert files.fingerprint({'a': 1, 'b': [2]}) == files.fingerprint(
        {'b': [2], 'a': 1}
    )
    assert files.fingerprint({'a': 1}) != files.fingerprint({'a': '1'})


@pytest.mark.parametrize(
    'error, why',
    (
        (OSError(errno.ENOSPC, 'No space left', 'run/a'), 'run/a: No space left'),
        (OSError(errno.EROFS, 'Read-only file system'), 'Read-only file system'),
        (ValueError('RESOURCE: No space left on device; a'), 'No space left on device'),
        (OSError('1048576 requested and 4096 written'), 'No space left on device'),
        (OSError(errno.ENOENT, 'No such file', 'a'), None),
        (ValueError('out of range'), None),
    ),
)
def test_why_a_place_cannot_be_written_to(error, why):
    assert files.unwritable(error) == why
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError('while saving') from cause
    except RuntimeError as raised:
        assert files.unwritable(raised) == why
