"""What was in a batch: the documents of every row, and their text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.data.packed import PackedSplit
from gptjax.data.pipeline import check_batch
from gptjax.errors import UserError
from gptjax.tokenizer.tokenizer import Tokenizer


def batch_documents(config: ConfigDict, workdir: Path, step: int) -> list[list[str]]:
    """The ids of the documents in each row of the training batch of a step."""
    packed, choice = _open(config, workdir, step)
    return [
        packed.sources[source].documents(row, packed.context)
        for source, row in zip(choice.source, choice.row, strict=True)
    ]


def describe_batch(config: ConfigDict, workdir: Path, step: int) -> Iterator[str]:
    """Lines that show the training batch of a step: for each row, what it holds.

    Raises:
        UserError: nothing is prepared, or step is negative.
    """
    packed, choice = _open(config, workdir, step)
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    if tokenizer.fingerprint != packed.tokenizer:
        raise UserError(
            f'{workdir / "prepared"} was made with another tokenizer: delete it and '
            'run the stage `prepare`'
        )
    batch = packed.load(choice)
    yield (
        f'step {step}: {len(choice.row)} examples of {packed.context} tokens, '
        f'{int(batch["weights"].sum()):,} to predict'
    )
    for slot, (index, epoch, row) in enumerate(
        zip(choice.source, choice.epoch, choice.row, strict=True)
    ):
        source = packed.sources[index]
        yield ''
        yield (
            f'row {slot}: {source.name}, example {row} of {source.num_rows:,}, '
            f'epoch {epoch}'
        )
        inputs, segments = batch['inputs'][slot], batch['segments'][slot]
        for segment, name in enumerate(source.documents(row, packed.context), 1):
            tokens = inputs[segments == segment]
            begun = 'from its start' if tokens[0] == tokenizer.bos_id else 'goes on'
            yield f'  {name} ({begun}, {len(tokens)} tokens)'
            yield from (f'    {line}' for line in tokenizer.decode(tokens).split('\n'))


def _open(config, workdir, step):
    if step < 0:
        raise UserError(f'--step={step}: steps count from 0')
    packed = PackedSplit(workdir / 'prepared', 'train')
    size = config.train.batch_size
    check_batch((size, packed.context), None)
    slots = step * size + np.arange(size)
    return packed, packed.training_rows(config.seed, slots)
