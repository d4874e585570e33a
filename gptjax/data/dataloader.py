"""Batches for training: tf.data reads and unpacks ahead, JAX places them.

A batch is a function of (seed, step): which rows it has does not depend on how many
devices or hosts there are, on what was read before, or on chance. Every process
loads only the rows that its own devices hold.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from gptjax.core.console import UserError
from gptjax.core.files import import_tensorflow
from gptjax.data.packed_dataset import PackedDataset, RowChoice

FIELDS = {
    'inputs': np.int32,
    'targets': np.int32,
    'segments': np.int32,
    'positions': np.int32,
    'weights': np.float32,
}
BLOCK_TOKENS = 2**16  # read at once, if that is more than a batch
BLOCKS_AHEAD = 3  # that tf.data keeps ready
MAX_STEPS = 2**53  # without end


def training_batches(
    dataset: PackedDataset,
    seed: int,
    batch_size: int,
    sharding=None,
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[dict]:
    """Training batches from `start_step` on: shuffled anew each epoch, mixed by weight.

    Args:
        batch_size: B, examples over all devices of all processes.
        sharding: of a (B, T) array; None leaves the batches NumPy arrays.
        start_step: seeking there costs nothing.
        num_steps: how many batches; None: without end.

    Returns:
        Dicts of (B, T) arrays, `packing.unpack`.
    """
    stop = MAX_STEPS if num_steps is None else start_step + num_steps
    choose = functools.partial(dataset.choose_training_rows, seed)
    return _feed(dataset, choose, range(start_step, stop), batch_size, sharding)


def validation_batches(
    dataset: PackedDataset, batch_size: int, sharding=None
) -> Iterator[dict]:
    """One pass over every row, in an order that is always the same.

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
    """The batches of `steps`, placed; one more is on its way to the devices."""
    shape = (batch_size, dataset.context)
    check_batch(shape, sharding)
    rows = local_rows(shape, sharding)

    def load(steps: np.ndarray) -> dict[str, np.ndarray]:
        slots = steps[:, None] * batch_size + rows
        block = dataset.load(choose(slots.ravel()))
        return {
            name: array.reshape(*slots.shape, dataset.context)
            for name, array in block.items()
        }

    block_size = max(1, BLOCK_TOKENS // (len(rows) * dataset.context))
    batches = _read(load, steps, block_size)
    placed = (place_batch(batch, rows, shape, sharding) for batch in batches)
    return (batch for batch, _ in itertools.pairwise(itertools.chain(placed, [None])))


def _read(
    load: Callable[[np.ndarray], dict], steps: range, block_size: int
) -> Iterator[dict]:
    """The batches that `load` returns for each block of steps, read ahead by tf.data.

    A block at a time: what a call of TensorFlow costs is more than a small batch.
    """
    tf = import_tensorflow()

    def load_block(first):
        block = np.arange(first, min(first + block_size, steps.stop))
        arrays = load(block)
        return [arrays[name] for name in FIELDS]

    dataset = tf.data.Dataset.range(steps.start, steps.stop, block_size).map(
        lambda first: tf.numpy_function(load_block, [first], list(FIELDS.values())),
        num_parallel_calls=1,  # `load` holds Python's lock: a second would wait
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
    """The rows of a (B, T) array that this process' devices hold, ascending."""
    rows = np.arange(shape[0])
    if sharding is None:
        return rows
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[index[0]] for index in indices]))


def place_batch(
    batch: dict[str, np.ndarray], rows: np.ndarray, shape: tuple[int, int], sharding
) -> dict:
    """Global arrays of `shape` from this process' rows, numbered `rows`."""
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


def check_batch(shape: tuple[int, int], sharding) -> None:
    """Refuses a batch that the sharding cannot split evenly."""
    batch_size, context = shape
    if sharding is None or not hasattr(sharding, 'spec'):
        return
    fields = {'train.batch_size': batch_size, 'data.context': context}
    for (field, size), axes in zip(fields.items(), sharding.spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = int(np.prod([sharding.mesh.shape[axis] for axis in axes]))
        if size % parts:
            product = ' * '.join(f'mesh.{axis}' for axis in axes)
            raise UserError(
                f'{field}={size} is not divisible by {product}={parts}: use a '
                f'multiple of {parts}, or a smaller mesh'
            )
