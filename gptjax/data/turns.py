"""Conversations as packed rows of tokens, with a mask of what is trained on.

    RUN/dialogue/train.jsonl, validation.jsonl     see dialogue.py
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

They are read by `packed.PackedSplit`, as the rows of RUN/prepared are.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax import files, progress
from gptjax.data import stage
from gptjax.data.chat import TURN_END, Turn, check_template, encode_turns
from gptjax.data.clean import check_steps
from gptjax.data.dialogue import write_conversations
from gptjax.data.packed import PackedSplit, mixed
from gptjax.data.records import SPLITS
from gptjax.errors import UserError
from gptjax.tokenizer.tokenizer import Tokenizer

SHARD_TOKENS = 2**25  # 64 MiB of uint16
OPEN_ROWS = 64  # that a piece may still fit into

Piece = tuple[list[int], list[bool]]  # tokens, trained


def prepare_dialogue(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/dialogue from `dialogue.sources`; returns its manifest.

    RUN/tokenizer is there already. The manifest counts conversations, views,
    pieces, trained turns and tokens, padding and what was left out or cut, by split
    and source, and holds the size and SHA-256 of every file.

    Raises:
        UserError: a source cannot be used, a split comes out empty, or RUN/dialogue
            is of another config.
    """
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    check_steps(config.data.clean)
    check_template(config.chat.template)
    if config.data.context < 8:
        raise UserError(
            f'data.context={config.data.context}: a turn needs room: give at least 8'
        )
    if not config.dialogue.sources:
        raise UserError('dialogue.sources is empty: name at least one source')
    settings = _settings(config, tokenizer)
    folder = workdir / 'dialogue'
    lines = [f'{split}.jsonl' for split in SPLITS]
    manifest = stage.finished(folder, settings, needs=lines)
    if manifest is not None:
        return manifest

    began = time.monotonic()
    with stage.draft(folder) as path:
        sources = write_conversations(config, workdir, path)
        splits = {
            split: _pack_split(path, split, tokenizer, config) for split in SPLITS
        }
        _refuse_empty_split(splits, config.data.validation_fraction)
        manifest = dict(
            inputs=files.fingerprint(settings),
            settings=settings,
            fingerprint=files.fingerprint(
                [files.sha256_of_file(path / f'{split}.jsonl') for split in SPLITS]
            ),
            context=config.data.context,
            template=config.chat.template,
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.fingerprint,
            specials=tokenizer.specials,
            weights={
                name: source.weight for name, source in config.dialogue.sources.items()
            },
            licences={name: source['licence'] for name, source in sources.items()},
            sources=sources,
            splits=splits,
            seconds=round(time.monotonic() - began, 2),
        )
        files.write_json(path / stage.MANIFEST, manifest)
    return manifest


def open_rows(folder: Path, split: str) -> PackedSplit:
    """The rows of RUN/dialogue."""
    return PackedSplit(folder, split, made_by='sft', section='dialogue')


def training_rows(config: ConfigDict, workdir: Path) -> PackedSplit:
    """What a run trains on: its conversations, and the share of plain text.

    Raises:
        UserError: `sft.pretraining_share` is no share, or the earlier run's rows
            do not fit.
    """
    rows = open_rows(workdir / 'dialogue', 'train')
    share = config.sft.pretraining_share
    check_share(share)
    if not share:
        return rows
    folder = Path(config.start.run) / 'prepared'
    try:
        text = PackedSplit(folder, 'train')
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
    return mixed(rows, text, share)


def check_share(share: float) -> None:
    """Raises UserError where `sft.pretraining_share` is no share."""
    if not 0 <= share < 1:
        raise UserError(f'sft.pretraining_share={share}: use a share from 0 to below 1')


# ---- pieces


