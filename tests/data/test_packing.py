import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptjax.data.packing import Packer, unpack

PAD, BOS, EOS = 0, 1, 2
DOCUMENTS = st.lists(
    st.lists(st.integers(3, 99), min_size=1, max_size=30), min_size=1, max_size=12
)


def pack(documents, context, cuts=()):
    """Packs the documents, which the packer receives in parts that end at `cuts`."""
    packer = Packer(context, PAD, BOS, np.uint16)
    rows = []
    for begin, end in zip([0, *cuts], [*cuts, len(documents)], strict=True):
        rows.append(packer.add([np.array(d, np.int32) for d in documents[begin:end]]))
    rows = np.concatenate([*rows, packer.finish()])
    assert rows.dtype == np.uint16
    assert packer.length == sum(len(d) + 1 for d in documents) + 1
    return rows


def test_the_example_of_the_docstring():
    a, b, c, d, e = range(3, 8)
    rows = pack([[a, b], [c, d, e]], context=4)
    assert rows.tolist() == [[BOS, a, b, BOS, c], [c, d, e, BOS, PAD]]
    batch = unpack(rows, PAD, BOS, EOS)
    assert {name: array.tolist() for name, array in batch.items()} == {
        'inputs': [[BOS, a, b, BOS], [c, d, e, BOS]],
        'targets': [[a, b, EOS, c], [d, e, EOS, PAD]],
        'weights': [[1, 1, 1, 1], [1, 1, 1, 0]],
        'segments': [[1, 1, 1, 2], [1, 1, 1, 2]],
        'positions': [[0, 1, 2, 0], [0, 1, 2, 0]],
    }
    dtypes = {array.dtype for name, array in batch.items() if name != 'weights'}
    assert dtypes == {np.dtype(np.int32)}
    assert batch['weights'].dtype == np.float32


@given(documents=DOCUMENTS, context=st.integers(1, 20))
def test_any_documents(documents, context):
    rows = pack(documents, context)
    assert rows.shape[1] == context + 1
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    # Only the last row has padding, and no row is superfluous.
    assert (rows[:-1] != PAD).all() and (rows[-1, :2] != PAD).all()

    # Every token and every end is a target exactly once; no BOS is a target.
    batch = unpack(rows, PAD, BOS, EOS)
    predicted = batch['targets'][batch['weights'] > 0].tolist()
    assert predicted == [token for d in documents for token in [*d, EOS]]
    given_tokens = batch['inputs'][batch['weights'] > 0].tolist()
    assert given_tokens == [token for d in documents for token in [BOS, *d]]

    # Segments are documents, and positions count within them.
    for inputs, segments, positions in zip(
        batch['inputs'], batch['segments'], batch['positions'], strict=True
    ):
        kept = inputs != PAD
        assert segments[0] == 1 and (segments[~kept] == 0).all()
        for place in range(1, kept.sum()):
            begins = inputs[place] == BOS
            assert segments[place] == segments[place - 1] + begins
            assert positions[place] == (0 if begins else positions[place - 1] + 1)


@given(documents=DOCUMENTS, context=st.integers(1, 20), data=st.data())
def test_rows_do_not_depend_on_how_documents_arrive(documents, context, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)))))
    assert (pack(documents, context, cuts) == pack(documents, context)).all()


def test_nothing_packs_to_nothing():
    packer = Packer(4, PAD, BOS, np.uint32)
    assert packer.add([]).shape == (0, 5)
    assert packer.finish().shape == (0, 5)
