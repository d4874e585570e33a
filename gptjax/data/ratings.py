"""What a reward model learns from: conversations with a number each.

    RUN/ratings/train.jsonl, validation.jsonl, test.jsonl
        {"id": "a07e…", "set": "", "messages": [{"role": "user", …}, …], "value": 24,
         "characters": 812, "speakers": ["7208…", "549c…"]}
    RUN/ratings/manifest.json
        counts, hashes, and of chitchat the audit of its ratings

Conversations of one set are compared with each other. chitchat's are all of one set,
'': any two of them are a pair. A user's preference is a set of two, its replies.

The values of chitchat are one of the ratings or their sum, or what people did:

    replied     the first turn alone: did anybody reply? 1 or 0
    continued   the conversation up to some turn: did it go on? 1 or 0; for half of
                them the turn is the last one, for the others one before, drawn

Messages go through the cleaning steps of pretraining that mend a text. The last
speaker is the assistant, as in use, where the reply that is judged comes last.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.core.files import JSON_LINES, list_files
from gptjax.core.hashing import hash_words
from gptjax.data import rating_audit
from gptjax.data.chitchat import RATING_NAMES, ChitchatConversation, read_chitchat
from gptjax.data.cleaning.cleaning_steps import STEPS, read_options, select_transforms
from gptjax.data.documents import assign_split
from gptjax.data.preferences import Preference, read_preferences
from gptjax.data.sources.open_source import describe_files, refuse_changed_files

FIELD = 'reward.preferences'
SPLITS = ('train', 'validation', 'test')
BEHAVIOUR = ('replied', 'continued')


class RatedConversation(NamedTuple):
    """A conversation and its value; a line of RUN/ratings."""

    id: str
    set: str
    messages: list[dict]
    value: float
    characters: int
    speakers: list[str]


def build_ratings(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/ratings; returns its manifest."""
    _check_fractions(config)
    reward, data = config.reward, config.data
    inputs = {
        f'reward.{name}': reward[name]
        for name in ('preferences', 'test_fraction', 'validation_fraction')
    }
    if not reward.preferences:
        inputs['reward.target'] = reward.target
    if reward.target in BEHAVIOUR:
        inputs['seed'] = config.seed
    inputs['data.clean'] = data.clean
    if 'split_sentences' in data.clean:  # the one step here that reads it
        inputs['data.languages'] = data.languages
    return artifact.build(
        workdir / 'ratings',
        inputs,
        lambda folder: _write_ratings(config, folder, workdir / 'datasets'),
        needs=[f'{split}.jsonl' for split in SPLITS],
        check=partial(refuse_changed_files, FIELD, reward.preferences, JSON_LINES),
    )


def describe_ratings(manifest: dict) -> str:
    counts = [
        f'{split["items"]:,} {name}' for name, split in manifest['splits'].items()
    ]
    train = manifest['splits']['train']
    line = f'ratings: {", ".join(counts)}; {train["pairs"]:,} training pairs'
    if 'preferences' in manifest:
        return f'{line}; {manifest["preferences"]["equal"]:,} equal ones skipped'
    return f'{line}, of which {train["equal_pairs"]:,} are equal and skipped'


def describe_audit(manifest: dict) -> str:
    return rating_audit.describe_audit(manifest['audit']) if 'audit' in manifest else ''


RATINGS = artifact.Artifact('ratings', build_ratings, describe_ratings, describe_audit)


def _write_ratings(config: ConfigDict, folder: Path, data_dir: Path) -> dict:
    reward = config.reward

    def split_by(key):
        return assign_three_way_split(
            key, reward.test_fraction, reward.validation_fraction
        )

    by_split = {split: [] for split in SPLITS}
    if reward.preferences:
        source = describe_files(list_files(reward.preferences, JSON_LINES, FIELD))
        preferences, counts = read_preferences(reward.preferences, FIELD)
        for preference in preferences:
            better, worse = (
                _clean(rated, config.data) for rated in _rate_preference(preference)
            )
            if better.messages == worse.messages:
                counts['equal'] += 1
            else:
                by_split[split_by(preference.split_key())] += [better, worse]
        described = dict(preferences=counts, source=source)
    else:
        conversations = read_chitchat(data_dir)
        for conversation in conversations:
            rated = rate_conversation(conversation, reward.target, config.seed)
            if rated:
                by_split[split_by(conversation.id)].append(_clean(rated, config.data))
    splits = {}
    for split, rated in by_split.items():
        splits[split] = _write_split(folder / f'{split}.jsonl', rated)
        _refuse_no_pairs(split, splits[split], reward)
    if not reward.preferences:  # now at least one conversation is usable
        described = dict(audit=rating_audit.audit_ratings(conversations, split_by))
    return dict(
        fingerprint=storage.fingerprint([splits[s]['sha256'] for s in SPLITS]),
        splits=splits,
        **described,
    )