def pieces_of(
    turns: list[Turn], bos: int, room: int, counts: Counter
) -> Iterator[Piece]:
    """A conversation as pieces of at most `room` tokens, cut between turns.

    Every piece begins with BOS and the system message, if there is one, and ends
    with a reply: turns that nobody answers are left out. A reply is never cut off
    from the turn that it answers, which begins the next piece instead. A reply that
    is alone too long keeps its beginning, without an end that it did not have there;
    a turn to be answered keeps its end.

    Args:
        turns: of `chat.encode_turns`.
        bos: id of BOS.
        room: T + 1.
        counts: counts `pieces`, `turns` (trained), `cut_turns`, `cut_tokens` (of
            replies), `cut_prompts` (turns to be answered) and `long_system`
            (conversations left out, as their system message takes half the room).
    """
    head, turns = _head(turns, bos)
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
            yield _joined(head, piece)

    for place, turn in enumerate(turns):
        if used + _length(turn) <= room and (piece or not turn.trained or place == 0):
            piece.append(turn)
            used += _length(turn)
            continue
        yield from close()
        before = turns[place - 1] if turn.trained and place else None
        piece = _begin(before, turn, room, counts)
        used = sum(map(_length, piece))
    yield from close()


def _head(turns, bos):
    """(BOS and the system messages at the beginning, the turns after them)."""
    head, number = [bos], 0
    while number < len(turns) and turns[number].system:
        head += turns[number].opening + turns[number].said
        number += 1
    return head, turns[number:]


