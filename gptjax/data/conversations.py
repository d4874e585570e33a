"""Conversations to fine-tune on: read, cleaned, without duplicates, in two splits.

    RUN/dialogue/train.jsonl, validation.jsonl
        {"id": "chitchat/a07e…@1", "source": "chitchat", "messages":
         [{"role": "user", "content": "hi"}, {"role": "assistant", "content": …}, …]}

A line is a view of a conversation, in which one speaker is the assistant. If two
people talk (chitchat), there is a view for each of them: `@0` and `@1`. A reply that
gives no loss (weight 0) has `"train": false`.
"""

import json
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
from gptjax.core.files import Advance, replace_surrogates
from gptjax.core.hashing import hash_integer
from gptjax.data.chat_template import conversation_text, merge_turns
from gptjax.data.cleaning.cleaning_steps import (
    COMPARING,
    REPEATED_SPANS,
    StepCount,
    choose_steps,
    clean_text,
    read_options,
    select_transforms,
)
from gptjax.data.documents import list_steps, write_sources
from gptjax.data.quality import comparing_steps
from gptjax.data.quality.comparing_steps import Comparisons
from gptjax.data.sources.file_source import read_messages
from gptjax.data.sources.open_source import describe_source_files, list_source_files
from gptjax.data.sources.record_fields import to_plain
from gptjax.data.sources.records import (
    OTHER_LICENCE,
    TOOL_FIELDS,
    Licences,
    Source,
    open_with_ids,
    record_messages,
)
from gptjax.data.sources.tfds_source import (
    count_examples,
    describe_dataset,
    prepare_builder,
    read_feature,
)
from gptjax.data.splits import Part, SplitWriter

VIEW = re.compile(r'@[0-9]+\Z')  # the end of a view's id
UNTRAINED = 'assistant without loss'  # a speaker: replies that are not learned
# Why a conversation is left out, as the manifest names it and as the user reads it.
SKIPPED = {
    'empty': 'no text',
    'no assistant turn': 'no message of the assistant',
    'one speaker': 'only one speaker',
}
MAX_REPLY_BYTES = 512  # longer replies would dominate every average


class ToolSpeaker(NamedTuple):
    """Who calls a tool, or a tool; with further fields of the message, as JSON."""

    role: str
    fields: str


class Conversation(NamedTuple):
    """One conversation. Its id is that of the source, and decides the split."""

    id: str
    messages: Sequence[tuple[str, str]]  # (speaker, text) in order
    assistants: tuple[str, ...]  # speakers; each is the assistant of one view
    licence: str = ''  # of its record


def write_conversations(
    config: ConfigDict, workdir: Path, folder: Path, with_tools: bool = False
) -> dict:
    """Writes the views of all conversations; returns counts and licences by source.

    Cleaning steps that change text run on each message, so what pretraining masks of a
    dataset is masked here; chat files have no steps by default. Steps that drop
    documents see the conversation as one text.
    """
    sources = config.dialogue.sources
    steps_of = list_steps('dialogue.sources', sources, config.data)
    comparing_steps.print_contaminated('dialogue.sources', steps_of, config.data)
    # Those that compare run last here.
    order = [sorted(s, key=lambda step: step in COMPARING) for s in steps_of.values()]
    licences = Licences(config.data.licences)
    licences.check_sources('dialogue.sources', sources)
    with Comparisons(config.data, order, folder) as comparisons:
        return write_sources(
            sources,
            SplitWriter(folder, config.data.validation_fraction, _cut_views),
            lambda name, source: open_conversations(
                name, source, workdir / 'datasets', with_tools, licences
            ),
            partial(_write_source, config, comparisons, licences),
        )


