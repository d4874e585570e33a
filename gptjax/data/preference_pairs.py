"""Encodes preferences as pairs of token rows, on which the stage `dpo` trains.

    RUN/pairs/train.npz, validation.npz
    RUN/pairs/manifest.json

A pair is a prompt with the chosen reply and the same prompt with the rejected reply; or
any two replies that people labelled as good or bad, for KTO.
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
from gptjax.data import chat_template
from gptjax.data.packed_dataset import shuffle_epochs
from gptjax.data.preferences import (
    Labelled,
    Preference,
    describe_forms,
    list_pairs,
    read_replies,
)
from gptjax.data.render_process import RefusedMessages
from gptjax.data.sources.open_source import (
    describe_files,
    list_source_files,
    refuse_changed_conversations,
)
from gptjax.data.sources.records import SPLITS
from gptjax.data.splits import assign_split, describe_shared, fill_splits
from gptjax.data.training_checks import check_template
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


EMPTY = Row(np.zeros(1, np.int32), 1)  # all padding


class Pair(NamedTuple):
    """Two rows with the same prompt; or any two labelled replies, for KTO.

    labels: 1 for a reply that people liked, 0 for another, -1 for an empty row; None if
        `chosen` and `rejected` are what they say.
    """

    id: str
    chosen: Row
    rejected: Row
    labels: tuple[int, int] | None = None

    @property
    def rows(self) -> tuple[Row, Row]:
        return self.chosen, self.rejected


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
    if section.columns:
        inputs['preference.columns'] = section.columns
    return artifact.build(
        workdir / 'pairs',
        inputs,
        lambda folder: _write_pairs(config, folder, tokenizer),
        needs=[f'{split}.npz' for split in SPLITS],
        check=partial(refuse_changed_conversations, FIELD, section.path),
    )


def describe_pairs(manifest: dict) -> str:
    splits, unit = manifest['splits'].items(), 'pairs'
    if 'replies' in manifest['splits']['train']:
        unit = 'replies'
    counts = [f'{split[unit]:,} {name}' for name, split in splits]
    return f'{unit}: {", ".join(counts)}'


def describe_left_out(manifest: dict) -> str:
    skipped, context = manifest['skipped'], manifest['settings']['data.context']
    refused = manifest.get('refused', {})
    return console.join_lines(
        describe_forms('dpo', manifest),
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
    check_template(tokenizer, config.chat.template)
    source = describe_files(list_source_files('chat', section.path, FIELD))
    found, forms = read_replies(section.path, FIELD, section.columns)
    labelled = isinstance(found[0], Labelled)
    preferences, counts = found, dict(lines=len(found), equal=0)
    if not labelled:
        preferences, counts = list_pairs(found, f'{FIELD}={section.path}')
    pairs, skipped = [], dict(equal=counts['equal'], too_long=0)
    refused = Counter()
    encode = encode_labelled if labelled else encode_pair
    for preference in preferences:
        try:
            pair = encode(preference, tokenizer, config.chat.template)
        except RefusedMessages as error:
            refused[str(error)] += 1
            continue
        if np.array_equal(pair.chosen.tokens, pair.rejected.tokens):
            skipped['equal'] += 1
        elif max(len(row.tokens) for row in pair.rows) > config.data.context + 1:
            skipped['too_long'] += 1
        else:
            pairs.append((storage.fingerprint(preference.prompt), pair))
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
    splits = split_pairs(pairs, section)
    if labelled:
        splits = {name: join_labelled(split) for name, split in splits.items()}
    splits = {
        name: _write_split(folder / f'{name}.npz', split)
        for name, split in splits.items()
    }
    return dict(
        source=source,
        lines=counts['lines'],
        forms=forms,
        skipped=skipped,
        **(dict(refused=dict(refused)) if refused else {}),
        splits=splits,
        fingerprint=storage.fingerprint(splits),
    )


def encode_pair(preference: Preference, tokenizer, template: str) -> Pair:
    """Encodes a preference; both rows have the same prompt."""
    replies = preference.chosen, preference.rejected
    rows = _encode_rows(preference.prompt, replies, tokenizer, template)
    return Pair(preference.id, *rows)


def encode_labelled(labelled: Labelled, tokenizer, template: str) -> Pair:
    """Encodes a labelled reply; the other row is empty."""
    (row,) = _encode_rows(labelled.prompt, [labelled.reply], tokenizer, template)
    return Pair(labelled.id, row, EMPTY, (int(labelled.label), -1))


def _encode_rows(messages, replies, tokenizer, template) -> list[Row]:
    prompt = chat_template.encode_prompt(messages, tokenizer, template)
    rows = []
    for reply in replies:
        reply = chat_template.encode_reply(messages, reply, tokenizer, template)
        rows.append(Row(np.array([*prompt, *reply], np.int32), len(prompt)))
    return rows


def join_labelled(singles: Sequence[Pair]) -> list[Pair]:
    """Puts every two labelled replies into one `Pair`, so that no row is wasted.

    KTO looks at each reply alone. The last row is empty if their number is odd.
    """
    joined = []
    for number in range(0, len(singles) - 1, 2):
        first, second = singles[number : number + 2]
        labels = first.labels[0], second.labels[0]
        name = f'{first.id} and {second.id}'
        joined.append(Pair(name, first.chosen, second.chosen, labels))
    return joined + [*singles[len(joined) * 2 :]]


def refuse_labels(pairs: Sequence[Pair], loss: str) -> None:
    """Refuses labelled replies for a loss of pairs."""
    if pairs[0].labels is not None and loss != 'kto':
        raise UserError(
            f'preference.loss={loss} compares two replies, and preference.path has '
            'labels of single replies: use preference.loss=kto'
        )


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
        first, ids = arrays['prompts'].tolist(), arrays['ids'].tolist()
        second = arrays.get('second_prompts', arrays['prompts']).tolist()
        labels = arrays['labels'].tolist() if 'labels' in arrays else [None] * len(ids)
    rows = zip(map(Row, rows[::2], first), map(Row, rows[1::2], second), strict=True)
    pairs = [
        Pair(name, *both, label and tuple(label))
        for name, both, label in zip(ids, rows, labels, strict=True)
    ]
    return [one._replace(rejected=EMPTY) if _is_half(one) else one for one in pairs]


def _is_half(pair: Pair) -> bool:
    return pair.labels is not None and pair.labels[1] < 0


def _write_split(path: Path, pairs: Sequence[Pair]) -> dict:
    """Writes a split; returns the manifest's entry."""
    rows = [row.tokens for pair in pairs for row in pair.rows]
    content, more, labels = io.BytesIO(), {}, [pair.labels for pair in pairs]
    if labels[0] is not None:
        second = [pair.rejected.prompt_length for pair in pairs]
        more = dict(labels=np.array(labels), second_prompts=np.array(second))
    np.savez(
        content,
        tokens=np.concatenate(rows),
        ends=np.cumsum([len(row) for row in rows]),
        prompts=np.array([pair.chosen.prompt_length for pair in pairs]),
        ids=np.array([pair.id for pair in pairs]),
        **more,
    )
    storage.write_bytes(path, content.getvalue())
    replies = dict(replies=int((more['labels'] >= 0).sum())) if more else {}
    return dict(
        **replies,
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
        after = pairs[following[number]]
        other = after.rows[number % 2]
        if after.labels is not None and (
            _is_half(after) or other.prompt == pair.chosen.prompt
        ):
            other = after.chosen
        length = pair.chosen.prompt_length
        reply = other.tokens[other.prompt_length :]
        tokens = np.concatenate([pair.chosen.tokens[:length], reply])
        rows.append(Row(tokens[: context + 1], length))
    return rows
