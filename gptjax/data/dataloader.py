"""The data loader: tf.data reads and unpacks batches ahead, JAX places them.

A batch is a function of (seed, step). It does not depend on the number of devices or
hosts, or on earlier batches. Every process loads only the rows of its own devices.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from gptjax.core.files import import_tensorflow
from gptjax.data.packed_dataset import PackedDataset, RowChoice

FIELDS = {
    'inputs': np.int32,
    'targets': np.int32,
    'segments': np.int32,
    'positions': np.int32,
    'weights': np.float32,
}
BLOCK_TOKENS = 2**16  # read by one call, if a batch has fewer
BLOCKS_AHEAD = 3  # blocks that tf.data keeps ready
MAX_STEPS = 2**53  # stands for an infinite number


def training_batches(
    dataset: PackedDataset,
    seed: int,
    batch_size: int,
    sharding=None,
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[dict]:
    """Yields training batches from `start_step` on, in a new order each epoch.

    Args:
        batch_size: B, rows over all devices of all processes.
        sharding: of a (B, T) array; None: batches are NumPy arrays.
        start_step: the first step; earlier batches are not read.
        num_steps: the number of batches; None: infinite.

    Returns:
        Dicts of (B, T) arrays, see `packing.unpack`.
    """
    stop = MAX_STEPS if num_steps is None else start_step + num_steps
    choose = functools.partial(dataset.choose_training_rows, seed)
    return _feed(dataset, choose, range(start_step, stop), batch_size, sharding)


def validation_batches(
    dataset: PackedDataset, batch_size: int, sharding=None
) -> Iterator[dict]:
    """Yields one pass over all rows, always in the same order.

    The last batch is filled up with rows of weight 0.
    """
    steps = range(-(-dataset.num_rows // max(1, batch_size)))
    return _feed(dataset, dataset.choose_pass_rows, steps, batch_size, sharding)


def _feed(
    dataset: PackedDataset,
    choose: Callable[[np.ndarray], RowChoice],
    steps: range,
    batch_size: int,
    sharding,
) -> Iterator[dict]:
    """Yields the batches of `steps` on the devices, with one more in transfer."""
    shape = (batch_size, dataset.context)
    rows = local_rows(shape, sharding)

    def load(steps: np.ndarray) -> dict[str, np.ndarray]:
        slots = steps[:, None] * batch_size + rows
        block = dataset.load(choose(slots.ravel()))
        return {
            name: array.reshape(*slots.shape, dataset.context)
            for name, array in block.items()
        }

    block_size = max(1, BLOCK_TOKENS // (len(rows) * dataset.context))
    batches = _read_ahead(load, steps, block_size)
    placed = (place_batch(batch, rows, shape, sharding) for batch in batches)
    return (batch for batch, _ in itertools.pairwise(itertools.chain(placed, [None])))


def _read_ahead(
    load: Callable[[np.ndarray], dict], steps: range, block_size: int
) -> Iterator[dict]:
    """Yields the batches of `load`, which tf.data calls ahead for blocks of steps.

    Blocks are used because a call of TensorFlow costs more than a small batch.
    """
    tf = import_tensorflow()

    def load_block(first):
        block = np.arange(first, min(first + block_size, steps.stop))
        arrays = load(block)
        return [arrays[name] for name in FIELDS]

    dataset = tf.data.Dataset.range(steps.start, steps.stop, block_size).map(
        lambda first: tf.numpy_function(load_block, [first], list(FIELDS.values())),
        num_parallel_calls=1,  # `load` holds Python's lock: a second call would wait
        deterministic=True,
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1  # the cores are for training
    options.threading.max_intra_op_parallelism = 1
    dataset = dataset.prefetch(BLOCKS_AHEAD).with_options(options)
    for block in dataset.as_numpy_iterator():
        for arrays in zip(*block, strict=True):
            yield dict(zip(FIELDS, arrays, strict=True))


def local_rows(shape: tuple[int, int], sharding) -> np.ndarray:
    """The rows of a (B, T) array on this process' devices, ascending."""
    rows = np.arange(shape[0])
    if sharding is None:
        return rows
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[index[0]] for index in indices]))


def place_batch(
    batch: dict[str, np.ndarray], rows: np.ndarray, shape: tuple[int, int], sharding
) -> dict:
    """Makes global arrays of `shape`; `batch` has only the rows numbered `rows`."""
    if sharding is None:
        return batch
    import jax

    def select(array, index):
        begin, end = np.searchsorted(rows, index[0].indices(shape[0])[:2])
        return array[begin:end, index[1]]

    return {
        name: jax.make_array_from_callback(
            shape, sharding, lambda index, array=array: select(array, index)
        )
        for name, array in batch.items()
    }
