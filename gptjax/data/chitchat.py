"""Reads the conversations of chitchat with the ratings that people gave them."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.data.chat_template import merge_turns
from gptjax.data.sources.tfds_source import prepare_builder, read_examples

RATING_NAMES = ('witty', 'interesting', 'upbeat')  # each from 1 to 10
UNRATED = 0  # stands for a missing rating in the dataset


class ChitchatConversation(NamedTuple):
    """One conversation; consecutive messages of one speaker are lines of one turn."""

    id: str  # decides the split
    turns: tuple[tuple[str, str], ...]  # (speaker, text) in order
    ratings: dict[str, int] | None  # by RATING_NAMES; None: not rated

    @property
    def speakers(self) -> frozenset[str]:
        return frozenset(speaker for speaker, _ in self.turns)

    @property
    def characters(self) -> int:
        return sum(len(text) for _, text in self.turns)


def read_chitchat(data_dir: Path) -> list[ChitchatConversation]:
    """Reads every conversation; makes the dataset in `data_dir` if it is missing."""
    builder = prepare_builder('reward', ConfigDict(dict(path='chitchat')), data_dir)
    conversations = []
    for example in read_examples(builder, 'train', ['id', 'messages', 'ratings']):
        senders, texts = (
            [value.decode() for value in example['messages'][name]]
            for name in ('sender', 'text')
        )
        turns = merge_turns(zip(senders, texts, strict=True))
        ratings = {name: int(example['ratings'][name]) for name in RATING_NAMES}
        if UNRATED in ratings.values():
            ratings = None
        conversations.append(
            ChitchatConversation(example['id'].decode(), turns, ratings)
        )
    return conversations
