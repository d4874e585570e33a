"""Batches of rated conversations: which are compared in a step, and their arrays.

A row is a conversation, cut so that its end fits; G rows are a group, and within a
group each pair of unequal value is compared (Ouyang et al. 2022, section 3.5: all
pairs of one forward pass). So B groups give up to B G (G - 1) / 2 pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.chat_template import encode_conversation
from gptjax.data.packed_dataset import shuffle_epochs
from gptjax.data.ratings import RatedConversation


class EncodedConversation(NamedTuple):
    """A conversation's tokens, and what of it was left out."""

    tokens: np.ndarray  # int32, from BOS on, at most the context
    dropped: int  # turns at its beginning that did not fit
    cut: bool  # the last turn alone was too long: its beginning went


class Comparisons(NamedTuple):
    """The N rated conversations of a split.

    sets: int (sets, K): those that are compared with each other. chitchat is one set
        of all; users' preferences are many of two.
    """

    encoded: list[EncodedConversation]
    values: np.ndarray  # float32 (N,)
    sets: np.ndarray


def encode_end(
    messages: Sequence[dict], tokenizer, template: str, context: int
) -> EncodedConversation:
    """The last turns that fit into `context` tokens, as it is the end that is judged.

    Of a last turn that is too long alone, its end.
    """
    turns, room = [], context - 1
    for message in reversed(messages):
        tokens, _ = encode_conversation([message], tokenizer, template)
        turn = tokens[1:]  # without BOS
        if len(turn) > room:
            break
        turns.append(turn)
        room -= len(turn)
    cut = not turns
    if cut:
        turns.append(turn[-(context - 1) :])
    tokens = [tokenizer.bos_id, *(t for turn in reversed(turns) for t in turn)]
    return EncodedConversation(
        np.array(tokens, np.int32), len(messages) - len(turns), cut
    )


def encode_ratings(
    rated: Sequence[RatedConversation], tokenizer, template: str, context: int
) -> Comparisons:
    """The comparisons among the rated conversations of a split."""
    sets = {}
    for number, conversation in enumerate(rated):
        sets.setdefault(conversation.set, []).append(number)
    return Comparisons(
        [encode_end(one.messages, tokenizer, template, context) for one in rated],
        np.array([conversation.value for conversation in rated], np.float32),
        np.array(list(sets.values())),
    )


def choose_groups(
    sets: np.ndarray, num_groups: int, group_size: int, seed: int, step: int
) -> np.ndarray:
    """The conversations (B, G) of a step: a function of these arguments alone.

    Each epoch has every conversation (of one set of all) or every set (of many) once,
    in an order of its own. Of many sets, `group_size` is their size.
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
    """What the model reads of the conversations `rows`, int (…); -1 is padding.

    Returns:
        inputs, segments, positions: int32 (…, T); segments are 1, and 0 on padding.
        last: int32 (…), the place of the last token.
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
