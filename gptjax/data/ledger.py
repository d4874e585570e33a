"""Shows which documents a training batch has, and their text."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.data.augmentation.augmented_dataset import augment_dataset
from gptjax.data.packed_conversations import open_training_dataset
from gptjax.data.packed_dataset import PackedDataset
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.tokenizer.tokenizer import CHAT_TURNS


def batch_documents(config: ConfigDict, workdir: Path, step: int) -> list[list[str]]:
    """The ids of the documents in each row of the training batch of a step."""
    dataset, choice = _open_batch(config, workdir, step)
    return [
        dataset.sources[source].documents(row, dataset.context)
        for source, row in zip(choice.source, choice.row, strict=True)
    ]


def describe_batch(config: ConfigDict, workdir: Path, step: int) -> Iterator[str]:
    """Yields lines that show the training batch of a step, row by row."""
    dataset, choice = _open_batch(config, workdir, step)
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    if tokenizer.fingerprint != dataset.tokenizer:
        raise UserError(
            f'{dataset.folder} was made with another tokenizer: delete it '
            'and run its stage again'
        )
    batch = dataset.load(choice)
    augmented = augment_dataset(dataset, config, tokenizer).load(choice)
    yield (
        f'step {step}: {len(choice.row)} rows of {dataset.context} tokens, '
        f'{int(batch["weights"].sum()):,} to predict'
    )
    for number, (index, epoch, row) in enumerate(
        zip(choice.source, choice.epoch, choice.row, strict=True)
    ):
        source = dataset.sources[index]
        yield ''
        yield (
            f'row {number}: {source.name}, row {row} of {source.num_rows:,}, '
            f'epoch {epoch}'
        )
        inputs, segments = batch['inputs'][number], batch['segments'][number]
        for segment, name in enumerate(source.documents(row, dataset.context), 1):
            tokens = inputs[segments == segment]
            whole = source.masked or tokens[0] == tokenizer.bos_id
            part = 'from its start' if whole else 'continued'
            yield f'  {name} ({part}, {len(tokens)} tokens)'
            text = _decode_with_roles(tokens, tokenizer)
            yield from (f'    {line}' for line in text.split('\n'))
        if config.data.augment:
            yield f'  augmented by {", ".join(config.data.augment)}'
            text = _decode_with_roles(augmented['inputs'][number], tokenizer)
            yield from (f'    {line}' for line in text.split('\n'))


def _open_batch(config, workdir, step):
    """(dataset, the rows of the batch)."""
    if step < 0:
        raise UserError(f'--step={step}: steps count from 0')
    if (workdir / 'dialogue').exists():
        dataset = open_training_dataset(config, workdir)
    else:
        dataset = PackedDataset(workdir / 'prepared', 'train')
    size = config.train.batch_size
    slots = step * size + np.arange(size)
    return dataset, dataset.choose_training_rows(config.seed, slots)


def _decode_with_roles(tokens, tokenizer) -> str:
    """Decodes tokens, and writes special ones by name: '<|user|>Hi!<|end|>'."""
    ours = CHAT_TURNS[0] in tokenizer.specials  # BOS and EOS are not written
    names = {
        token: name
        for name, token in tokenizer.specials.items()
        if name in CHAT_TURNS or not ours
    }
    parts = []
    for special, run in itertools.groupby(tokens.tolist(), names.__contains__):
        run = list(run)
        parts += map(names.get, run) if special else [tokenizer.decode(run)]
    return ''.join(parts).replace('<|end|>', '<|end|>\n').removesuffix('\n')
