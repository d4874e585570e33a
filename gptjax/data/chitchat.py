"""chitchat as people had it: who said what in turn, and how they rated it."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.data.chat_template import merge_turns
from gptjax.data.sources.tfds_source import prepare_builder, read_examples

RATING_NAMES = ('witty', 'interesting', 'upbeat')


class ChitchatConversation(NamedTuple):
    """One conversation; lines of one text are messages sent in a row."""

    id: str  # the split goes by it
    turns: tuple[tuple[str, str], ...]  # (speaker, text) in order
    ratings: dict[str, int] | None  # of RATING_NAMES, 1 to 10; None: not rated

    @property
    def speakers(self) -> frozenset[str]:
        return frozenset(speaker for speaker, _ in self.turns)

    @property
    def characters(self) -> int:
        return sum(len(text) for _, text in self.turns)


def read_chitchat(data_dir: Path) -> list[ChitchatConversation]:
    """Every conversation, in order; the dataset is in `data_dir`, or is made there."""
    from gptjax.data.sources.chitchat_builder import UNRATED

    source = ConfigDict(dict(path='chitchat'))
    builder = prepare_builder('reward', source, data_dir)
    examples = read_examples(builder, 'train', ['id', 'messages', 'ratings'])
    conversations = []
    for example in examples:
        sent = zip(
            example['messages']['sender'], example['messages']['text'], strict=True
        )
        turns = merge_turns((sender.decode(), text.decode()) for sender, text in sent)
        ratings = {name: int(example['ratings'][name]) for name in RATING_NAMES}
        if UNRATED in ratings.values():
            ratings = None
        conversations.append(
            ChitchatConversation(example['id'].decode(), turns, ratings)
        )
    return conversations
