import shutil

import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.packed_dataset import PackedDataset


def counts(packed, slots, seed=0):
    """How often each (source, row) is in the slots."""
    choice = packed.choose_training_rows(seed, np.asarray(slots))
    pairs = np.stack([choice.source, choice.row])
    return {tuple(p): n for p, n in zip(*_unique(pairs), strict=True)}


def _unique(pairs):
    values, times = np.unique(pairs, axis=1, return_counts=True)
    return values.T.tolist(), times.tolist()


def test_every_row_once_an_epoch(run):
    packed = PackedDataset(run.prepared, 'train')
    size = packed.num_rows
    for epoch in range(3):
        slots = np.arange(epoch * size, (epoch + 1) * size)
        found = counts(packed, slots)
        assert len(found) == size and set(found.values()) == {1}


def test_epochs_seeds_and_splits_have_their_own_order(run):
    packed = PackedDataset(run.prepared, 'train')
    slots = np.arange(packed.num_rows)
    first = packed.choose_training_rows(0, slots)
    second = packed.choose_training_rows(0, slots + packed.num_rows)
    other = packed.choose_training_rows(1, slots)
    assert set(first.epoch) == {0} and set(second.epoch) == {1}
    for choice in (second, other):
        assert (choice.source == first.source).all()
        assert (choice.row == first.row).mean() < 0.3
    again = PackedDataset(run.prepared, 'train').choose_training_rows(0, slots)
    assert (again.row == first.row).all()


def test_weights_are_exact(new_run):
    packed = PackedDataset(new_run(weights=(0.25, 0.75)).prepared, 'train')
    for begin in (0, 10**9):
        choice = packed.choose_training_rows(0, np.arange(4000) + begin)
        assert np.bincount(choice.source).tolist() == [1000, 3000]
    # each source goes through its rows at its own pace, none left out
    size = packed.sources[0].num_rows
    rows = packed.choose_training_rows(0, np.arange(4 * size))
    assert sorted(rows.row[rows.source == 0]) == list(range(size))


def test_a_pass_has_every_row_once_and_then_none(run):
    packed = PackedDataset(run.prepared, 'validation')
    choice = packed.choose_pass_rows(np.arange(packed.num_rows + 5))
    pairs, times = _unique(np.stack([choice.source, choice.row]))
    assert [tuple(p) for p, n in zip(pairs, times, strict=True) if n > 1] == [(-1, 0)]
    assert len(pairs) == packed.num_rows + 1
    batch = packed.load(choice)
    assert (batch['weights'][-5:] == 0).all() and (batch['segments'][-5:] == 0).all()
    tokens = sum(
        source['predicted_tokens']
        for source in packed.manifest['splits']['validation'].values()
    )
    assert batch['weights'].sum() == tokens


def test_the_documents_of_a_row(run):
    packed = PackedDataset(run.prepared, 'train')
    tokenizer = run.tokenizer
    for index, source in enumerate(packed.sources):
        texts = dict(run.documents['train'][source.name])
        slots = np.arange(packed.num_rows)
        choice = packed.choose_pass_rows(slots)
        batch = packed.load(choice)
        for slot in slots[choice.source == index]:
            names = source.documents(choice.row[slot], packed.context)
            inputs, segments = batch['inputs'][slot], batch['segments'][slot]
            kept = np.unique(segments[batch['weights'][slot] > 0])
            assert len(names) == len(kept)
            for number, name in enumerate(names, 1):
                assert tokenizer.decode(inputs[segments == number]) in texts[name]


def damaged(run, tmp_path):
    return shutil.copytree(run.prepared, tmp_path / 'prepared')


def test_damage_is_named(run, tmp_path):
    folder = damaged(run, tmp_path)
    path = folder / 'train' / 'b' / 'tokens-00000.npy'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r'tokens-00000.npy has .* delete .*prepared'):
        PackedDataset(folder, 'train')
    path.unlink()
    with pytest.raises(UserError, match='tokens-00000.npy is missing'):
        PackedDataset(folder, 'train')
    assert PackedDataset(folder, 'validation').num_rows
    (folder / 'manifest.json').unlink()
    with pytest.raises(UserError, match='prepared is not there: run .* `prepare`'):
        PackedDataset(folder, 'validation')


def test_a_split_without_documents_is_named(run, tmp_path):
    folder = damaged(run, tmp_path)
    manifest = storage.read_json(folder / 'manifest.json')
    manifest['splits']['validation'] = {}
    storage.write_json(folder / 'manifest.json', manifest)
    with pytest.raises(UserError, match='has no documents: .*validation_fraction'):
        PackedDataset(folder, 'validation')
