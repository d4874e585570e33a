"""RUN/ratings: items with values, split by conversation."""

import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.data import ratings
from gptjax.data.chitchat import ChitchatConversation
from gptjax.data.documents import assign_split
from gptjax.data.rating_audit import is_usable

MAIL = 'mail me: ann@example.com'


def make_config(**reward):
    config = common.base()
    config.reward = common.reward_section()
    config.reward.update(test_fraction=0.3, validation_fraction=0.3)
    config.reward.update(reward)
    return config


def make_conversation(number, turns=4, ratings=None):
    said = tuple((f'person {number + i % 2}', f'turn {i}') for i in range(turns))
    names = ('witty', 'interesting', 'upbeat')
    values = ratings or (1 + number % 9, 7, 8)
    return ChitchatConversation(
        f'c{number}', said, dict(zip(names, values, strict=True))
    )


@pytest.fixture
def chitchat(monkeypatch):
    """A function that puts these conversations in chitchat's place."""

    def put(conversations):
        monkeypatch.setattr(ratings, 'read_chitchat', lambda folder: conversations)

    put([make_conversation(number) for number in range(40)])
    return put


def test_items_and_splits(chitchat, tmp_path):
    config = make_config()
    manifest = ratings.build_ratings(config, tmp_path)
    by_split = {s: ratings.read_ratings(tmp_path, s) for s in ratings.SPLITS}
    names = [item.id for items in by_split.values() for item in items]
    assert sorted(names) == sorted(f'c{number}' for number in range(40))
    for split, items in by_split.items():
        assert manifest['splits'][split]['items'] == len(items)
        pairs = len(items) * (len(items) - 1) // 2
        assert manifest['splits'][split]['pairs'] == pairs
        equal = sum(a.value == b.value for i, a in enumerate(items) for b in items[:i])
        assert manifest['splits'][split]['equal_pairs'] == equal
    for item in by_split['train']:
        assert item.value == 1 + int(item.id[1:]) % 9 + 15 and item.set == ''
        assert item.characters == 4 * len('turn 0')
    assert manifest['audit']['usable'] == 40
    # Again: what is there is used, though chitchat were gone.
    chitchat(None)
    assert ratings.build_ratings(config, tmp_path) == manifest


def test_what_pretraining_held_out_is_in_the_test_split():
    for number in range(500):
        split = ratings.assign_three_way_split(f'c{number}', 0.15, 0.1)
        if assign_split(f'c{number}', 0.05) == 'validation':
            assert split == 'test'
        if assign_split(f'c{number}', 0.25) == 'train':
            assert split == 'train'
    shares = [ratings.assign_three_way_split(f'c{n}', 0.15, 0.1) for n in range(2000)]
    assert 240 < shares.count('test') < 360 and 140 < shares.count('validation') < 260


def test_the_last_speaker_is_the_assistant():
    for turns in (4, 5):
        item = ratings.rate_conversation(make_conversation(0, turns), 'sum', 0)
        roles = [message['role'] for message in item.messages]
        assert roles[-1] == 'assistant'
        assert all(one != other for one, other in zip(roles, roles[1:], strict=False))


def test_one_rating_or_their_sum():
    conversation = make_conversation(3)
    values = {
        t: ratings.rate_conversation(conversation, t, 0).value
        for t in ('sum', *ratings.RATING_NAMES)
    }
    assert values == dict(sum=19, witty=4, interesting=7, upbeat=8)
    assert (
        ratings.rate_conversation(make_conversation(3, ratings=(5, 5, 5)), 'sum', 0)
        is None
    )


def test_replied_reads_the_first_turn_alone():
    answered, alone = make_conversation(0, 4), make_conversation(1, 1)
    for conversation, value in ((answered, 1), (alone, 0)):
        item = ratings.rate_conversation(conversation, 'replied', 0)
        assert item.value == value
        assert item.messages == [dict(role='assistant', content='turn 0')]
    assert not is_usable(alone)


def test_continued_stops_at_the_end_for_half_of_them():
    items = [
        ratings.rate_conversation(make_conversation(n, 6), 'continued', 0)
        for n in range(400)
    ]
    ends = [item for item in items if item.value == 0]
    assert 160 < len(ends) < 240
    assert all(len(item.messages) == 6 for item in ends)
    cuts = [len(item.messages) for item in items if item.value == 1]
    assert set(cuts) == {1, 2, 3, 4, 5}
    again = ratings.rate_conversation(make_conversation(7, 6), 'continued', 0)
    assert again == items[7]
    assert ratings.rate_conversation(make_conversation(0, 1), 'continued', 0) is None


