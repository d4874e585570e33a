"""Batches of rated conversations for the reward model.

A row is one conversation. G rows form a group, and the loss compares each pair of a
group whose values differ (Ouyang et al. 2022, section 3.5: all pairs of one forward
pass). So a batch of B groups has up to B G (G - 1) / 2 pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.chat_template import encode_turns, join_turns, uses_jinja
from gptjax.data.cut_conversations import encode_last_turns
from gptjax.data.packed_dataset import shuffle_epochs
from gptjax.data.ratings import RatedConversation


class EncodedConversation(NamedTuple):
    """The tokens of the last turns of a conversation, as many as fit the context."""

    tokens: np.ndarray  # int32, BOS first, at most `context`
    dropped: int  # turns at the beginning that did not fit
    cut: bool  # the last turn alone was too long, so its beginning was cut off


class Comparisons(NamedTuple):
    """The N rated conversations of a split.

    sets: int (sets, K), which conversations are compared with each other: one set of
        all for chitchat, a set of up to K for each preference or ranking of a user. -1
        stands where a set has fewer.
    margins: float32 (N,), by how much a reward has to be higher than others of its set.
    """

    encoded: list[EncodedConversation]
    values: np.ndarray  # float32 (N,)
    sets: np.ndarray
    margins: np.ndarray | None = None

    def values_of(self, rows: np.ndarray) -> np.ndarray:
        """The values of conversations; NaN for -1, which compares with nothing."""
        return np.where(rows < 0, np.float32(np.nan), self.values[rows])


def encode_end(
    messages: Sequence[dict],
    tokenizer,
    template: str,
    context: int,
    unfinished: bool = False,
) -> EncodedConversation:
    """Encodes the last turns that fit into `context` tokens.

    An `unfinished` last message was cut off, so its turn gets no end.

    The end is kept because the reward judges the last reply. If the last turn alone
    is too long, its last tokens are kept: with context 4

        <bos> <|user|> a <|end|> <|assistant|> b c <|end|> → <bos> b c <|end|>
    """
    if uses_jinja(tokenizer, template):
        tokens, dropped, cut = encode_last_turns(
            messages, tokenizer, context, unfinished
        )
        return EncodedConversation(np.array(tokens, np.int32), dropped, cut)
    turns = encode_turns(messages, tokenizer, template, unfinished)
    head = tokenizer.start_ids
    room = context - len(head)
    kept = len(turns)
    while kept and turns[kept - 1].num_tokens <= room:
        kept -= 1
        room -= turns[kept].num_tokens
    cut = kept == len(turns)
    if cut:
        kept -= 1
    tokens, _ = join_turns([], turns[kept:])
    tokens = [*head, *tokens[len(head) - context :]]
    return EncodedConversation(np.array(tokens, np.int32), kept, cut)


def encode_ratings(
    rated: Sequence[RatedConversation], tokenizer, template: str, context: int
) -> Comparisons:
    sets = {}
    for number, conversation in enumerate(rated):
        sets.setdefault(conversation.set, []).append(number)
    longest = max(map(len, sets.values()))
    margins = np.array([conversation.margin for conversation in rated], np.float32)
    return Comparisons(
        [encode_end(one.messages, tokenizer, template, context) for one in rated],
        np.array([conversation.value for conversation in rated], np.float32),
        np.array([rows + [-1] * (longest - len(rows)) for rows in sets.values()]),
        margins if margins.any() else None,
    )


def choose_groups(
    sets: np.ndarray, num_groups: int, group_size: int, seed: int, step: int
) -> np.ndarray:
    """The conversations (B, G) of a step: a function of these arguments alone.

    If there is one set, groups are drawn from it, and an epoch has every conversation
    once. If there are several, each group is a whole set of `group_size`, and an epoch
    has every set once. Each epoch has another order.
    """
    one_set = len(sets) == 1
    chosen = sets[0] if one_set else np.arange(len(sets))
    per_step = num_groups * group_size if one_set else num_groups
    slots = step * per_step + np.arange(per_step)
    _, drawn = shuffle_epochs(slots, len(chosen), f'{seed} ratings')
    return chosen[drawn].reshape(num_groups, group_size) if one_set else sets[drawn]


def make_comparison_arrays(
    encoded: Sequence[EncodedConversation], rows: np.ndarray, context: int, pad: int
) -> dict[str, np.ndarray]:
    """The model's inputs for the conversations `rows`, int (…); -1 is an empty row.

    Returns:
        inputs, segments, positions: int32 (…, T); segments are 1, and 0 on padding.
        last: int32 (…), the index of the last token.
    """
    inputs = np.full((*rows.shape, context), pad, np.int32)
    segments = np.zeros_like(inputs)
    last = np.zeros(rows.shape, np.int32)
    for place, number in np.ndenumerate(rows):
        if number < 0:
            continue
        tokens = encoded[number].tokens
        inputs[place][: len(tokens)] = tokens
        segments[place][: len(tokens)] = 1
        last[place] = len(tokens) - 1
    positions = np.broadcast_to(np.arange(context, dtype=np.int32), inputs.shape)
    return dict(inputs=inputs, segments=segments, positions=positions, last=last)
