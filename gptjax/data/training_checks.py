"""Refuses what trains without an error and ruins a model.

Every stage runs these checks before its first step. `check` runs them, too, and shows
what the stage would train on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.data.chat_template import TURN_END
from gptjax.data.packed_dataset import PackedDataset
from gptjax.data.render_process import RefusedMessages

ROWS = 512  # the first rows of training, which are checked
EXAMPLE = (
    dict(role='user', content='What is it?'),
    dict(role='assistant', content='A cat.'),
)


class Example(NamedTuple):
    """A segment of a packed row, as the loss sees it."""

    row: int
    tokens: list[int]
    trained: list[bool]  # of each token


def check_padding(tokenizer, ends: tuple[int, ...] = ()) -> None:
    """Refuses a padding token that ends a text: it would have no loss."""
    if tokenizer.pad_id in (*ends, *tokenizer.eos_ids):
        names = {token: name for name, token in tokenizer.specials.items()}
        name = names.get(tokenizer.pad_id, tokenizer.pad_id)
        raise UserError(
            f'tokenizer: {name} is the padding and also ends a reply or a text, so '
            'where it ends one it would have no loss and the model would never learn '
            'to stop: give the model of start.run a padding token of its own'
        )


def check_template(tokenizer, template: str) -> bool | None:
    """Refuses a chat template whose replies do not end, or with two BOS.

    Returns whether a conversation begins with BOS; None if the template does not write
    a question and a reply.
    """
    try:
        tokens, _ = chat_template.encode_conversation(EXAMPLE, tokenizer, template)
    except RefusedMessages:
        return None
    strings, ends = chat_template.stop_conditions(template, tokenizer)
    check_padding(tokenizer, ends)
    if not strings and not ends:
        raise UserError(
            f'chat.template={template}: no end of a reply is trained: the chat '
            'template of the model writes no special token at the end of what it '
            'marks as a reply, so the model would never stop: end the reply with one, '
            'inside {% generation %} if there is one, and import the model again'
        )
    bos = tokenizer.bos_id
    if bos in tokenizer.eos_ids:  # a model without a BOS
        return False
    if tokens[:2] == [bos, bos]:
        raise UserError(
            f'chat.template={template}: a conversation begins with two BOS, and the '
            'model has seen one: remove the BOS that the chat template writes twice, '
            'and import the model again'
        )
    return tokens[:1] == [bos]


def check_conversations(
    rows: PackedDataset, tokenizer, template: str, seed: int
) -> list[Example]:
    """Checks the first rows that `sft` trains on; returns their examples."""
    has_bos = check_template(tokenizer, template)
    examples = list(read_examples(rows, seed))
    masked = {n for n, source in enumerate(rows.sources) if source.masked}
    sources = first_rows(rows, seed).source
    chats = [one for one in examples if sources[one.row] in masked]
    for one in chats:
        where = f'dialogue.sources: row {one.row} of the first {len(sources)}'
        if not any(one.trained):
            raise UserError(
                f'{where} has a conversation without a trained token: delete '
                f'{rows.folder} and make it again'
            )
        if has_bos not in (None, one.tokens[0] == tokenizer.bos_id):
            raise UserError(
                f'{where}: a conversation begins {"without" if has_bos else "with"} '
                f'BOS, and the prompts of the model {"with" if has_bos else "without"} '
                f'one: delete {rows.folder} and make it again'
            )
    if chats and not any(ends_a_reply(one, tokenizer, template) for one in chats):
        raise UserError(
            f'data.context={rows.context}: no end of a reply is among the trained '
            f'tokens of {len(chats)} conversations, since all replies are cut, and '
            'the model would never learn to stop: use a longer data.context'
        )
    check_batches(rows, seed)
    return examples


def check_text(rows: PackedDataset, tokenizer, seed: int) -> None:
    """Checks the first rows that `pretrain` trains on."""
    check_padding(tokenizer)
    check_batches(rows, seed)


def check_replies(rows, tokenizer, template: str, field: str) -> None:
    """Checks the `preference_pairs.Row`s of a split: each has a reply to train on."""
    check_template(tokenizer, template)
    empty = sum(len(row.tokens) <= row.prompt_length for row in rows)
    if empty:
        raise UserError(
            f'{field}: {empty} of {len(rows)} replies have no token, so there is '
            'nothing to train on: leave these records out'
        )


def ends_a_reply(example: Example, tokenizer, template: str) -> bool:
    """Whether an end of a reply is trained in an example."""
    _, ends = chat_template.stop_conditions(template, tokenizer)
    kept = [t for t, on in zip(example.tokens, example.trained, strict=True) if on]
    if ends:
        return not {*ends}.isdisjoint(kept)
    return TURN_END.encode() in b''.join(map(tokenizer.bytes_of, kept))


def check_batches(rows: PackedDataset, seed: int) -> None:
    """Refuses a row without a trained token: such a batch has no loss."""
    weights = rows.load(first_rows(rows, seed))['weights']
    empty = np.flatnonzero(weights.sum(axis=1) == 0)
    if len(empty):
        raise UserError(
            f'{rows.folder}: {len(empty)} of the first {len(weights)} rows have no '
            'trained token, and a batch of them no loss: delete the folder and make '
            'it again'
        )


def first_rows(rows: PackedDataset, seed: int):
    """The rows of the first training slots, at most one epoch."""
    return rows.choose_training_rows(seed, np.arange(min(ROWS, rows.num_rows)))


def read_examples(rows: PackedDataset, seed: int) -> Iterator[Example]:
    """Yields the segments of the first rows, from the arrays that the loss gets."""
    batch = rows.load(first_rows(rows, seed))
    for row, segments in enumerate(batch['segments']):
        for number in range(1, segments.max(initial=0) + 1):
            (places,) = np.nonzero(segments == number)
            if not len(places):
                continue
            begin, end = places[0], places[-1] + 1
            tokens = [batch['inputs'][row, begin], *batch['targets'][row, begin:end]]
            trained = [False, *(batch['weights'][row, begin:end] > 0)]
            while (
                len(tokens) > len(places) and not trained[-1]
            ):  # the next BOS, padding
                tokens, trained = tokens[:-1], trained[:-1]
            yield Example(row, [*map(int, tokens)], [*map(bool, trained)])
