"""Checkpoints: the same bits back, on any mesh, or a clear word."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.core.console import UserError
from gptjax.train.checkpoint import Checkpoints, checksums, describe
from gptjax.train.state import TrainState
from tests import helpers

IDENTITY = dict(tokenizer='a1b2')


def state_of(number, mesh=None):
    """A state whose values follow from `number`, laid out on `mesh`."""
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
    """A folder with the checkpoints 1 and 2; to be copied."""
    folder = tmp_path_factory.mktemp('written') / 'checkpoints'
    write(folder, 1, 2)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'checkpoints')


def test_no_checkpoint_is_none(tmp_path):
    assert read(tmp_path / 'none')[0] is None


def test_the_newest_comes_back_bitwise(folder):
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
    for found, asked in zip(
        jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert found.sharding == asked.sharding


def test_newest_and_best_stay(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: 5.0}
    folder = tmp_path / 'checkpoints'
    write(folder, 1, 2, 3, losses=losses, keep=2, keep_best=1)
    # Which is best is known to the next process too.
    write(folder, 4, 5, 6, losses=losses, keep=2, keep_best=1)
    checkpoints = Checkpoints(folder, IDENTITY, read_only=True)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    assert bits(checkpoints.restore(abstract(state_of(0)), 2)[0]) == bits(state_of(2))


def test_without_a_loss_there_is_no_best(folder):
    assert Checkpoints(folder, IDENTITY, read_only=True).best_step() is None


def test_state_and_record_may_change_once_save_returns(tmp_path):
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    folder = tmp_path / 'checkpoints'
    checkpoints = Checkpoints(folder, IDENTITY, keep=9)
    for step in range(5):
        record = dict(at=step, inner=dict(at=step))
        state = state_of(step)
        checkpoints.save(step, state, record)
        record['at'] = record['inner']['at'] = -1
        jax.block_until_ready(spoil(state))
    checkpoints.close()
    for step in range(5):
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


def test_a_part_comes_back_alone(folder):
    part = lambda state: (state.params['scale'], state.step)
    found, record, lines = read(folder, select=part)
    assert bits(found) == bits(part(state_of(2)))
    assert record == dict(at=2) and lines == []


# ---- damage


def largest(folder):
    return max(
        (path for path in folder.rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(folder):
    largest(folder).unlink()


def flip(folder):
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_state(folder):
    shutil.rmtree(folder / 'state')


def lose_metadata(folder):
    (folder / 'state' / 'manifest.ocdbt').unlink()


def lose_record(folder):
    (folder / 'record' / 'metadata').unlink()


def change_record(folder):
    path = folder / 'record' / 'metadata'
    path.write_text(path.read_text().replace('"at": 2', '"at": 3'))


def cut_record(folder):
    path = folder / 'record' / 'metadata'
    path.write_text(path.read_text()[:40])


def lose_hash(folder):
    (folder / 'record' / 'metadata').write_text('{"a": 1}')


def lose_names(folder):
    (folder / 'state' / '_METADATA').unlink()


def empty_everything(folder):
    for path in (folder / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')


DAMAGES = (
    *(truncate, delete, flip, lose_state, lose_metadata, lose_names),
    *(lose_record, change_record, cut_record, lose_hash, empty_everything),
)


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_reported_and_the_one_before_used(damage, folder):
    damage(folder / '00000002')
    state, record, lines = read(folder)
    assert bits(state) == bits(state_of(1)) and record == dict(at=1)
    assert len(lines) == 1 and '00000002 is damaged: ' in lines[0]
    assert '\n' not in lines[0]
    # The run goes on, and comes to the same step again.
    assert (folder / 'damaged-2').is_dir()
    write(folder, 2)
    state, _, lines = read(folder)
    assert bits(state) == bits(state_of(2)) and lines == []


@pytest.mark.parametrize('options', ({}, dict(select=lambda state: state.params)))
def test_a_changed_array_is_named(options, folder):
    flip(folder / '00000002')
    message = 'params/kernel has changed since it was saved'
    assert message in read(folder, **options)[2][0]


def test_what_is_not_read_may_have_changed(folder):
    flip(folder / '00000002')
    assert read(folder, select=lambda state: state.params['scale'])[2] == []


def test_when_all_are_damaged_nothing_is_moved(folder):
    for step in (1, 2):
        truncate(folder / f'{step:08d}')
    before = sorted(folder.rglob('*'))
    for _ in range(2):
        with pytest.raises(UserError, match='every checkpoint is damaged: move'):
            read(folder)
        assert sorted(folder.rglob('*')) == before


def test_a_step_that_was_asked_for_has_no_other(folder):
    delete(folder / '00000002')
    with pytest.raises(UserError, match='00000002 is damaged: move it away'):
        read(folder, step=2)
    assert (folder / '00000002').is_dir()


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
def test_what_is_no_damage_is_raised(part, error, folder, monkeypatch):
    def broken(*words):
        raise error

    monkeypatch.setattr(Checkpoints, part, broken)
    with pytest.raises(type(error)) as info:
        read(folder)
    assert info.value is error
    assert (folder / '00000002').is_dir()


# ---- what does not match


def test_another_tokenizer_is_refused(folder):
    message = 'other tokenizer .a1b2 there, c3d4 here.: restore the tokenizer'
    with pytest.raises(UserError, match=message):
        read(folder, identity=dict(tokenizer='c3d4'))


def test_other_data_is_refused_and_what_was_not_told_fits(tmp_path):
    folder = tmp_path / 'checkpoints'
    checkpoints = Checkpoints(folder, dict(IDENTITY, data='e5f6'))
    checkpoints.save(1, state_of(1), {})
    checkpoints.close()
    with pytest.raises(UserError, match='other data .e5f6 there, 0a1b here.: restore'):
        read(folder, identity=dict(IDENTITY, data='0a1b'))
    # To read the weights the tokenizer is enough.
    assert bits(read(folder)[0]) == bits(state_of(1))


def test_what_is_told_may_be_a_number(tmp_path):
    folder = tmp_path / 'checkpoints'
    checkpoints = Checkpoints(folder, dict(IDENTITY, context=128))
    checkpoints.save(1, state_of(1), {})
    checkpoints.close()
    with pytest.raises(UserError, match='other context .128 there, 64 here.'):
        read(folder, identity=dict(IDENTITY, context=64))


def test_a_checkpoint_from_before_data_was_told_goes_on(folder):
    assert bits(read(folder, identity=dict(IDENTITY, data='0a1b'))[0]) == bits(
        state_of(2)
    )


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
def test_what_does_not_match_is_refused_by_name(change, message, folder):
    wanted = abstract(state_of(0))
    wanted = wanted._replace(params=change(wanted.params))
    with pytest.raises(UserError, match=message):
        read(folder, wanted)
    assert bits(read(folder)[0]) == bits(state_of(2))  # nothing was moved


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
