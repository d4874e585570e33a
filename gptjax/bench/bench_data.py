"""`bench data`: tokens per second of the data loader, compared with training.

Batches are placed on the devices as in training, but no model computes on them. The
cold rate is measured after the shards are dropped from the operating system's cache;
it includes opening them, and reads no row twice. The warm rate starts after a first
batch.
"""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.core.artifact import find_manifest
from gptjax.core.console import UserError
from gptjax.core.files import import_tensorflow
from gptjax.data import dataloader
from gptjax.data.augmentation.augmented_dataset import augment_dataset
from gptjax.data.packed_dataset import PackedDataset
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.sharding import batch_sharding
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train.metrics import read_metrics

SECONDS = 3.0  # of one measurement


def run(config: ConfigDict, workdir: Path) -> dict:
    """Measures the data loader of RUN/prepared; prints and returns its rates.

    `cold`, `warm` and `training` are tokens per second over all processes, `ratio` is
    warm / training. Without RUN/metrics.jsonl the last two are None.
    """
    prepared = workdir / 'prepared'
    if find_manifest(prepared) is None:
        raise UserError(
            f'bench data: {prepared} is not there: it needs a run with packed '
            'documents: run `prepare --config configs/NAME.py --workdir RUN` first'
        )
    packed = PackedDataset(prepared, 'train')
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    batch_size = config.train.batch_size
    sharding = batch_sharding(make_mesh(config.mesh))
    import_tensorflow()  # takes seconds, which the cold rate must not include

    def batches(num_steps: int | None):
        dataset = PackedDataset(prepared, 'train')
        dataset = augment_dataset(dataset, config, tokenizer)
        return dataloader.training_batches(
            dataset, config.seed, batch_size, sharding, num_steps=num_steps
        )

    if hasattr(os, 'posix_fadvise'):
        for path in (prepared / 'train').rglob('*.npy'):
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    steps_per_epoch = -(-packed.num_rows // batch_size)
    cold = batches_per_second('cold', batches(steps_per_epoch), start)
    warm_batches = batches(None)
    next(warm_batches)
    warm = batches_per_second('warm', warm_batches, time.perf_counter())
    tokens = batch_size * packed.context
    cold, warm = cold * tokens, warm * tokens

    records = read_metrics(workdir / 'metrics.jsonl')
    rates = [r['tokens_per_second'] for r in records if r.get('tokens_per_second')]
    training = statistics.median(rates) if rates else None
    ratio = warm / training if training else None
    print(f'pipeline, cold   {cold:14,.0f} tokens/s')
    print(f'pipeline, warm   {warm:14,.0f} tokens/s')
    if training:
        print(f'training uses    {training:14,.0f} tokens/s')
        print(f'warm / training  {ratio:14,.1f}')
    else:
        print('training         not known yet: run the stage `pretrain`')
    return {'cold': cold, 'warm': warm, 'training': training, 'ratio': ratio}


def batches_per_second(name: str, batches: Iterator[dict], start: float) -> float:
    """The rate since `start`, over SECONDS or until `batches` ends."""
    count, now, batch = 0, start, None
    with console.progress_bar(f'{name} batches', SECONDS, 'seconds') as advance:
        while now - start < SECONDS:
            next_batch = next(batches, None)
            if next_batch is None:
                break
            batch, count = next_batch, count + 1
            before, now = now, time.perf_counter()
            advance(now - before)
    jax.block_until_ready(batch)
    return count / (time.perf_counter() - start)
