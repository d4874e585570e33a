"""Conversations as packed rows of tokens, with a mask of what is trained on.

    RUN/dialogue/train.jsonl, validation.jsonl     see conversations.py
    RUN/dialogue/train/chitchat/tokens-00000.npy   rows (n, T + 1)
    RUN/dialogue/train/chitchat/trained-00000.npy  bool, the same shape
    RUN/dialogue/train/chitchat/starts.npy, documents.jsonl   what is in which row
    RUN/dialogue/manifest.json

Each row holds whole pieces of conversations, one after another, each from BOS on, and
is padded at its end. With T = 11 and a conversation of two turns:

    stored     BOS <|user|> a b <|end|> <|assistant|> c d <|end|> PAD PAD PAD
    trained    0   0        0 0 0       0             1 1 1       0   0   0
    targets    <|user|> a b <|end|> <|assistant|> c d <|end|> PAD PAD PAD
    weights    0        0 0 0       0             1 1 1       0   0   0

They are read by `PackedDataset`, as the rows of RUN/prepared are.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.data.chat_template import (
    TURN_END,
    Turn,
    check_template,
    encode_turns,
    join_turns,
)
from gptjax.data.cleaning.cleaning_steps import check_steps
from gptjax.data.conversations import write_conversations
from gptjax.data.documents import cleaning_settings, source_settings
from gptjax.data.packed_dataset import PackedDataset, mix_datasets
from gptjax.data.packing import ShardWriter
from gptjax.data.sources.open_source import describe_passed_over, refuse_changed_sources
from gptjax.data.sources.records import SPLITS
from gptjax.tokenizer.tokenizer import Tokenizer

MAX_OPEN_ROWS = 64  # that a piece may still fit into
Piece = tuple[list[int], list[bool]]  # tokens, trained
LONG_SYSTEM = 'long system message'  # why a conversation is skipped


def build_dialogue(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/dialogue from `dialogue.sources`; returns its manifest.

    The manifest counts conversations, views, pieces, trained turns and tokens,
    padding and what was left out or cut, by split and source, and holds the size and
    SHA-256 of every file.
    """
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    check_steps(config.data.clean)
    check_template(config.chat.template)
    if config.data.context < 8:
        raise UserError(
            f'data.context={config.data.context}: a turn needs room: give at least 8'
        )
    sources = config.dialogue.sources
    if not sources:
        raise UserError('dialogue.sources is empty: name at least one source')
    inputs = {
        **cleaning_settings(config.data),
        **source_settings('dialogue.sources', sources),
        'data.context': config.data.context,
        'chat.template': config.chat.template,
        'tokenizer': tokenizer.fingerprint,
    }
    return artifact.build(
        workdir / 'dialogue',
        inputs,
        lambda folder: _write_dialogue(config, workdir, folder, tokenizer),
        needs=[f'{split}.jsonl' for split in SPLITS],
        check=partial(refuse_changed_sources, 'dialogue.sources', sources),
    )


def describe_dialogue(manifest: dict) -> str:
    counts = [
        f'{sum(source["turns"] for source in sources.values()):,} {name}'
        for name, sources in manifest['splits'].items()
    ]
    room = f'data.context={manifest["context"]}'
    total = Counter(turns=0, predicted_tokens=0, cut_turns=0, cut_tokens=0)
    for sources in manifest['splits'].values():
        for source in sources.values():
            total.update({name: source.get(name, 0) for name in total})
    cut = ''
    if total['cut_turns']:
        share = total['cut_tokens'] / (total['cut_tokens'] + total['predicted_tokens'])
        cut = (
            f'; {total["cut_turns"]:,} of {total["turns"]:,} replies cut, {share:.0%} '
            f'of all their tokens, to fit {room}'
        )
    skipped = [source['skipped'] for source in manifest['sources'].values()]
    if num_long := sum(counts.get(LONG_SYSTEM, 0) for counts in skipped):
        cut += (
            f'; {num_long:,} conversations left out, as the system message takes more '
            f'than half of {room}'
        )
    return f'replies: {", ".join(counts)}{cut}{describe_passed_over(manifest)}'


DIALOGUE = artifact.Artifact('dialogue', build_dialogue, describe_dialogue)


