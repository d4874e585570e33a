"""Conversations with a value each, from which the reward model learns.

    RUN/ratings/train.jsonl, validation.jsonl, test.jsonl
        {"id": "a07e…", "set": "", "messages": [{"role": "user", …}, …], "value": 24,
         "characters": 812, "speakers": ["7208…", "549c…"]}
    RUN/ratings/manifest.json
        counts and hashes; for chitchat also the audit of its ratings

Conversations of one set are compared with each other. All conversations of chitchat
are in the set '', so any two are a pair. A user's preference is a set of two replies.

For chitchat, `reward.target` is a rating, the 'sum' of the ratings, or a behaviour:

    replied     of the first turn alone: 1 if somebody replied, else 0
    continued   of the first turns: 1 if the conversation went on after them, else 0.
                For a random half these are all turns, else a random smaller number

The steps of `data.clean` that change text run on each message of chitchat, those of
`reward.clean` on users' pairs, by default none: replies are scored as written. The last
speaker is the assistant, because the reward model judges the last reply.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_words
from gptjax.data import rating_audit
from gptjax.data.chitchat import RATING_NAMES, ChitchatConversation, read_chitchat
from gptjax.data.cleaning.cleaning_steps import (
    STEPS,
    choose_steps,
    expand_groups,
    read_options,
    select_transforms,
)
from gptjax.data.preferences import (
    Ranking,
    add_reply,
    describe_forms,
    list_rankings,
    read_replies,
)
from gptjax.data.sources.open_source import (
    describe_files,
    list_source_files,
    refuse_changed_conversations,
)
from gptjax.data.splits import assign_split, describe_shared, fill_splits

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
    margin: float = 0.0  # by which its reward has to be higher than that of its pair


def build_ratings(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/ratings; returns the manifest."""
    reward, data = config.reward, config.data
    if reward.test_fraction + reward.validation_fraction >= 1:
        raise UserError(
            f'reward.test_fraction={reward.test_fraction} and '
            f'reward.validation_fraction={reward.validation_fraction} leave nothing to '
            'train on: make one of them smaller'
        )
    if reward.test_fraction < data.validation_fraction:
        raise UserError(
            f'reward.test_fraction={reward.test_fraction} is less than '
            f'data.validation_fraction={data.validation_fraction}, and would '
            'train on what pretraining held out: use at least as much'
        )
    inputs = {
        f'reward.{name}': reward[name]
        for name in ('preferences', 'test_fraction', 'validation_fraction')
    }
    if not reward.preferences:
        inputs['reward.target'] = reward.target
    if reward.columns:
        inputs['reward.columns'] = reward.columns
    if reward.target in BEHAVIOUR:
        inputs['seed'] = config.seed
    steps = _choose_steps(config)
    inputs['data.clean'] = steps
    if 'split_sentences' in steps:  # the only text step that reads it
        inputs['data.languages'] = data.languages
    return artifact.build(
        workdir / 'ratings',
        inputs,
        lambda folder: _write_ratings(config, folder, workdir / 'datasets'),
        needs=[f'{split}.jsonl' for split in SPLITS],
        check=partial(refuse_changed_conversations, FIELD, reward.preferences),
    )


def describe_ratings(manifest: dict) -> str:
    counts = [
        f'{split["items"]:,} {name}' for name, split in manifest['splits'].items()
    ]
    train = manifest['splits']['train']
    line = f'ratings: {", ".join(counts)}; {train["pairs"]:,} training pairs'
    if 'preferences' in manifest:
        return line
    return f'{line}, {train["equal_pairs"]:,} with equal values skipped'


def describe_details(manifest: dict) -> str:
    if 'audit' in manifest:
        return rating_audit.describe_audit(manifest['audit'])
    counts = manifest['preferences']
    return console.join_lines(
        describe_forms('reward', manifest),
        console.describe_left_out(
            {'equal replies': counts['equal']}, counts['lines'], 'pairs'
        ),
        describe_shared(manifest['splits'], 'pairs'),
    )


RATINGS = artifact.Artifact(
    'ratings', build_ratings, describe_ratings, describe_details
)


