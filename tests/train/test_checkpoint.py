"""Checkpoints: equal bits on every mesh, damaged files, mismatched states."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.core.console import UserError
from gptjax.train import checkpoint
from gptjax.train.checkpoint import Checkpoints, checksums, describe
from gptjax.train.state import TrainState
from tests import helpers

IDENTITY = dict(tokenizer='a1b2')


def state_of(number, mesh=None):
    """A state on `mesh` with random values of the seed `number`."""
    mesh = mesh or helpers.mesh_of()
    rng = np.random.default_rng(number)
    weights = rng.normal(size=(64, 48)).astype(np.float32)
    weights[0, :3] = np.nan, -0.0, np.inf

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return TrainState(
        place(jnp.int32(number)),
        dict(kernel=place(weights, 'fsdp', 'tensor'), scale=place(weights[1])),
        dict(half=place(weights.astype(jnp.bfloat16), None, 'tensor')),
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def write(folder, *steps, losses=None, keep=5, **options):
    checkpoints = Checkpoints(folder, IDENTITY, keep=keep, **options)
    for step in steps:
        loss = losses[step] if losses else None
        checkpoints.save(step, state_of(step), dict(at=step), loss)
    checkpoints.close()


def read(folder, wanted=None, step=None, identity=IDENTITY, **options):
    """(state, record, lines reported)."""
    lines = []
    checkpoints = Checkpoints(folder, identity)
    wanted = abstract(state_of(0)) if wanted is None else wanted
    found = checkpoints.restore(wanted, step, lines.append, **options)
    checkpoints.close()
    return (None, None, lines) if found is None else (*found, lines)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with the checkpoints 1 and 2. Copy it; do not change it."""
    folder = tmp_path_factory.mktemp('written') / 'checkpoints'
    write(folder, 1, 2)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'checkpoints')


def test_the_newest_is_restored_bitwise(folder, tmp_path):
    assert read(tmp_path / 'none')[0] is None
    state, record, lines = read(folder)
    assert bits(state) == bits(state_of(2))
    assert record == dict(at=2) and lines == []
    assert bits(read(folder, step=1)[0]) == bits(state_of(1))


@pytest.mark.parametrize(
    'sizes', (dict(fsdp=4, tensor=2), dict(tensor=8), dict(data=2))
)
def test_onto_another_mesh(sizes, folder):
    wanted = state_of(0, helpers.mesh_of(**sizes))
    state, _, lines = read(folder, abstract(wanted))
    assert bits(state) == bits(state_of(2)) and lines == []
    for found, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert found.sharding == expected.sharding


def test_newest_and_best_stay(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: 5.0}
    folder = tmp_path / 'checkpoints'
    write(folder, 1, 2, 3, losses=losses, keep=2, keep_best=1)
    # The next process reads the losses from the checkpoints.
    write(folder, 4, 5, 6, losses=losses, keep=2, keep_best=1)
    checkpoints = Checkpoints(folder, IDENTITY, read_only=True)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    assert bits(checkpoints.restore(abstract(state_of(0)), 2)[0]) == bits(state_of(2))
    without_losses = tmp_path / 'without_losses'
    write(without_losses, 1)
    assert Checkpoints(without_losses, IDENTITY, read_only=True).best_step() is None


def test_state_and_record_may_change_once_save_returns(tmp_path):
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    folder = tmp_path / 'checkpoints'
    checkpoints = Checkpoints(folder, IDENTITY, keep=9)
    for step in range(3):
        record = dict(at=step, inner=dict(at=step))
        state = state_of(step)
        checkpoints.save(step, state, record)
        record['at'] = record['inner']['at'] = -1
        jax.block_until_ready(spoil(state))
    checkpoints.close()
    for step in range(3):
        state, record, _ = read(folder, step=step)
        assert bits(state) == bits(state_of(step))
        assert record == dict(at=step, inner=dict(at=step))


