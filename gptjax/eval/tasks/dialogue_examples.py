"""What the task `dialogue` asks, and what was answered, to read.

They are those that RUN/dialogue holds out; see gptjax/data/conversations.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.conversations import one_reply_each
from gptjax.eval.tasks import examples
from gptjax.eval.tasks.examples import Item

TRANSCRIPTS = 8  # in the report


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
    chosen = examples.choice_items(replies, settings.choices, settings.seed)
    return [
        with_choices._replace(references=reply.references)
        for reply, with_choices in zip(replies, chosen, strict=True)
    ]


def reply_items(views: Sequence[dict], count: int, seed: int) -> list[Item]:
    """One item of each of `count` conversations: what does the assistant say next?

    Which reply it is, `conversations.one_reply_each` decides.
    """
    return [
        Item(identity, prompt, references=(reply,))
        for identity, prompt, reply in one_reply_each(views, count, seed)
    ]


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
    storage.write_json(path, transcripts)
    return path
