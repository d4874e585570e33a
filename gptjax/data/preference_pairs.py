"""Encodes preferences as pairs of token rows, on which the stage `dpo` trains.

    RUN/pairs/train.npz, validation.npz
    RUN/pairs/manifest.json

A pair is a prompt with the chosen reply and the same prompt with the rejected reply.
The prompt `p q` and the reply `a b <|end|>` make this row, padded to T = 6:

    inputs    p q a b     pad pad
    targets   q a b <end> pad pad
    weights   0 1 1 1     0   0      only the reply and its end are trained on
    segments  1 1 1 1     0   0
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.core.files import JSON_LINES, list_files
from gptjax.data import chat_template
from gptjax.data.packed_dataset import shuffle_epochs
from gptjax.data.preferences import Preference, read_preferences
from gptjax.data.render_process import RefusedMessages
from gptjax.data.sources.open_source import describe_files, refuse_changed_files
from gptjax.data.sources.records import SPLITS
from gptjax.data.splits import assign_split, describe_shared, fill_splits
from gptjax.tokenizer.load_tokenizer import AnyTokenizer, load_tokenizer

FIELD = 'preference.path'


class Row(NamedTuple):
    """A prompt and a reply."""

    tokens: np.ndarray  # ids, BOS first
    prompt_length: int  # the prompt's tokens, BOS included

    @property
    def prompt(self) -> bytes:
        """The prompt's tokens as bytes, to compare prompts."""
        return self.tokens[: self.prompt_length].tobytes()


class Pair(NamedTuple):
    """Two rows with the same prompt."""

    id: str
    chosen: Row
    rejected: Row