def test_early_stopping_of_older_policy_runs_is_completed(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', IDENTITY)
    old = dict(lowest_loss=0.5, worse=2, skipped=1, memory=[1])
    checkpoints.save(1, state_of(1), old)
    checkpoints.close()
    expected = dict(patience=0, best=0.5, worse=2)
    record = dict(skipped=1, memory=[1], early_stopping=expected)
    assert read(tmp_path / 'checkpoints')[1] == record


def test_a_selection_is_restored_alone(folder):
    part = lambda state: (state.params['scale'], state.step)
    selected, record, lines = read(folder, select=part)
    assert bits(selected) == bits(part(state_of(2)))
    assert record == dict(at=2) and lines == []


# ---- damage


def largest(folder):
    return max(
        (path for path in folder.rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_record(folder):
    path = folder / 'record' / 'metadata'
    path.write_text(path.read_text().replace('"at": 2', '"at": 3'))


def empty_files(folder):
    for path in (folder / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')


DAMAGES = dict(
    array_truncated=lambda folder: truncate(largest(folder)),
    array_deleted=lambda folder: largest(folder).unlink(),
    array_changed=lambda folder: flip(largest(folder)),
    state_deleted=lambda folder: shutil.rmtree(folder / 'state'),
    manifest_deleted=lambda folder: (folder / 'state' / 'manifest.ocdbt').unlink(),
    names_deleted=lambda folder: (folder / 'state' / '_METADATA').unlink(),
    record_deleted=lambda folder: (folder / 'record' / 'metadata').unlink(),
    record_changed=change_record,
    record_truncated=lambda folder: truncate(folder / 'record' / 'metadata'),
    hash_deleted=lambda folder: (folder / 'record/metadata').write_text('{"a": 1}'),
    files_emptied=empty_files,
)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_reported_and_the_checkpoint_before_is_used(damage, folder):
    DAMAGES[damage](folder / '00000002')
    state, record, lines = read(folder)
    assert bits(state) == bits(state_of(1)) and record == dict(at=1)
    assert len(lines) == 1 and '00000002 is damaged: ' in lines[0]
    assert '\n' not in lines[0]
    # The run resumes, and saves the same step again.
    assert (folder / 'damaged-2').is_dir()
    write(folder, 2)
    state, _, lines = read(folder)
    assert bits(state) == bits(state_of(2)) and lines == []


@pytest.mark.parametrize('damage', [name for name in DAMAGES if 'record' in name])
def test_a_damaged_best_checkpoint_is_said_before_another_is_used(
    damage, folder, capsys
):
    DAMAGES[damage](folder / '00000002')
    checkpoints = Checkpoints(folder, {}, read_only=True)
    assert checkpoints.best_step() in (1, None)
    checkpoints.close()
    printed = capsys.readouterr().out
    assert '00000002 is damaged: ' in printed and printed.count('\n') == 1


@pytest.mark.parametrize('options', ({}, dict(select=lambda state: state.params)))
def test_a_changed_array_is_named_if_it_is_read(options, folder):
    flip(largest(folder / '00000002'))
    assert read(folder, select=lambda state: state.params['scale'])[2] == []
    with pytest.raises(UserError, match='00000002 is damaged: move it away'):
        read(folder, step=2)  # it does not read another step instead
    assert (folder / '00000002').is_dir()
    message = 'params/kernel has changed since it was saved'
    assert message in read(folder, **options)[2][0]


def test_when_all_are_damaged_nothing_is_renamed(folder):
    for step in (1, 2):
        truncate(largest(folder / f'{step:08d}'))
    before = sorted(folder.rglob('*'))
    for _ in range(2):
        with pytest.raises(UserError, match='every checkpoint is damaged: move'):
            read(folder)
        assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize(
    'error',
    (
        jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
        MemoryError(),
        PermissionError(13, 'Permission denied'),
        OSError(5, 'Input/output error'),
        ValueError('UNAVAILABLE: the file system does not answer'),
        TypeError('a mistake in the code'),
        KeyError('params/kernel'),
        Exception('something else'),
    ),
    ids=repr,
)
@pytest.mark.parametrize('part', ('_read_state', '_read_record'))
def test_errors_other_than_damage_are_raised(part, error, folder, monkeypatch):
    def broken(*words):
        raise error

    monkeypatch.setattr(Checkpoints, part, broken)
    with pytest.raises(type(error)) as info:
        read(folder)
    assert info.value is error
    assert (folder / '00000002').is_dir()


# ---- what does not match


def test_another_identity_is_refused(tmp_path):
    folder = tmp_path / 'checkpoints'
    saved = dict(tokenizer='a1b2', data='e5f6', context=128)
    checkpoints = Checkpoints(folder, saved)
    checkpoints.save(1, state_of(1), {})
    checkpoints.close()
    for name, value, message in (
        ('tokenizer', 'c3d4', 'other tokenizer .a1b2 there, c3d4 here.: restore the'),
        ('data', '0a1b', 'other data .e5f6 there, 0a1b here.: restore the data'),
        ('context', 64, 'other context .128 there, 64 here.: restore the context'),
    ):
        with pytest.raises(UserError, match=message):
            read(folder, identity={**saved, name: value})
    # Only names that both sides have are compared: a reader of weights has few names,
    # and older checkpoints do not have 'data'.
    for identity in (IDENTITY, dict(saved, more='0a1b')):
        assert bits(read(folder, identity=identity)[0]) == bits(state_of(1))


@pytest.mark.parametrize(
    'change, message',
    (
        (lambda p: p | dict(bias=p['scale']), 'lacks the array params/bias'),
        (lambda p: dict(scale=p['scale']), 'has an extra array params/kernel'),
        (
            lambda p: p | dict(scale=jax.ShapeDtypeStruct((47,), jnp.float32)),
            r'params/scale is float32\[48\], with this config it is float32\[47\]',
        ),
        (
            lambda p: p | dict(scale=jax.ShapeDtypeStruct((48,), jnp.bfloat16)),
            r'params/scale is float32\[48\], with this config it is bfloat16\[48\]',
        ),
    ),
)
def test_arrays_that_do_not_fit_are_named(change, message, folder):
    wanted = abstract(state_of(0))
    wanted = wanted._replace(params=change(wanted.params))
    with pytest.raises(UserError, match=message):
        read(folder, wanted)
    assert bits(read(folder)[0]) == bits(state_of(2))  # no folder was renamed


def test_describe_names_dtypes_and_shapes():
    tree = dict(a=dict(b=jnp.zeros((2, 3), jnp.bfloat16)), c=[jnp.int32(1)])
    assert describe(tree) == {'a/b': 'bfloat16[2,3]', 'c/0': 'int32[]'}


# ---- checksums


def test_a_checksum_by_hand():
    tree = {'a': {'b': jnp.array([[3, 5], [7, -1]], jnp.int32)}}
    expected = (3 * 1 + 5 * 3 + 7 * 5 + (2**32 - 1) * 7) % 2**32
    assert checksums(tree) == {'a/b': expected}


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16', 'int32', 'int8', 'bool'))
def test_a_checksum_changes_with_every_bit(dtype):
    array = (np.arange(40).reshape(8, 5) % 2).astype(jnp.dtype(dtype))
    before = checksums([jnp.asarray(array)])['0']
    rng = np.random.default_rng(0)
    for _ in range(20):
        changed = array.copy()
        raw = changed.reshape(-1).view(np.uint8)
        bit = 0 if dtype == 'bool' else rng.integers(8)
        raw[rng.integers(len(raw))] ^= np.uint8(1 << bit)
        assert checksums([jnp.asarray(changed)])['0'] != before
    swapped = array[::-1].copy()
    swapped[0, 0], swapped[0, 1] = array[0, 1], array[0, 0]
    assert checksums([jnp.asarray(swapped)])['0'] != before


def test_checksums_of_large_arrays_are_the_same(monkeypatch):
    arrays = [
        jax.random.normal(jax.random.key(0), (5, 7, 3), dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    before = checksums(arrays)
    monkeypatch.setattr(checkpoint, 'LARGE_BYTES', 0)
    assert checksums(arrays) == before


def test_checksums_of_nan_and_zero_differ():
    ones = [np.float32(x) for x in (0.0, -0.0, np.nan, -np.nan, 1e-45)]
    found = [checksums([jnp.asarray([x])])['0'] for x in ones]
    assert len(set(found)) == 5


def test_a_checksum_is_the_same_on_every_mesh():
    array = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    expected = checksums([jnp.asarray(array)])
    mesh = helpers.mesh_of(fsdp=2, tensor=4)
    for spec in (('fsdp', 'tensor'), (None, 'tensor'), (('fsdp', 'tensor'),), ()):
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        assert checksums([placed]) == expected
