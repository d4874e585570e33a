"""What the first process does for all, and how the others notice its end."""

import json

import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.parallel import multihost


@pytest.fixture
def files_at_barrier(monkeypatch, tmp_path):
    """Acts as one of two processes; records the files in RUN at the barrier."""
    found = {}

    def barrier(name):
        found.update((path.name, path.read_text()) for path in tmp_path.iterdir())

    monkeypatch.setattr(multihost.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(
        multihost.multihost_utils, 'broadcast_one_to_all', lambda token: 7
    )
    monkeypatch.setattr(multihost, 'any_process', lambda here: here)
    monkeypatch.setattr(multihost, 'barrier', barrier)
    return found


def fail():
    raise MemoryError('so much')


def test_what_stops_the_first_process_is_told_to_the_others(files_at_barrier, tmp_path):
    with pytest.raises(MemoryError):
        multihost.run_on_first_process(tmp_path, fail)
    error = json.loads(files_at_barrier['.ended-7'])['error']
    assert error == 'the first process: MemoryError: so much'
    assert not [*tmp_path.iterdir()]


def test_a_disk_too_full_to_tell(files_at_barrier, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(storage, 'write_json', full)
    with pytest.raises(MemoryError):
        multihost.run_on_first_process(tmp_path, fail)
    with pytest.raises(OSError, match='No space left'):
        multihost.run_on_first_process(tmp_path, lambda: None)
    assert not files_at_barrier  # the others notice that .begun is gone


@pytest.mark.parametrize(
    'ended, message',
    (({'error': 'model.width=0: use'}, 'model.width=0: use'), (None, 'cannot write')),
)
def test_the_others_raise_what_stopped_the_first(
    files_at_barrier, tmp_path, monkeypatch, ended, message
):
    monkeypatch.setattr(multihost, 'is_first_process', lambda: False)
    monkeypatch.setattr(multihost, '_wait_for_file', lambda path, seconds: True)
    if ended:
        storage.write_text(tmp_path / '.begun-7', '')
        storage.write_json(tmp_path / '.ended-7', ended)
    with pytest.raises(UserError, match=message):
        multihost.run_on_first_process(tmp_path, fail)


def test_one_process_runs_it_at_once(tmp_path):
    calls = []
    multihost.run_on_first_process(tmp_path / 'run', lambda: calls.append(1))
    assert calls == [1] and not (tmp_path / 'run').exists()
    assert multihost.is_first_process()
    multihost.barrier('nobody else')


@pytest.mark.parametrize('by_user, error', ((True, UserError), (False, RuntimeError)))
def test_lists_are_joined_or_the_error_of_one_process_ends_all(
    monkeypatch, by_user, error
):
    def act_as_one_of_two(theirs):
        theirs = np.frombuffer(json.dumps(theirs).encode(), np.uint8)

        def gather(ours):
            same = theirs.size if ours.ndim == 0 else np.resize(theirs, ours.size)
            return np.stack([ours, same])

        monkeypatch.setattr(multihost.multihost_utils, 'process_allgather', gather)

    monkeypatch.setattr(multihost.jax, 'process_count', lambda: 2)
    act_as_one_of_two([['b', 'c'], None])
    assert multihost.gather_lists(lambda: ['a']) == ['a', 'b', 'c']
    with pytest.raises(MemoryError):
        multihost.gather_lists(fail)
    act_as_one_of_two([[], [by_user, 'process 1: the reason']])
    with pytest.raises(error, match='process 1: the reason'):
        multihost.gather_lists(lambda: ['a'])