def _write_source(
    config, comparisons: Comparisons, licences: Licences, name, source: Source, write
) -> dict:
    data = config.data
    source_config = config.dialogue.sources[name]
    field = f'dialogue.sources.{name}'
    clean = choose_steps(field, source_config, data)
    # A cut of repeated spans would change who answers what.
    counts = {step: StepCount() for step in clean if step != REPEATED_SPANS}
    read, skipped = Counter(conversations=0, messages=0), Counter()
    is_empty = True
    with console.progress_bar(f'dialogue {name}', source.total, source.unit) as advance:
        for conversation in source.read(advance):
            read.update(conversations=1, messages=len(conversation.messages))
            conversation = _clean(conversation, data, counts)
            compare = partial(comparisons.compare, source=name)
            reason = _reason_to_skip(conversation, data, counts, compare)
            if reason:
                skipped[reason] += 1
                continue
            views = [
                dict(id=f'{name}/{identity}', source=name, messages=messages)
                for identity, messages in make_views(conversation)
            ]
            write(_make_part(conversation.id, views))
            is_empty = False
    left_out = licences.count_left_out(field)
    skipped.update(left_out)
    read.update(conversations=left_out.get(OTHER_LICENCE, 0))
    if is_empty:
        raise UserError(
            f'dialogue.sources.{name}.path={source_config.path}: none '
            f'of the {read["conversations"]} conversations is left ({dict(skipped)}): '
            'give a source in which the assistant answers'
        )
    return dict(
        read=dict(read),
        steps={step: asdict(count) for step, count in counts.items()},
        skipped=dict(skipped),
        **licences.describe(field, source_config),
    )


def _make_part(key: str, views: list[dict]) -> Part:
    return Part(key, views, dict(conversations=1, views=len(views)))


def _cut_views(part: Part) -> list[Part]:
    """Cuts the only conversation in two, so that one can be held out.

    It is cut before a message of the user, in the middle of those where both parts have
    a reply. The system message is in both parts. Without such a message: [].
    """
    cut = [_cut_messages(view['messages']) for view in part.records]
    if not all(cut):
        return []
    return [
        _make_part(
            f'{part.key}.{number}',
            [
                dict(view, id=_number_view(view['id'], number), messages=halves[number])
                for view, halves in zip(part.records, cut, strict=True)
            ],
        )
        for number in range(2)
    ]