def read_ratings(workdir: Path, split: str) -> list[RatedConversation]:
    """The rated conversations of a split, in order."""
    artifact.require(workdir / 'ratings', 'reward')
    lines = storage.read_jsonl(workdir / 'ratings' / f'{split}.jsonl')
    return [RatedConversation(**line) for line in lines]


def assign_three_way_split(key: str, test: float, validation: float) -> str:
    """'test', 'validation' or 'train', by the hash that splits documents as well.

    A conversation that pretraining held out is in 'test', where `test` is at least
    its data.validation_fraction; 'validation' is the next share by the hash.
    """
    if assign_split(key, test) == 'validation':
        return 'test'
    return assign_split(key, test + validation)


def rate_conversation(
    conversation: ChitchatConversation, target: str, seed: int
) -> RatedConversation | None:
    """The conversation with its value; None where the target has no use for it."""
    turns = conversation.turns
    if target in BEHAVIOUR:
        if not turns or (target == 'continued' and len(turns) < 2):
            return None
        if target == 'replied':
            num_turns = 1
        else:  # all of them, or fewer, by the throw of a coin
            digest = hash_words(f'{seed} {conversation.id}')
            coin, place = digest[0] % 2, int.from_bytes(digest[1:9], 'big')
            num_turns = len(turns) if coin else 1 + place % (len(turns) - 1)
        value = int(num_turns < len(turns))
        turns = turns[:num_turns]
    elif not rating_audit.is_usable(conversation):
        return None
    else:
        names = RATING_NAMES if target == 'sum' else (target,)
        value = sum(conversation.ratings[name] for name in names)
    last, _ = turns[-1]  # whoever speaks last is the assistant
    return RatedConversation(
        id=conversation.id,
        set='',
        messages=[
            dict(role='assistant' if speaker == last else 'user', content=text)
            for speaker, text in turns
        ],
        value=value,
        characters=sum(len(text) for _, text in turns),
        speakers=sorted(conversation.speakers),
    )


def _rate_preference(preference: Preference) -> list[RatedConversation]:
    """A set of two: the chosen reply has the value 1, the rejected one 0."""
    return [
        RatedConversation(
            id=f'{preference.id} {name}',
            set=preference.id,
            messages=messages,
            value=value,
            characters=sum(len(message['content']) for message in messages),
            speakers=[],
        )
        for name, value, messages in zip(
            ('chosen', 'rejected'), (1, 0), preference.conversations(), strict=True
        )
    ]


def _clean(rated: RatedConversation, data: ConfigDict) -> RatedConversation:
    options = read_options(data)
    steps = select_transforms(data.clean)
    messages = []
    for message in rated.messages:
        text = message['content']
        for name in steps:
            text = STEPS[name](text, options)
        messages.append(dict(message, content=text))
    return rated._replace(messages=messages)


def _write_split(path: Path, rated: Sequence[RatedConversation]) -> dict:
    """Writes a split; returns how many conversations and pairs it has."""
    lines = (json.dumps(one._asdict(), ensure_ascii=False) + '\n' for one in rated)
    storage.write_text(path, ''.join(lines))
    set_sizes = Counter(one.set for one in rated)
    equal_sizes = Counter((one.set, one.value) for one in rated)
    return dict(
        items=len(rated),
        pairs=sum(math.comb(n, 2) for n in set_sizes.values()),
        # skipped: neither is the better one
        equal_pairs=sum(math.comb(n, 2) for n in equal_sizes.values()),
        sha256=storage.sha256_of_file(path),
    )


def _refuse_no_pairs(split: str, counts: dict, reward: ConfigDict) -> None:
    if counts['pairs'] > counts['equal_pairs']:
        return
    if not counts['pairs']:
        raise UserError(
            f'reward: the split {split} has {counts["items"]} items and no pair of '
            'them: give more data, or a larger reward.test_fraction or '
            'reward.validation_fraction'
        )
    field = 'reward.preferences' if reward.preferences else 'reward.target'
    raise UserError(
        f'{field}={reward.preferences or reward.target}: all {counts["pairs"]:,} pairs '
        f'of the split {split} have equal ratings: there is nothing to prefer; give '
        'ratings that differ'
    )


def _check_fractions(config: ConfigDict) -> None:
    reward = config.reward
    if reward.test_fraction + reward.validation_fraction >= 1:
        raise UserError(
            f'reward.test_fraction={reward.test_fraction} and '
            f'reward.validation_fraction={reward.validation_fraction} leave nothing to '
            'train on: make one of them smaller'
        )
    if reward.test_fraction < config.data.validation_fraction:
        raise UserError(
            f'reward.test_fraction={reward.test_fraction} is less than '
            f'data.validation_fraction={config.data.validation_fraction}, and would '
            'train on what pretraining held out: use at least as much'
        )