def test_messages_are_cleaned(chitchat, tmp_path):
    conversations = [make_conversation(number) for number in range(40)]
    chitchat(
        [c._replace(turns=((c.turns[0][0], MAIL), *c.turns[1:])) for c in conversations]
    )
    ratings.build_ratings(make_config(), tmp_path)
    text = (tmp_path / 'ratings' / 'train.jsonl').read_text()
    assert 'mail me' in text and 'ann@example.com' not in text


def write_preferences(path):
    """60 pairs; of the first two the replies are equal, or will be when cleaned."""
    lines = [
        dict(
            prompt=[dict(role='user', content=f'question {n // 2}')],
            chosen='yes',
            rejected={0: 'yes', 1: 'yes\u200b'}.get(n, 'no'),
        )
        for n in range(60)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_users_preferences(tmp_path):
    path = tmp_path / 'mine.jsonl'
    write_preferences(path)
    config = make_config(preferences=str(path))
    manifest = ratings.build_ratings(config, tmp_path / 'run')
    assert manifest['preferences'] == dict(lines=60, equal=2)
    assert 'audit' not in manifest
    prompts = {}
    for split in ratings.SPLITS:
        items = ratings.read_ratings(tmp_path / 'run', split)
        assert manifest['splits'][split]['pairs'] == len(items) // 2
        for better, worse in zip(items[::2], items[1::2], strict=True):
            assert better.set == worse.set and (better.value, worse.value) == (1, 0)
            assert better.messages[-1] == dict(role='assistant', content='yes')
            assert worse.messages[-1] == dict(role='assistant', content='no')
        prompts[split] = {item.messages[0]['content'] for item in items}
    assert not prompts['train'] & prompts['test']
    assert len(set.union(*prompts.values())) == 29
    assert 'equal ones skipped' in ratings.RATINGS.describe(manifest)


def test_preferences_that_changed_since_are_noticed(tmp_path):
    path = tmp_path / 'mine.jsonl'
    write_preferences(path)
    config = make_config(preferences=str(path))
    manifest = ratings.build_ratings(config, tmp_path / 'run')
    with open(path, 'a') as file:
        file.write(path.read_text().splitlines()[-1] + '\n')
    with pytest.raises(UserError, match='reward.preferences=.*now there are 1 of'):
        ratings.build_ratings(config, tmp_path / 'run')
    path.unlink()  # gone: a run goes on without it
    assert ratings.build_ratings(config, tmp_path / 'run') == manifest


def test_nothing_to_compare_is_one_clear_error(chitchat, tmp_path):
    chitchat([make_conversation(n, ratings=(8, 8, 8)) for n in range(40)])
    with pytest.raises(UserError, match='equal ratings: there is nothing to prefer'):
        ratings.build_ratings(make_config(), tmp_path)
    assert not (tmp_path / 'ratings').exists()
    chitchat([make_conversation(0)])
    with pytest.raises(UserError, match='no two of one set'):
        ratings.build_ratings(make_config(), tmp_path)


@pytest.mark.parametrize(
    'fields, pattern',
    (
        (dict(test_fraction=0.7), 'leave nothing to train on'),
        (dict(test_fraction=0.01), 'less than data.validation_fraction=0.05'),
    ),
)
def test_fields_that_do_not_fit(chitchat, tmp_path, fields, pattern):
    with pytest.raises(UserError, match=pattern):
        ratings.build_ratings(make_config(**fields), tmp_path)


def test_another_config_is_refused_of_languages_where_a_step_reads_them(
    chitchat, tmp_path
):
    config = make_config()
    config.data.clean = (*config.data.clean, 'keep_languages')  # not for messages
    made = ratings.build_ratings(config, tmp_path / 'a')
    with pytest.raises(UserError, match='reward.target: sum there, witty here'):
        ratings.build_ratings(make_config(target='witty'), tmp_path / 'a')
    assert 'data.languages' not in made['settings']
    config.data.languages = ('de',)
    assert ratings.build_ratings(config, tmp_path / 'a') == made
    config.data.clean = (*config.data.clean, 'split_sentences')
    ratings.build_ratings(config, tmp_path / 'b')
    config.data.languages = ('en',)
    with pytest.raises(UserError, match='data.languages: .*de.* there, .*en.* here'):
        ratings.build_ratings(config, tmp_path / 'b')