def _begin(before: Turn | None, turn: Turn, room: int, counts) -> list[Turn]:
    """The first turns of a piece: `turn`, with the one it answers if it answers one."""
    if before is None:
        if _length(turn) <= room:
            return [turn]
        if not turn.trained:
            return []  # its reply brings back what there is room for
        return [_beginning(turn, room, counts)]
    reply = turn
    most = max(room * 3 // 4, room - _length(before))
    if _length(turn) > most:
        reply = _beginning(turn, most, counts)
    context = before._replace(trained=False)
    left = room - _length(reply) - len(context.opening)
    if len(context.said) > left:
        counts['cut_prompts'] += 1
        context = context._replace(said=context.said[len(context.said) - left :])
    return [context, reply]


def _beginning(turn: Turn, size: int, counts) -> Turn:
    """As much of a turn as `size` tokens hold; its end goes."""
    kept = turn.said[: size - len(turn.opening)]
    counts.update(cut_turns=1, cut_tokens=len(turn.said) - len(kept))
    return turn._replace(said=kept)


def _length(turn: Turn) -> int:
    return len(turn.opening) + len(turn.said)


def _joined(head, turns) -> Piece:
    tokens, trained = list(head), [False] * len(head)
    for turn in turns:
        tokens += turn.opening + turn.said
        trained += [False] * len(turn.opening) + [turn.trained] * len(turn.said)
    return tokens, trained


# ---- rows


def _pack_split(folder, split, tokenizer, config) -> dict:
    """Writes the rows of one split; returns its part of the manifest, by source."""
    writers = {}
    path = folder / f'{split}.jsonl'
    with (
        open(path, encoding='utf-8') as lines,
        progress.bar(f'tokenising {split}', path.stat().st_size / 1e6, 'MB') as advance,
    ):
        for line in lines:
            view = json.loads(line)
            name = view['source']
            if name not in writers:
                writers[name] = _SourceWriter(folder / split / name, tokenizer, config)
            writers[name].add(view['id'], view['messages'])
            advance(len(line) / 1e6)
    return {
        name: found
        for name in sorted(writers)
        if (found := writers[name].finish())['rows']
    }


class _SourceWriter:
    """Packs the conversations of one split and source into rows on disk.

    A piece goes into the fullest of the open rows that has room for it, so there is
    little padding, and memory is bounded.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, config: ConfigDict):
        folder.mkdir(parents=True)
        self.folder = folder
        self.tokenizer = tokenizer
        self.template = config.chat.template
        self.size = config.data.context + 1
        self.dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        self.rows_per_shard = max(1, SHARD_TOKENS // self.size)
        self.open = []  # rows: (tokens so far, [(id, tokens, trained), …])
        self.pending = []  # (tokens, trained) of the shard that is being filled
        self.counts = Counter(
            views=0, pieces=0, turns=0, predicted_tokens=0, bytes=0, padding=0, rows=0
        )
        self.shards = 0
        self.starts = []
        self.ids = open(folder / 'documents.jsonl', 'w', encoding='utf-8')

    def add(self, identity: str, messages: list[dict]) -> None:
        turns = encode_turns(messages, self.tokenizer, self.template)
        self.counts['views'] += 1
        for tokens, trained in pieces_of(
            turns, self.tokenizer.bos_id, self.size, self.counts
        ):
            self._put(identity, tokens, trained)

    def finish(self) -> dict:
        """Writes what is left; returns this source's part of the manifest."""
        for _, row in self.open:
            self._close(row)
        self._write_shards(1)
        self.ids.close()
        np.save(self.folder / 'starts.npy', np.array(self.starts, np.int64))
        return dict(
            self.counts,
            rows_per_shard=self.rows_per_shard,
            dtype=np.dtype(self.dtype).name,
            files={
                path.name: {
                    'bytes': path.stat().st_size,
                    'sha256': files.sha256_of_file(path),
                }
                for path in sorted(self.folder.iterdir())
            },
        )

    def _put(self, identity, tokens, trained):
        fitting = [
            (used, place)
            for place, (used, _) in enumerate(self.open)
            if used + len(tokens) <= self.size
        ]
        used, row = self.open.pop(max(fitting)[1]) if fitting else (0, [])
        if len(self.open) == OPEN_ROWS:
            fullest = max(range(OPEN_ROWS), key=lambda place: self.open[place][0])
            self._close(self.open.pop(fullest)[1])
        self.open.append((used + len(tokens), [*row, (identity, tokens, trained)]))
        self.counts['predicted_tokens'] += sum(trained)
        self.counts['bytes'] += self._bytes_of(tokens, trained)

    def _bytes_of(self, tokens, trained) -> int:
        """UTF-8 bytes of what the assistant says, without the ends of its turns."""
        said = b''.join(
            self.tokenizer.bytes_of(token)
            for token, its in zip(tokens, trained, strict=True)
            if its
        )
        # In 'text' the end of a turn is text; within a turn it cannot be.
        ends = said.count(TURN_END.encode()) if self.template == 'text' else 0
        return len(said) - ends * len(TURN_END)

    def _close(self, row):
        """Fixes a row's place in the stream of rows."""
        tokens = np.full(self.size, self.tokenizer.pad_id, self.dtype)
        trained = np.zeros(self.size, bool)
        begin = 0
        for identity, piece, its in row:
            end = begin + len(piece)
            tokens[begin:end], trained[begin:end] = piece, its
            # As many places as inputs stand for a row.
            self.starts.append(self.counts['rows'] * (self.size - 1) + begin)
            self.ids.write(json.dumps(identity) + '\n')
            begin = end
        self.counts.update(rows=1, padding=self.size - begin)
        self.pending.append((tokens, trained))
        if len(self.pending) == self.rows_per_shard:
            self._write_shards(self.rows_per_shard)

    def _write_shards(self, least):
        if len(self.pending) < least:
            return
        for name, arrays in zip(
            ('tokens', 'trained'), zip(*self.pending, strict=True), strict=True
        ):
            np.save(self.folder / f'{name}-{self.shards:05d}.npy', np.stack(arrays))
        self.shards += 1
        self.pending = []


# ---- the manifest


def _settings(config, tokenizer) -> dict:
    """The config fields that decide the rows, as JSON values by their names."""
    settings = {
        f'data.{name}': config.data[name]
        for name in (
            'clean',
            'languages',
            'min_characters',
            'max_characters',
            'max_repetition',
            'validation_fraction',
            'context',
        )
    }
    for source, fields in config.dialogue.sources.items():
        for name, value in fields.items():
            settings[f'dialogue.sources.{source}.{name}'] = value
    settings['chat.template'] = config.chat.template
    settings['tokenizer'] = tokenizer.fingerprint
    return json.loads(json.dumps(settings))  # tuples as lists


def _refuse_empty_split(splits, validation_fraction) -> None:
    for split in SPLITS:
        if not splits[split]:
            change = 'smaller' if split == 'train' else 'larger'
            raise UserError(
                f'data.validation_fraction={validation_fraction} puts no conversation '
                f'with a reply into {split}: use a {change} fraction, or more '
                'conversations in dialogue.sources'
            )
