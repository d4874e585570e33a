"""Packs conversations into rows of tokens, with a mask of the tokens to train on.

    RUN/dialogue/train.jsonl, validation.jsonl     see conversations.py
    RUN/dialogue/train/chitchat/tokens-00000.npy   rows (n, T + 1)
    RUN/dialogue/train/chitchat/trained-00000.npy  bool, the same shape
    RUN/dialogue/train/chitchat/begins-00000.npy   bool, where segments begin, if BOS
                                                   does not tell it
    RUN/dialogue/train/chitchat/starts.npy, documents.jsonl   see packing.py
    RUN/dialogue/manifest.json

A row has one or more segments, each of them the whole or a part of a conversation and
with a BOS, and then padding. With T = 11 and a conversation of two turns:

    stored     BOS <|user|> a b <|end|> <|assistant|> c d <|end|> PAD PAD PAD
    trained    0   0        0 0 0       0             1 1 1       0   0   0
    targets    <|user|> a b <|end|> <|assistant|> c d <|end|> PAD PAD PAD
    weights    0        0 0 0       0             1 1 1       0   0   0

`PackedDataset` reads them, as it reads RUN/prepared.
"""

import time
from collections import Counter
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.data.chat_template import TURN_END, begins_with_bos, uses_jinja
from gptjax.data.cleaning.cleaning_steps import check_steps, name_reason
from gptjax.data.conversations import SKIPPED, conversation_id, write_conversations
from gptjax.data.cut_conversations import cut_messages
from gptjax.data.documents import (
    cleaning_settings,
    describe_sources,
    refuse_changed_inputs,
    source_settings,
    used_steps,
)
from gptjax.data.packed_dataset import PackedDataset, mix_datasets
from gptjax.data.packing import ShardWriter, name_specials, read_split
from gptjax.data.quality.comparing_steps import describe_steps, list_files_of
from gptjax.data.render_process import RefusedMessages
from gptjax.data.sources.open_source import describe_passed_over
from gptjax.data.sources.records import SPLITS
from gptjax.data.training_checks import check_template
from gptjax.tokenizer.load_tokenizer import AnyTokenizer, load_tokenizer

MAX_OPEN_ROWS = 64  # rows that may still get segments
LONG_SYSTEM = 'long system message'  # why a conversation is skipped
MAX_REFUSALS = 8  # different reasons of a Jinja template that are counted by name
# If a Jinja template refuses the first ones of a split, it is not asked about others.
FIRST_CONVERSATIONS = 1000


