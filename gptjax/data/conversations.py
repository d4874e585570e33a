"""Conversations to fine-tune on: read, cleaned, without duplicates, split in two.

    RUN/dialogue/train.jsonl, validation.jsonl
        {"id": "chitchat/a07e…@1", "source": "chitchat", "messages":
         [{"role": "user", "content": "hi"}, {"role": "assistant", "content": …}, …]}

A line is a view of a conversation: one speaker is the assistant. Where two people
talk (chitchat) each of them is it once, in the views `@0` and `@1`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.core.console import UserError
from gptjax.core.files import Advance, list_files
from gptjax.core.hashing import hash_integer
from gptjax.data.chat_template import ROLES, conversation_text, merge_turns
from gptjax.data.cleaning.cleaning_steps import (
    DROP_DUPLICATES,
    StepCount,
    clean_text,
    is_duplicate,
    read_options,
    select_transforms,
)
from gptjax.data.documents import Write, assign_split, write_sources
from gptjax.data.sources.file_source import read_messages
from gptjax.data.sources.open_source import SUFFIXES, describe_source_files
from gptjax.data.sources.records import SPLITS, Source, record_id, replace_surrogates
from gptjax.data.sources.tfds_source import (
    count_examples,
    describe_dataset,
    prepare_builder,
    read_examples,
)

VIEW = re.compile(r'@[0-9]+\Z')  # the end of a view's id
MAX_REPLY_BYTES = 512  # one monologue would outweigh a hundred replies


class Conversation(NamedTuple):
    """What was said. The id is the source's: the split goes by it."""

    id: str
    messages: Sequence[tuple[str, str]]  # (speaker, text) in order
    assistants: tuple[str, ...]  # each is the assistant in a view of its own


def write_conversations(config: ConfigDict, workdir: Path, folder: Path) -> dict:
    """Writes the views of all conversations; returns counts and licences by source.

    The steps of `data.clean` that change text are taken on each message, so what
    pretraining masks is masked here too. Those that drop documents judge the
    conversation as a whole, as pretraining did.
    """
    return write_sources(
        config.dialogue.sources,
        folder,
        lambda name, source: open_conversations(name, source, workdir / 'datasets'),
        partial(_write_source, config, set()),
    )


def _write_source(config, seen: set[bytes], name, source: Source, write: Write) -> dict:
    data = config.data
    counts = {step: StepCount() for step in data.clean}
    read, skipped = Counter(conversations=0, messages=0), Counter()
    splits = {split: Counter(conversations=0, views=0) for split in SPLITS}
    with console.progress_bar(f'dialogue {name}', source.total, source.unit) as advance:
        for conversation in source.read(advance):
            read.update(conversations=1, messages=len(conversation.messages))
            conversation = _clean(conversation, data, counts)
            reason = _reason_to_skip(conversation, data, counts, seen)
            if reason:
                skipped[reason] += 1
                continue
            split = assign_split(conversation.id, data.validation_fraction)
            splits[split]['conversations'] += 1
            for identity, messages in make_views(conversation):
                view = dict(id=f'{name}/{identity}', source=name, messages=messages)
                write(split, view)
                splits[split]['views'] += 1
    if not sum(count['views'] for count in splits.values()):
        raise UserError(
            f'dialogue.sources.{name}.path={config.dialogue.sources[name].path}: no '
            f'conversation is left of {read["conversations"]} ({dict(skipped)}): give '
            'a source in which the assistant answers'
        )
    return dict(
        read=dict(read),
        steps={step: asdict(count) for step, count in counts.items()},
        skipped=dict(skipped),
        splits={split: dict(count) for split, count in splits.items()},
    )


def make_views(conversation: Conversation) -> Iterator[tuple[str, list[dict]]]:
    """(id, messages of `role` and `content`) for each assistant."""
    # An id that ends like a view's is numbered as well, for `conversation_id`.
    numbered = len(conversation.assistants) > 1 or VIEW.search(conversation.id)
    for number, assistant in enumerate(conversation.assistants):
        identity = f'{conversation.id}@{number}' if numbered else conversation.id
        roles = {assistant: 'assistant', 'system': 'system'}
        messages = [
            dict(role=roles.get(speaker, 'user'), content=text)
            for speaker, text in conversation.messages
        ]
        yield identity, messages


def conversation_id(view_id: str) -> str:
    """The id of the conversation that a view is of."""
    return VIEW.sub('', view_id)


def choose_replies(
    views: Sequence[dict], count: int, seed: int
) -> list[tuple[str, list[dict], str]]:
    """(view id, messages before, reply) of one assistant reply of each conversation.

    The reply is drawn by (seed, the conversation's id) from all that answer a user's
    message, in any of its views, and are no longer than MAX_REPLY_BYTES. Which `count`
    conversations are taken is drawn the same way, and their order with it; 0: all.
    `views` are lines of RUN/dialogue.
    """
    replies = {}
    for view in views:
        messages = view['messages']
        for place in range(1, len(messages)):
            before, reply = messages[place - 1 : place + 1]
            if (before['role'], reply['role']) == ('user', 'assistant') and len(
                reply['content'].encode()
            ) <= MAX_REPLY_BYTES:
                name = conversation_id(view['id'])
                replies.setdefault(name, []).append((view, place))
    if not replies:
        raise UserError(
            'RUN/dialogue holds out no conversation with a reply to a user: give more '
            'conversations in dialogue.sources'
        )
    chosen = []
    for name in sorted(replies, key=lambda name: hash_integer(seed, name)):
        candidates = replies[name]
        number = hash_integer(seed, 'reply', name) % len(candidates)
        view, place = candidates[number]
        messages = view['messages']
        chosen.append((view['id'], messages[:place], messages[place]['content']))
        if len(chosen) == count:
            break
    return chosen


