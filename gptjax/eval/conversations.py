"""What the task `dialogue` asks, and what was answered, to read.

The conversations are those that RUN/dialogue holds out; see gptjax/data/dialogue.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from gptjax import files
from gptjax.data.dialogue import conversation_of
from gptjax.errors import UserError
from gptjax.eval import items
from gptjax.eval.items import Item

TRANSCRIPTS = 8  # in the report
LONGEST_REPLY = 512  # bytes: one monologue would outweigh a hundred replies


def read_items(workdir: Path, settings) -> list[Item]:
    """The items that the settings choose from RUN/dialogue.

    Raises:
        UserError: there are no conversations, or too few different replies.
    """
    path = workdir / 'dialogue' / 'validation.jsonl'
    if not path.exists():
        raise UserError(
            f'--tasks=dialogue: {path} is missing: name a fine-tuned run whose '
            'conversations are asked, as --tasks=dialogue:runs/sft'
        )
    with open(path, encoding='utf-8') as lines:
        views = [json.loads(line) for line in lines]
    replies = reply_items(views, settings.conversations, settings.seed)
    chosen = items.choice_items(replies, settings.choices, settings.seed)
    return [
        with_choices._replace(references=reply.references)
        for reply, with_choices in zip(replies, chosen, strict=True)
    ]


def reply_items(views: Sequence[dict], count: int, seed: int) -> list[Item]:
    """One item of each of `count` conversations: what does the assistant say next?

    The reply is drawn by (seed, the conversation's id) from all that answer a turn,
    in any of its views, and are no longer than LONGEST_REPLY; which conversations
    are taken is drawn the same way, and their order with it. 0: all.

    Args:
        views: dicts with `id` and `messages`; see gptjax/data/dialogue.py.

    Raises:
        UserError: no reply answers anything.
    """
    replies = {}
    for view in views:
        messages = view['messages']
        for place in range(1, len(messages)):
            before, reply = messages[place - 1 : place + 1]
            if (before['role'], reply['role']) == ('user', 'assistant') and len(
                reply['content'].encode()
            ) <= LONGEST_REPLY:
                conversation = conversation_of(view['id'])
                replies.setdefault(conversation, []).append((view, place))
    if not replies:
        raise UserError(
            'RUN/dialogue holds out no conversation with a reply to a user: give more '
            'conversations in dialogue.sources'
        )
    found = []
    for name in sorted(replies, key=lambda name: items.draw(seed, name)):
        its = replies[name]
        view, place = its[items.draw(seed, 'reply', name) % len(its)]
        messages = view['messages']
        reference = messages[place]['content']
        found.append(Item(view['id'], messages[:place], references=(reference,)))
        if len(found) == count:
            break
    return found


def write_transcripts(
    workdir: Path, asked: Sequence[Item], systems: dict[str, dict]
) -> Path:
    """Writes RUN/samples/dialogue.json: the first items, which chance has ordered.

    Args:
        workdir: RUN.
        asked: of `read_items`.
        systems: results of the same items by the names of the models.
    """
    transcripts = [
        dict(
            id=item.id,
            messages=item.prompt,
            reference=item.references[0],
            replies={
                name: {key: found['items'][place][key] for key in ('reply', 'drawn')}
                for name, found in systems.items()
            },
        )
        for place, item in enumerate(asked[:TRANSCRIPTS])
    ]
    path = workdir / 'samples' / 'dialogue.json'
    files.write_json(path, transcripts)
    return path