def build_pairs(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/pairs with the tokenizer of RUN; returns the manifest."""
    section = config.preference
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    inputs = {
        'preference.path': section.path,
        'preference.validation_fraction': section.validation_fraction,
        'data.context': config.data.context,
        'chat.template': config.chat.template,
        'tokenizer': tokenizer.fingerprint,
    }
    return artifact.build(
        workdir / 'pairs',
        inputs,
        lambda folder: _write_pairs(config, folder, tokenizer),
        needs=[f'{split}.npz' for split in SPLITS],
        check=partial(refuse_changed_files, FIELD, section.path, JSON_LINES),
    )


def describe_pairs(manifest: dict) -> str:
    counts = [
        f'{split["pairs"]:,} {name}' for name, split in manifest['splits'].items()
    ]
    return f'pairs: {", ".join(counts)}'


def describe_left_out(manifest: dict) -> str:
    skipped, context = manifest['skipped'], manifest['settings']['data.context']
    refused = manifest.get('refused', {})
    return console.join_lines(
        console.describe_left_out(
            {
                'equal replies': skipped['equal'],
                f'data.context={context}': skipped['too_long'],
                **{f'"{why}"': count for why, count in refused.items()},
            },
            manifest['lines'],
            'pairs',
        ),
        describe_shared(manifest['splits'], 'pairs'),
    )


PAIRS = artifact.Artifact('pairs', build_pairs, describe_pairs, describe_left_out)


def _write_pairs(config: ConfigDict, folder: Path, tokenizer: AnyTokenizer) -> dict:
    section = config.preference
    if not section.path:
        raise UserError(
            'preference.path is empty: give a JSON Lines file of preferences, as '
            '--config.preference.path=pairs.jsonl'
        )
    source = describe_files(list_files(section.path, JSON_LINES, FIELD))
    preferences, counts = read_preferences(section.path, FIELD)
    pairs, skipped = [], dict(equal=counts['equal'], too_long=0)
    refused = Counter()
    for preference in preferences:
        try:
            pair = encode_pair(preference, tokenizer, config.chat.template)
        except RefusedMessages as error:
            refused[str(error)] += 1
            continue
        if np.array_equal(pair.chosen.tokens, pair.rejected.tokens):
            skipped['equal'] += 1
        elif max(len(row.tokens) for row in pair[1:]) > config.data.context + 1:
            skipped['too_long'] += 1
        else:
            pairs.append((preference.split_key(), pair))
    if refused and not pairs:
        ((why, count),) = refused.most_common(1)
        raise UserError(
            f'preference.path={section.path}: no pair is left: {count} of '
            f'{counts["lines"]} are left out because {why}: change the pairs, or start '
            'from another model'
        )
    if not pairs:
        longest = config.model.context
        longer = (
            f'use --config.data.context=N with N up to {longest}'
            if config.data.context < longest
            else 'start from a model with a longer context'
        )
        raise UserError(
            f'preference.path={section.path}: all {counts["lines"]} pairs are skipped: '
            f'in {skipped["equal"]} both replies are the same, {skipped["too_long"]} '
            f'are longer than data.context={config.data.context}: give others, or '
            f'{longer}'
        )
    splits = {
        name: _write_split(folder / f'{name}.npz', split)
        for name, split in split_pairs(pairs, section).items()
    }
    return dict(
        source=source,
        lines=counts['lines'],
        skipped=skipped,
        **(dict(refused=dict(refused)) if refused else {}),
        splits=splits,
        fingerprint=storage.fingerprint(splits),
    )


def encode_pair(preference: Preference, tokenizer, template: str) -> Pair:
    """Encodes a preference; both rows have the same prompt."""
    prompt = chat_template.encode_prompt(preference.prompt, tokenizer, template)
    rows = []
    for *before, reply in preference.conversations():
        reply = chat_template.encode_reply(
            before, reply['content'], tokenizer, template
        )
        rows.append(Row(np.array([*prompt, *reply], np.int32), len(prompt)))
    return Pair(preference.id, *rows)


def split_pairs(pairs: Sequence[tuple[str, Pair]], section) -> dict[str, list[Pair]]:
    """Splits pairs into training and validation, by a hash of the prompt.

    So pairs of one prompt are in the same split, if there are others.

    Args:
        pairs: (key of the prompt, pair), in order.
    """
    fraction = section.validation_fraction
    keys = [key for key, _ in pairs]
    numbers = fill_splits(keys, lambda key: assign_split(key, fraction))
    return {name: [pairs[n][1] for n in chosen] for name, chosen in numbers.items()}


def read_pairs(workdir: Path, split: str) -> list[Pair]:
    """Reads the pairs of a split, in order."""
    artifact.require(workdir / 'pairs', 'dpo')
    with np.load(workdir / 'pairs' / f'{split}.npz') as arrays:
        rows = np.split(arrays['tokens'], arrays['ends'][:-1])
        lengths, ids = arrays['prompts'].tolist(), arrays['ids']
    return [
        Pair(str(name), Row(rows[2 * n], length), Row(rows[2 * n + 1], length))
        for n, (name, length) in enumerate(zip(ids, lengths, strict=True))
    ]


def _write_split(path: Path, pairs: Sequence[Pair]) -> dict:
    """Writes a split; returns the manifest's entry."""
    rows = [row.tokens for pair in pairs for row in (pair.chosen, pair.rejected)]
    content = io.BytesIO()
    np.savez(
        content,
        tokens=np.concatenate(rows),
        ends=np.cumsum([len(row) for row in rows]),
        prompts=np.array([pair.chosen.prompt_length for pair in pairs]),
        ids=np.array([pair.id for pair in pairs]),
    )
    storage.write_bytes(path, content.getvalue())
    return dict(
        pairs=len(pairs),
        prompts=len({pair.chosen.prompt for pair in pairs}),
        longest=max(map(len, rows)),
        sha256=storage.sha256_of_file(path),
    )


def choose_pairs(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The numbers (batch_size,) of the pairs of a step: a function of the arguments.

    Each epoch has each of the `count` pairs once, in another order.
    """
    slots = step * batch_size + np.arange(batch_size)
    return shuffle_epochs(slots, count, f'{seed} pairs')[1]


def batch_in_order(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields 0 … count - 1 in batches: (5, 2) → [0, 1], [2, 3], [4, -1]"""
    for first in range(0, count, batch_size):
        numbers = np.arange(first, first + batch_size)
        yield np.where(numbers < count, numbers, -1)


def pad_rows(rows: Sequence[Row], context: int, pad: int) -> dict[str, np.ndarray]:
    """Pads rows to arrays int32 (B, T), and float32 `weights`; see the table above."""
    shape = len(rows), context
    inputs, targets = np.full((2, *shape), pad, np.int32)
    segments, positions = np.zeros((2, *shape), np.int32)
    weights = np.zeros(shape, np.float32)
    for number, (tokens, prompt_length) in enumerate(rows):
        end = len(tokens) - 1
        inputs[number, :end] = tokens[:-1]
        targets[number, :end] = tokens[1:]
        segments[number, :end] = 1
        positions[number, :end] = np.arange(end)
        weights[number, prompt_length - 1 : end] = 1
    return dict(
        inputs=inputs,
        targets=targets,
        segments=segments,
        positions=positions,
        weights=weights,
    )


def mismatch_replies(
    pairs: Sequence[Pair], context: int, others: Sequence[Pair] = ()
) -> list[Row]:
    """Joins each pair's prompt with a reply to another prompt, for KTO's baseline.

    The reply is from the next pair with another prompt: chosen and rejected replies
    alternate. Rows are cut to context + 1 tokens. With pairs (p, a, b), (q, c, d):

        → p c, q b

    Args:
        others: pairs of other splits, which are used if all `pairs` have one prompt.
    """
    num_rows = len(pairs)
    if len({pair.chosen.prompt for pair in pairs}) == 1:
        pairs = [*pairs, *others]
    prompts = [pair.chosen.prompt for pair in pairs]
    if len(set(prompts)) == 1:
        raise UserError(
            'preference.loss=kto needs replies to other prompts, and all pairs have '
            'the same prompt: give more prompts, or use another loss'
        )
    count = len(pairs)
    following = [0] * count
    for number in reversed(range(2 * count)):  # twice, as the last wrap to the first
        here, after = number % count, (number + 1) % count
        same = prompts[here] == prompts[after]
        following[here] = following[after] if same else after
    rows = []
    for number, pair in enumerate(pairs[:num_rows]):
        other = pairs[following[number]][1 + number % 2]
        length = pair.chosen.prompt_length
        reply = other.tokens[other.prompt_length :]
        tokens = np.concatenate([pair.chosen.tokens[:length], reply])
        rows.append(Row(tokens[: context + 1], length))
    return rows