def _write_ratings(config: ConfigDict, folder: Path, data_dir: Path) -> dict:
    reward = config.reward

    def split_by(key):
        return assign_three_way_split(
            key, reward.test_fraction, reward.validation_fraction
        )

    keys, sets = [], []  # the conversations of a set are in one split
    if reward.preferences:
        files = list_source_files('chat', reward.preferences, FIELD)
        source = describe_files(files)
        found, forms = read_replies(reward.preferences, FIELD, reward.columns)
        rankings, counts = list_rankings(found, f'{FIELD}={reward.preferences}')
        for ranking in rankings:
            rated = [_clean(one, config) for one in _rate_ranking(ranking)]
            if all(one.messages == rated[0].messages for one in rated):
                counts['equal'] += 1
            else:
                keys.append(storage.fingerprint(ranking.prompt))
                sets.append(rated)
        described = dict(preferences=counts, source=source, forms=forms)
    else:
        conversations = read_chitchat(data_dir)
        for conversation in conversations:
            rated = rate_conversation(conversation, reward.target, config.seed)
            if rated:
                keys.append(conversation.id)
                sets.append([_clean(rated, config)])
    splits = {}
    for split, chosen in fill_splits(keys, split_by, SPLITS).items():
        rated = [one for number in chosen for one in sets[number]]
        splits[split] = _write_split(folder / f'{split}.jsonl', rated)
        _refuse_no_pairs(split, splits[split], reward)
    if not reward.preferences:  # here at least one conversation is usable
        described = dict(audit=rating_audit.audit_ratings(conversations, split_by))
    return dict(
        fingerprint=storage.fingerprint([splits[s]['sha256'] for s in SPLITS]),
        splits=splits,
        **described,
    )


def read_ratings(workdir: Path, split: str) -> list[RatedConversation]:
    """Reads the rated conversations of a split, in order."""
    artifact.require(workdir / 'ratings', 'reward')
    lines = storage.read_jsonl(workdir / 'ratings' / f'{split}.jsonl')
    return [RatedConversation(**line) for line in lines]


def assign_three_way_split(key: str, test: float, validation: float) -> str:
    """Returns 'test', 'validation' or 'train', by the hash that splits documents.

    If `test` is at least data.validation_fraction, every conversation that pretraining
    held out is in 'test'.
    """
    if assign_split(key, test) == 'validation':
        return 'test'
    return assign_split(key, test + validation)


def rate_conversation(
    conversation: ChitchatConversation, target: str, seed: int
) -> RatedConversation | None:
    """Gives a conversation its value; None if the target cannot use it."""
    turns = conversation.turns
    if target in BEHAVIOUR:
        if not turns or (target == 'continued' and len(turns) < 2):
            return None
        if target == 'replied':
            num_turns = 1
        else:  # a coin decides between all turns and a smaller number
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
    last, _ = turns[-1]  # the last speaker is the assistant
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


def _rate_ranking(ranking: Ranking) -> list[RatedConversation]:
    """A set of K replies; of two, the chosen one has the value 1, the other one 0."""
    names = range(len(ranking.replies))
    if ranking.values == [1, 0]:
        names = ('chosen', 'rejected')
    return [
        RatedConversation(
            id=f'{ranking.id} {name}',
            set=ranking.id,
            messages=(messages := add_reply(ranking.prompt, reply)),
            value=value,
            characters=sum(len(message['content']) for message in messages),
            speakers=[],
            margin=ranking.margin if name == 'chosen' else 0.0,
        )
        for name, reply, value in zip(
            names, ranking.replies, ranking.values, strict=True
        )
    ]


def _choose_steps(config: ConfigDict) -> list[str]:
    if not config.reward.preferences:
        return expand_groups(config.data.clean)
    return choose_steps('reward', config.reward, config.data)


def _clean(rated: RatedConversation, config: ConfigDict) -> RatedConversation:
    options, messages = read_options(config.data), []
    steps = select_transforms(_choose_steps(config))
    for message in rated.messages:
        text = message['content']
        for name in steps:
            text = STEPS[name](text, options)
        messages.append(dict(message, content=text))
    return rated._replace(messages=messages)


def _write_split(path: Path, rated: Sequence[RatedConversation]) -> dict:
    """Writes a split; returns the manifest's entry."""
    fields = [one._asdict() for one in rated]
    for one in fields:
        if not one['margin']:
            del one['margin']
    storage.write_jsonl(path, fields)
    set_sizes = Counter(one.set for one in rated)
    equal_sizes = Counter((one.set, one.value) for one in rated)
    return dict(
        items=len(rated),
        pairs=sum(math.comb(n, 2) for n in set_sizes.values()),
        # pairs of equal value are skipped: neither is better
        equal_pairs=sum(math.comb(n, 2) for n in equal_sizes.values()),
        sha256=storage.sha256_of_file(path),
    )


def _refuse_no_pairs(split: str, counts: dict, reward: ConfigDict) -> None:
    if counts['pairs'] > counts['equal_pairs']:
        return
    if not counts['pairs']:
        raise UserError(
            f'reward: the split {split} has {counts["items"]} conversations, no two of '
            'one set: give more data, or a larger reward.test_fraction or '
            'reward.validation_fraction'
        )
    field = 'reward.preferences' if reward.preferences else 'reward.target'
    raise UserError(
        f'{field}={reward.preferences or reward.target}: all {counts["pairs"]:,} pairs '
        f'of the split {split} have equal ratings: there is nothing to prefer; give '
        'ratings that differ'
    )