def _write_dialogue(
    config: ConfigDict, workdir: Path, folder: Path, tokenizer: Tokenizer
) -> dict:
    began = time.monotonic()
    sources = write_conversations(config, workdir, folder)
    packed = {split: _pack_split(folder, split, tokenizer, config) for split in SPLITS}
    _refuse_empty_split(packed, config.data)
    for by_source in packed.values():
        for name, counts in by_source.items():
            if num_long := counts.pop('long_system', 0):
                skipped = sources[name]['skipped']
                skipped[LONG_SYSTEM] = skipped.get(LONG_SYSTEM, 0) + num_long
    return dict(
        fingerprint=storage.fingerprint(
            [storage.sha256_of_file(folder / f'{split}.jsonl') for split in SPLITS]
        ),
        context=config.data.context,
        template=config.chat.template,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        specials=tokenizer.specials,
        weights={n: source.weight for n, source in config.dialogue.sources.items()},
        licences={name: source['licence'] for name, source in sources.items()},
        sources=sources,
        splits={
            split: {n: counts for n, counts in by_source.items() if counts['rows']}
            for split, by_source in packed.items()
        },
        seconds=round(time.monotonic() - began, 2),
    )


def open_dialogue(folder: Path, split: str) -> PackedDataset:
    """The rows of RUN/dialogue."""
    return PackedDataset(folder, split, stage='sft', section='dialogue')


def open_training_dataset(config: ConfigDict, workdir: Path) -> PackedDataset:
    """What a run trains on: its conversations, and the share of plain text."""
    rows = open_dialogue(workdir / 'dialogue', 'train')
    share = config.sft.pretraining_share
    if not share:
        return rows
    folder = Path(config.start.run) / 'prepared'
    try:
        text = PackedDataset(folder, 'train')
    except UserError as error:
        raise UserError(f'sft.pretraining_share={share}: {error}') from error
    for field, ours, theirs in (
        ('context', rows.context, text.context),
        ('tokenizer', rows.tokenizer, text.tokenizer),
    ):
        if ours != theirs:
            raise UserError(
                f'sft.pretraining_share={share}: {folder} has another {field} '
                f'({str(theirs)[:12]}, here {str(ours)[:12]}): set it to 0, or give '
                f'data.context={text.context}'
            )
    return mix_datasets(rows, text, share)


# ---- rows


def _pack_split(folder, split, tokenizer, config) -> dict:
    """Writes the rows of one split; returns what the manifest says, by source."""
    writers = {}
    path = folder / f'{split}.jsonl'
    size = path.stat().st_size / 1e6
    with (
        open(path, encoding='utf-8') as lines,
        console.progress_bar(f'tokenising {split}', size, 'MB') as advance,
    ):
        for line in lines:
            view = json.loads(line)
            name = view['source']
            if name not in writers:
                writers[name] = _SourceWriter(folder / split / name, tokenizer, config)
            writers[name].add(view['id'], view['messages'])
            advance(len(line) / 1e6)
    return {name: writers[name].finish() for name in sorted(writers)}


class _SourceWriter:
    """Packs the conversations of one split and source into rows on disk.

    A piece goes into the fullest of the open rows that has room for it, so there is
    little padding, and memory is bounded.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, config: ConfigDict):
        self.tokenizer = tokenizer
        self.template = config.chat.template
        self.size = config.data.context + 1
        self.shards = ShardWriter(folder, tokenizer, config.data.context)
        self.open_rows = []  # rows: (tokens so far, [(id, tokens, trained), …])
        self.counts = Counter(
            views=0, pieces=0, turns=0, predicted_tokens=0, bytes=0, padding=0
        )

    def add(self, identity: str, messages: list[dict]) -> None:
        turns = encode_turns(messages, self.tokenizer, self.template)
        self.counts['views'] += 1
        for tokens, trained in cut_conversation(
            turns, self.tokenizer.bos_id, self.size, self.counts
        ):
            self._add_piece(identity, tokens, trained)

    def finish(self) -> dict:
        """Writes what is left; returns what the manifest says of this source."""
        for _, row in self.open_rows:
            self._write_row(row)
        return dict(self.counts, **self.shards.finish())

    def _add_piece(self, identity, tokens, trained):
        fitting = [
            (used, place)
            for place, (used, _) in enumerate(self.open_rows)
            if used + len(tokens) <= self.size
        ]
        used, row = self.open_rows.pop(max(fitting)[1]) if fitting else (0, [])
        if len(self.open_rows) == MAX_OPEN_ROWS:
            fullest = max(
                range(MAX_OPEN_ROWS), key=lambda place: self.open_rows[place][0]
            )
            self._write_row(self.open_rows.pop(fullest)[1])
        self.open_rows.append((used + len(tokens), [*row, (identity, tokens, trained)]))
        self.counts['predicted_tokens'] += sum(trained)
        self.counts['bytes'] += self._count_bytes(tokens, trained)

    def _count_bytes(self, tokens, trained) -> int:
        """UTF-8 bytes of what the assistant says, without the ends of its turns."""
        text = b''.join(map(self.tokenizer.bytes_of, compress(tokens, trained)))
        # In 'text' the end of a turn is text; within a turn it cannot be.
        ends = text.count(TURN_END.encode()) if self.template == 'text' else 0
        return len(text) - ends * len(TURN_END)

    def _write_row(self, row):
        """Fixes a row's place in the stream of rows."""
        tokens = np.full((1, self.size), self.tokenizer.pad_id, self.shards.dtype)
        trained = np.zeros((1, self.size), bool)
        # As many places as inputs stand for a row.
        first, starts = self.shards.num_rows * (self.size - 1), []
        begin = 0
        for _, piece_tokens, piece_trained in row:
            end = begin + len(piece_tokens)
            tokens[0, begin:end] = piece_tokens
            trained[0, begin:end] = piece_trained
            starts.append(first + begin)
            begin = end
        self.counts['padding'] += self.size - begin
        self.shards.add_documents([identity for identity, _, _ in row], starts)
        self.shards.add_rows(tokens=tokens, trained=trained)


