"""What one process makes for all: how the others hear of its end."""

import json

import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.parallel import multihost


@pytest.fixture
def met(monkeypatch, tmp_path):
    """One of two processes; the files in RUN when they meet at the end."""
    found = {}

    def meet(name):
        found.update((path.name, path.read_text()) for path in tmp_path.iterdir())

    monkeypatch.setattr(multihost.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(
        multihost.multihost_utils, 'broadcast_one_to_all', lambda token: 7
    )
    monkeypatch.setattr(multihost, 'any_of', lambda here: here)
    monkeypatch.setattr(multihost, 'meet', meet)
    return found


def fail():
    raise MemoryError('so much')


def test_whatever_stops_the_first_is_told(met, tmp_path):
    with pytest.raises(MemoryError):
        multihost.first_makes(tmp_path, fail)
    told = json.loads(met['.ended-7'])['error']
    assert told == 'the first process: MemoryError: so much'
    assert not [*tmp_path.iterdir()]


def test_a_disk_too_full_to_tell(met, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(storage, 'write_json', full)
    with pytest.raises(MemoryError):
        multihost.first_makes(tmp_path, fail)
    with pytest.raises(OSError, match='No space left'):
        multihost.first_makes(tmp_path, lambda: None)
    assert not met  # which the others see


@pytest.mark.parametrize(
    'ended, told',
    (({'error': 'model.width=0: use'}, 'model.width=0: use'), (None, 'cannot write')),
)
def test_the_others_refuse_what_stopped_the_first(
    met, tmp_path, monkeypatch, ended, told
):
    monkeypatch.setattr(multihost, 'is_first', lambda: False)
    monkeypatch.setattr(multihost, '_appears', lambda path, seconds: True)
    if ended:
        storage.write_text(tmp_path / '.begun-7', '')
        storage.write_json(tmp_path / '.ended-7', ended)
    with pytest.raises(UserError, match=told):
        multihost.first_makes(tmp_path, fail)