def _clean(conversation, data, counts) -> Conversation:
    """The conversation with each message cleaned, without those that end empty."""
    steps, options = select_transforms(data.clean), read_options(data)
    cleaned = (
        (speaker, clean_text(text, steps, options, counts))
        for speaker, text in conversation.messages
        if text and not text.isspace()
    )
    messages = [(speaker, text.strip()) for speaker, text in cleaned if text]
    return conversation._replace(messages=messages)


def _reason_to_skip(conversation, data, counts, seen) -> str | None:
    """Why the conversation is left out, for the manifest; None: it stays."""
    speakers = {speaker for speaker, _ in conversation.messages}
    if not conversation.messages:
        return 'empty'
    if not speakers & {*conversation.assistants}:
        return 'no assistant turn'
    if len(speakers) < 2:
        return 'one speaker'
    text = conversation_text(conversation.messages)
    transforms = select_transforms(data.clean)
    for name in data.clean:
        if name == DROP_DUPLICATES:
            dropped = is_duplicate(text, seen, counts[name])
        else:
            dropped = name not in transforms and (
                clean_text(text, [name], read_options(data), counts) is None
            )
        if dropped:
            return name
    return None


# ---- sources


def open_conversations(name: str, source: ConfigDict, data_dir: Path) -> Source:
    """Finds a source of `dialogue.sources`; `read(advance)` yields `Conversation`s.

    | kind   | what it reads                                                  |
    |--------|----------------------------------------------------------------|
    | 'chat' | users' files, JSON Lines with `messages` of `role`, `content`  |
    | 'tfds' | a dataset with the feature `messages` or, as our builders have |
    |        | them, `utterances`; see `_make_tfds_reader`                    |
    """
    field = f'dialogue.sources.{name}'
    if source.kind == 'chat':
        paths = list_files(source.path, SUFFIXES['chat'], f'{field}.path')
        description = describe_source_files(field, source, paths)
        total, unit = description['bytes'], 'bytes'
        read = partial(_read_files, field, source, paths)
    elif source.kind == 'tfds':
        builder = prepare_builder(field, source, data_dir)
        description = describe_dataset(source, builder)
        total, unit = count_examples(field, source, builder), 'conversations'
        read = _make_tfds_reader(field, source, builder)
    else:
        raise UserError(
            f"{field}.kind={source.kind}: conversations are read from 'chat' files or "
            "'tfds'"
        )

    def read_some(advance: Advance) -> Iterator[Conversation]:
        return islice(read(advance), source.limit or None)

    return Source(read_some, total, unit, description)


def _read_files(field, source, paths, advance) -> Iterator[Conversation]:
    """Users' files. Messages stay apart as they were written."""
    for file in paths:
        answered = number = 0
        for identity, location, messages in read_messages(
            field, source, [file], advance
        ):
            turns = [(m['role'], replace_surrogates(m['content'])) for m in messages]
            _check_roles(turns, location)
            number += 1
            answered += any(role == 'assistant' for role, _ in turns)
            yield Conversation(replace_surrogates(identity), turns, ('assistant',))
        if not answered:
            raise UserError(
                f'{field}.path={file.path}: none of its {number} conversations has a '
                'message of the role assistant: give files with replies to learn from'
            )


def _make_tfds_reader(field, source, builder):
    """What reads a dataset: by the features that it has.

    `messages` with `role` and `content` are as in chat files. With `sender` and
    `text` (chitchat) what one sender says in a row is one turn, its messages on
    lines of their own, and each sender is the assistant in turn. Of `utterances`
    (chatterbot) the second, fourth … are the assistant's.
    """
    features = builder.info.features
    inner = features['messages'] if 'messages' in features else {}
    inner = getattr(inner, 'feature', inner)
    if 'role' in inner and 'content' in inner:
        name, keys = 'messages', ('role', 'content')
    elif 'sender' in inner and 'text' in inner:
        name, keys = 'messages', ('sender', 'text')
    elif 'utterances' in features:
        name, keys = 'utterances', ()
    else:
        raise UserError(
            f'{field}.path={source.path}: has no feature `messages` with role and '
            f'content, it has {", ".join(features)}: give a dataset of conversations'
        )
    id_field = source.id_field or 'id'
    chosen = [name, id_field] if id_field in features else [name]

    def read(advance):
        examples = read_examples(builder, source.split, chosen)
        for place, example in enumerate(examples):
            location = f'{field}.path={source.path}: example {place}'
            identity = record_id(
                example, field, source, location, f'{source.split}#{place}'
            )
            assistants = ('assistant',)
            if keys:
                columns = (_texts(example[name][key]) for key in keys)
                turns = list(zip(*columns, strict=True))
            else:
                turns = list(
                    zip(
                        cycle(('user', 'assistant')),
                        _texts(example[name]),
                        strict=False,
                    )
                )
            if 'sender' in keys:
                turns = merge_turns(turns)
                assistants = tuple(dict.fromkeys(sender for sender, _ in turns))
            else:
                _check_roles(turns, location)
            yield Conversation(identity, turns, assistants)
            advance(1)

    return read


def _check_roles(turns, location):
    for place, (role, _) in enumerate(turns):
        if role not in ROLES:
            fix = ''
            if role in ('tool', 'function'):
                fix = '; what a tool said belongs into a message of the user, or '
                fix += 'leave this out'
            raise UserError(
                f'{location}: messages[{place}].role={role!r}: use {", ".join(ROLES)}'
                f'{fix}'
            )


def _texts(values) -> list[str]:
    return [value.decode('utf-8', errors='replace') for value in values]