def _cut_messages(messages: list[dict]) -> tuple[list[dict], list[dict]] | None:
    roles = [
        message['role'] if message.get('train', True) else '' for message in messages
    ]
    head = [message for message in messages if message['role'] == 'system']
    places = [
        place
        for place, role in enumerate(roles)
        if role == 'user'
        and 'assistant' in roles[:place]
        and 'assistant' in roles[place:]
        and roles[place - 1] in ('assistant', '')
    ]
    if not places:
        return None
    place = places[len(places) // 2]
    rest = [message for message in messages[place:] if message['role'] != 'system']
    return messages[:place], head + rest


def _number_view(view_id: str, number: int) -> str:
    """'chitchat/a07e@1' → 'chitchat/a07e.0@1'"""
    name = conversation_id(view_id)
    return f'{name}.{number}{view_id.removeprefix(name)}'


def make_views(conversation: Conversation) -> Iterator[tuple[str, list[dict]]]:
    """Yields (id, messages of `role` and `content`) for each assistant."""
    # An id that already ends like '@3' is numbered, too: `conversation_id` cuts it off.
    numbered = len(conversation.assistants) > 1 or VIEW.search(conversation.id)
    for number, assistant in enumerate(conversation.assistants):
        identity = f'{conversation.id}@{number}' if numbered else conversation.id
        roles = {assistant: 'assistant', 'system': 'system', UNTRAINED: 'assistant'}
        messages = [
            _make_message(speaker, text, roles)
            for speaker, text in conversation.messages
        ]
        yield identity, messages


def _make_message(speaker, text: str, roles: dict[str, str]) -> dict:
    if isinstance(speaker, ToolSpeaker):
        untrained = speaker.role == UNTRAINED
        message = dict(role=roles.get(speaker.role, speaker.role), content=text)
        message |= json.loads(speaker.fields)
    else:
        untrained = speaker == UNTRAINED
        message = dict(role=roles.get(speaker, 'user'), content=text)
    return message | (dict(train=False) if untrained else {})


def conversation_id(view_id: str) -> str:
    """The id of a view's conversation: 'chitchat/a07e@1' → 'chitchat/a07e'."""
    return VIEW.sub('', view_id)


def choose_replies(
    views: Sequence[dict], count: int, seed: int
) -> list[tuple[str, list[dict], str]]:
    """Draws one assistant reply from each of `count` conversations; 0: from all.

    A reply can be drawn if it answers a user's message, in any view, gives a loss in
    training, and has at most MAX_REPLY_BYTES. Hashes of (seed, conversation id) decide
    which replies and which conversations are drawn, and their order.

    Args:
        views: lines of RUN/dialogue.

    Returns:
        (view id, messages before the reply, text of the reply) of each.
    """
    replies = {}
    for view in views:
        messages = view['messages']
        for place in range(1, len(messages)):
            before, reply = messages[place - 1 : place + 1]
            if (
                (before['role'], reply['role']) == ('user', 'assistant')
                and reply.get('train', True)
                and not reply.get('tool_calls')
                and len(reply['content'].encode()) <= MAX_REPLY_BYTES
            ):
                name = conversation_id(view['id'])
                replies.setdefault(name, []).append((view, place))
    if not replies:
        raise UserError(
            'dialogue.sources: no held-out conversation of RUN/dialogue has a reply to '
            'a user: give more conversations'
        )
    names = sorted(replies, key=lambda name: hash_integer(seed, name))
    chosen = []
    for name in names[: count or None]:
        candidates = replies[name]
        view, place = candidates[hash_integer(seed, 'reply', name) % len(candidates)]
        messages = view['messages']
        chosen.append((view['id'], messages[:place], messages[place]['content']))
    return chosen


def _clean(conversation, data, counts) -> Conversation:
    """Cleans each message, and drops messages that are or become empty.

    Without steps, white space around a message stays too, as the server keeps it.
    """
    steps, options = select_transforms([*counts]), read_options(data)
    cleaned = (
        (speaker, clean_text(text, steps, options, counts) or '')
        for speaker, text in conversation.messages
        if isinstance(speaker, ToolSpeaker) or (text and not text.isspace())
    )
    messages = [
        (speaker, text.strip() if counts else text)
        for speaker, text in cleaned
        if text or isinstance(speaker, ToolSpeaker)
    ]
    return conversation._replace(messages=messages)


def _reason_to_skip(conversation, data, counts, compare) -> str | None:
    """Why the conversation is left out, as the manifest names it; None: it is kept."""
    speakers = {speaker for speaker, _ in conversation.messages}
    if not conversation.messages:
        return 'empty'
    if not speakers & {*conversation.assistants}:
        return 'no assistant turn'
    if len(speakers) < 2:
        return 'one speaker'
    text = conversation_text(conversation.messages)
    transforms, options = select_transforms([*counts]), read_options(data)
    for name in counts:
        if name in COMPARING:
            prepared = comparing_steps.prepare_text(name, text, options)
            found = dict(text=text, prepared=prepared, count=counts[name])
            dropped = compare(name, identity=conversation.id, **found) is None
        else:
            dropped = name not in transforms and (
                clean_text(text, [name], options, counts) is None
            )
        if dropped:
            return name
    return None


# ---- Sources


def open_conversations(
    name: str,
    source: ConfigDict,
    data_dir: Path,
    with_tools: bool = False,
    licences: Licences | None = None,
) -> Source:
    """Opens a source of `dialogue.sources`; `read(advance)` yields `Conversation`s.

    'chat' is users' files, in any form of record_forms.py. 'tfds' is a dataset with the
    feature `messages` or `utterances`: see `_make_tfds_reader`.
    """
    field = f'dialogue.sources.{name}'
    opened = open_with_ids(field, source, partial(_open, field, data_dir, with_tools))

    licences, stated = licences or Licences(), opened.description['licence']
    licences.check(field, source, stated)

    def read_up_to_limit(advance: Advance) -> Iterator[Conversation]:
        for conversation in islice(opened.read(advance), source.limit or None):
            if licences.allow(field, conversation.licence or stated):
                yield conversation

    return opened._replace(read=read_up_to_limit)


def _open(field: str, data_dir: Path, with_tools: bool, source: ConfigDict) -> Source:
    if source.kind == 'chat':
        paths = list_source_files('chat', source.path, f'{field}.path')
        description = describe_source_files(field, source, paths)
        description['forms'] = forms = Counter()  # of the records, as they are read
        read = partial(_read_files, field, source, paths, with_tools, forms)
        return Source(read, description['bytes'], 'bytes', description)
    if source.kind == 'tfds':
        builder = prepare_builder(field, source, data_dir)
        total = count_examples(field, source, builder)
        read = _make_tfds_reader(field, source, builder)
        description = describe_dataset(source, builder)
        return Source(read, total, 'conversations', description)
    raise UserError(
        f"{field}.kind={source.kind}: conversations are read from 'chat' files or "
        "'tfds'"
    )


def _read_files(field, source, paths, with_tools, forms, advance):
    forms.clear()
    for file in paths:
        has_reply, number = False, 0
        records = read_messages(field, source, [file], advance, '', with_tools, forms)
        for identity, _, messages, licence in records:
            turns = _turns_of(messages)
            number += 1
            has_reply |= any(role == 'assistant' for role, _ in turns)
            identity = replace_surrogates(identity)
            yield Conversation(identity, turns, ('assistant',), licence)
        if not has_reply:
            raise UserError(
                f'{field}.path={file.path}: none of its {number} conversations has a '
                'message of the role assistant: give files with replies to learn from'
            )


def _make_tfds_reader(field, source, builder):
    """Returns `read(advance)` for a dataset; the features decide how it is read.

    messages with role and content    as in chat files
    messages with sender and text     (chitchat) consecutive messages of a sender are
                                      one turn; there is a view for each sender
    utterances                        (chatterbot) user and assistant take turns
    """
    features = builder.info.features
    inner = features['messages'] if 'messages' in features else {}
    inner = getattr(inner, 'feature', inner)
    has_roles = 'role' in inner and 'content' in inner
    has_senders = 'sender' in inner and 'text' in inner
    if not (has_roles or has_senders or 'utterances' in features):
        raise UserError(
            f'{field}.path={source.path}: has no feature `messages` with role and '
            f'content, it has {", ".join(features)}: give a dataset of conversations'
        )
    name = 'messages' if has_roles or has_senders else 'utterances'

    def read(advance):
        for identity, location, value, licence in read_feature(
            field, source, builder, name, advance
        ):
            assistants = ('assistant',)
            value = to_plain(value)
            if has_roles:
                record = dict(messages=value)
                turns = _turns_of(record_messages(record, 'messages', location))
            elif has_senders:
                turns = merge_turns((one['sender'], one['text']) for one in value)
                assistants = tuple(dict.fromkeys(sender for sender, _ in turns))
            else:
                turns = list(zip(cycle(('user', 'assistant')), value, strict=False))
            yield Conversation(identity, turns, assistants, licence)

    return read


def _turns_of(messages: list[dict]) -> list[tuple[str, str]]:
    """(speaker, text) of messages of `record_messages`."""
    turns = []
    for message in messages:
        speaker = message['role'] if message.get('train', True) else UNTRAINED
        fields = {n: value for n, value in message.items() if n in TOOL_FIELDS}
        if fields or speaker == 'tool':
            speaker = ToolSpeaker(speaker, json.dumps(fields))
        turns.append((speaker, message['content']))
    return turns