# ---- a conversation cut into pieces that fit into a row


def cut_conversation(
    turns: list[Turn], bos: int, room: int, counts: Counter
) -> Iterator[Piece]:
    """A conversation as pieces of at most `room` tokens, cut between turns.

    Every piece begins with BOS and the system message, if there is one, and ends
    with a reply: turns that nobody answers are left out. A reply is never cut off
    from the turn that it answers, which begins the next piece instead. A reply that
    is alone too long keeps its beginning, without an end that it did not have there;
    a turn to be answered keeps its end.

    Args:
        room: T + 1.
        counts: counts `pieces`, `turns` (trained), `cut_turns`, `cut_tokens` (of
            replies), `cut_prompts` (turns to be answered) and `long_system`
            (conversations left out, as their system message takes half the room).
    """
    num_system = next(
        (number for number, turn in enumerate(turns) if not turn.system), len(turns)
    )
    head, _ = join_turns([bos], turns[:num_system])
    turns = turns[num_system:]
    if len(head) > room // 2:
        counts['long_system'] += 1
        return
    room -= len(head)
    piece, used = [], 0

    def close():
        while piece and not piece[-1].trained:
            piece.pop()
        if piece:
            counts.update(pieces=1, turns=sum(turn.trained for turn in piece))
            yield join_turns(head, piece)

    for place, turn in enumerate(turns):
        if used + turn.num_tokens <= room and (piece or not turn.trained or place == 0):
            piece.append(turn)
            used += turn.num_tokens
            continue
        yield from close()
        before = turns[place - 1] if turn.trained and place else None
        piece = _begin_piece(before, turn, room, counts)
        used = sum(turn.num_tokens for turn in piece)
    yield from close()


def _begin_piece(before: Turn | None, turn: Turn, room: int, counts) -> list[Turn]:
    """The first turns of a piece: `turn`, with the one it answers if it answers one."""
    if before is None:
        if turn.num_tokens <= room:
            return [turn]
        if not turn.trained:
            return []  # its reply brings back what there is room for
        return [_cut_end(turn, room, counts)]
    reply = turn
    most = max(room * 3 // 4, room - before.num_tokens)
    if turn.num_tokens > most:
        reply = _cut_end(turn, most, counts)
    context = before._replace(trained=False)
    left = room - reply.num_tokens - len(context.prefix)
    if len(context.content) > left:
        counts['cut_prompts'] += 1
        context = context._replace(
            content=context.content[len(context.content) - left :]
        )
    return [context, reply]


def _cut_end(turn: Turn, size: int, counts) -> Turn:
    """As much of a turn as `size` tokens hold, without its end."""
    kept = turn.content[: size - len(turn.prefix)]
    counts.update(cut_turns=1, cut_tokens=len(turn.content) - len(kept))
    return turn._replace(content=kept)


def _refuse_empty_split(packed, data) -> None:
    for split, by_source in packed.items():
        if any(counts['rows'] for counts in by_source.values()):
            continue
        num_long = sum(counts.get('long_system', 0) for counts in by_source.values())
        if num_long:
            raise UserError(
                f'data.context={data.context}: the system message takes more than half '
                f'of it in all {num_long} conversations of the split {split}: shorten '
                'it, or start from a model with a longer context'
            )
        change = 'smaller' if split == 'train' else 'larger'
        raise UserError(
            f'data.validation_fraction={data.validation_fraction} puts no conversation '
            f'with a reply into {split}: use a {change} fraction, or more '
            'conversations in dialogue.sources'
        )