def build_dialogue(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/dialogue from `dialogue.sources`; returns the manifest.

    By split and source, the manifest counts conversations, views, segments ('pieces'),
    trained turns and tokens, padding, and what was skipped or cut. It has the size and
    SHA-256 of every file.
    """
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    check_steps(config.data.clean)
    if config.data.context < 8:
        raise UserError(
            f'data.context={config.data.context}: too short for a turn: use at least 8'
        )
    sources = config.dialogue.sources
    if not sources:
        raise UserError('dialogue.sources is empty: name at least one source')
    folder = workdir / 'dialogue'
    inputs = {
        **cleaning_settings(config.data),
        **source_settings('dialogue.sources', sources, config.data, folder),
        'data.context': config.data.context,
        'chat.template': config.chat.template,
        'tokenizer': tokenizer.fingerprint,
    }
    return artifact.build(
        folder,
        inputs,
        lambda folder: _write_dialogue(config, workdir, folder, tokenizer),
        needs=[
            *(f'{split}.jsonl' for split in SPLITS),
            *list_files_of(used_steps('dialogue.sources', sources, config.data)),
        ],
        check=partial(refuse_changed_inputs, 'dialogue.sources', sources),
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
            f'; {total["cut_turns"]:,} of {total["turns"]:,} replies cut to fit '
            f'{room}, which removes {share:.0%} of the tokens of all replies'
        )
    return f'replies: {", ".join(counts)}{cut}{describe_passed_over(manifest)}'


def describe_left_out(manifest: dict) -> str:
    """What was left out of each source and why, a line for each source."""
    reasons = dict(SKIPPED)
    reasons[LONG_SYSTEM] = (
        f'a system message of more than half of data.context={manifest["context"]}'
    )

    def name(why):
        if 'chat template' in why:
            return f'"{why}"'
        return reasons.get(why) or name_reason(why, manifest['settings'])

    def count_left_out(source):
        return {name(why): count for why, count in source['skipped'].items()}

    return console.join_lines(
        *(
            f'{source}: {count:,} conversations in the form {form}'
            for source, described in manifest['sources'].items()
            for form, count in described.get('forms', {}).items()
        ),
        describe_sources(manifest, 'conversations', count_left_out),
    )


DIALOGUE = artifact.Artifact(
    'dialogue', build_dialogue, describe_dialogue, describe_left_out
)


def _write_dialogue(
    config: ConfigDict, workdir: Path, folder: Path, tokenizer: AnyTokenizer
) -> dict:
    began = time.monotonic()
    check_template(tokenizer, config.chat.template)
    with_tools = uses_jinja(tokenizer, config.chat.template)
    sources = write_conversations(config, workdir, folder, with_tools)
    packed = {split: _pack_split(folder, split, tokenizer, config) for split in SPLITS}
    _refuse_empty_split(packed, config.data)
    for by_source in packed.values():
        for name, counts in by_source.items():
            skipped = sources[name]['skipped']
            for why, count in counts.pop('left_out').items():
                skipped[why] = skipped.get(why, 0) + count
    return dict(
        fingerprint=storage.fingerprint(
            [storage.sha256_of_file(folder / f'{split}.jsonl') for split in SPLITS]
        ),
        context=config.data.context,
        template=config.chat.template,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        specials=name_specials(tokenizer),
        weights={n: source.weight for n, source in config.dialogue.sources.items()},
        licences={name: source['licence'] for name, source in sources.items()},
        sources=sources,
        **describe_steps(
            config.data,
            used_steps('dialogue.sources', config.dialogue.sources, config.data),
        ),
        splits={
            split: {n: counts for n, counts in by_source.items() if counts['rows']}
            for split, by_source in packed.items()
        },
        seconds=round(time.monotonic() - began, 2),
    )


def _refuse_empty_split(packed: dict, data: ConfigDict) -> None:
    for split, by_source in packed.items():
        if any(counts['rows'] for counts in by_source.values()):
            continue
        left_out = sum((counts['left_out'] for counts in by_source.values()), Counter())
        num_long = left_out.pop(LONG_SYSTEM, 0)
        if left_out:
            raise _refused(f'all {left_out.total()}', split, left_out)
        if num_long:
            raise UserError(
                f'data.context={data.context}: the system message takes more than half '
                f'of it in all {num_long} conversations of the split {split}: shorten '
                'it, or start from a model with a longer context'
            )


def _refused(which: str, split: str, reasons: Counter) -> UserError:
    ((why, _),) = reasons.most_common(1)
    return UserError(
        f'dialogue.sources: {which} conversations of the split {split} are left out, '
        f'most often because {why}: change the conversations, or start from another '
        'model'
    )


def open_training_dataset(config: ConfigDict, workdir: Path) -> PackedDataset:
    """Opens the training rows of RUN/dialogue, mixed with pretraining text.

    `sft.pretraining_share` is the share of rows that are text of `start.run`.
    """
    rows = PackedDataset(workdir / 'dialogue', 'train', 'sft', 'dialogue')
    share = config.sft.pretraining_share
    if not share:
        return rows
    folder = Path(config.start.run) / 'prepared'
    try:
        text = PackedDataset(folder, 'train')
    except UserError as error:
        raise UserError(f'sft.pretraining_share={share}: {error}') from error
    for field in ('context', 'tokenizer'):
        here, there = str(getattr(rows, field)), str(getattr(text, field))
        if here != there:
            raise UserError(
                f'sft.pretraining_share={share}: {folder} has another {field} '
                f'({there[:12]}, here {here[:12]}): set it to 0, or give '
                f'data.context={text.context}'
            )
    return mix_datasets(rows, text, share)


# ---- Rows


def _pack_split(folder: Path, split: str, tokenizer, config) -> dict:
    """Writes the rows of one split; returns the manifest's entries by source.

    Views that a Jinja template refuses are removed from the split's file, since
    evaluation and reinforcement learning read it too.
    """
    writers, refused, path = {}, [], folder / f'{split}.jsonl'
    for number, view in enumerate(read_split(path)):
        name = view['source']
        if name not in writers:
            writers[name] = _SourceWriter(folder / split / name, tokenizer, config)
        if not writers[name].add(view['id'], view['messages']):
            refused.append(number)
        if len(refused) == number + 1 == FIRST_CONVERSATIONS:
            reasons = sum((writer.left_out for writer in writers.values()), Counter())
            raise _refused(f'the first {len(refused):,}', split, reasons)
    if refused:
        _remove_lines(path, {*refused})
    return {name: writers[name].finish() for name in sorted(writers)}


def _remove_lines(path: Path, numbers: set[int]) -> None:
    draft = path.replace(path.with_suffix('.draft'))
    with open(draft, 'rb') as lines, open(path, 'wb') as file:
        file.writelines(
            line for number, line in enumerate(lines) if number not in numbers
        )
    draft.unlink()


class _SourceWriter:
    """Packs the conversations of one split and source into rows on disk.

    A segment goes into the fullest open row that has room for it. This keeps padding
    small, and the number of open rows bounds the memory.
    """

    def __init__(self, folder: Path, tokenizer: AnyTokenizer, config: ConfigDict):
        self.tokenizer = tokenizer
        self.template = config.chat.template
        self.size = config.data.context + 1
        self.begins_with_bos = begins_with_bos(tokenizer, config.chat.template)
        self.shards = ShardWriter(folder, tokenizer, config.data.context)
        self.open_rows = []  # rows: (tokens so far, [(id, tokens, trained), …])
        self.left_out = Counter()  # conversations, by the reason
        self.last_left_out = ''  # the id of the conversation
        self.counts = Counter(
            views=0, pieces=0, turns=0, predicted_tokens=0, bytes=0, padding=0
        )

    def add(self, identity: str, messages: list[dict]) -> bool:
        """Packs a view; returns whether the template writes it."""
        self.counts['views'] += 1
        try:
            for tokens, trained in cut_messages(
                messages, self.tokenizer, self.template, self.size, self.counts
            ):
                self._add_segment(identity, tokens, trained)
        except RefusedMessages as error:  # before the first segment
            why = str(error)
            if len(self.left_out) >= MAX_REFUSALS and why not in self.left_out:
                why = 'the chat template does not write them, for other reasons'
            self._count_left_out(identity, why)
            return False
        if self.counts.pop('long_system', 0):
            self._count_left_out(identity, LONG_SYSTEM)
        return True

    def finish(self) -> dict:
        """Writes the open rows; returns the manifest's entry."""
        for _, row in self.open_rows:
            self._write_row(row)
        return dict(self.counts, left_out=self.left_out, **self.shards.finish())

    def _count_left_out(self, identity: str, why: str) -> None:
        """Counts a conversation once: its views follow one another."""
        conversation = conversation_id(identity)
        if conversation != self.last_left_out:
            self.left_out[why] += 1
        self.last_left_out = conversation

    def _add_segment(self, identity, tokens, trained):
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
        # The bytes of the assistant's text, without the ends of turns: in the template
        # 'text' these are text, which cannot occur within a turn.
        text = b''.join(map(self.tokenizer.bytes_of, compress(tokens, trained)))
        ends = text.count(TURN_END.encode()) if self.template == 'text' else 0
        self.counts['bytes'] += len(text) - ends * len(TURN_END)

    def _write_row(self, row):
        tokens = np.full((1, self.size), self.tokenizer.pad_id, self.shards.dtype)
        trained, begins = np.zeros((2, 1, self.size), bool)
        # In the stream of rows, a row has as many positions as it has inputs.
        first, starts = self.shards.num_rows * (self.size - 1), []
        begin = 0
        for _, segment_tokens, segment_trained in row:
            end = begin + len(segment_tokens)
            tokens[0, begin:end] = segment_tokens
            trained[0, begin:end] = segment_trained
            starts.append(first + begin)
            begins[0, begin] = True
            begin = end
        self.counts['padding'] += self.size - begin
        self.shards.add_documents([identity for identity, _, _ in row], starts)
        arrays = dict(tokens=tokens, trained=trained)
        if not self.begins_with_bos:
            arrays['begins'] = begins
        self.shards.add_rows(**arrays)
