"""RUN/ratings: conversations with values, in three splits."""

import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.data import ratings
from gptjax.data.chitchat import ChitchatConversation
from gptjax.data.splits import assign_split

MAIL = 'mail me: ann@example.com'


def make_config(**reward):
    config = common.base()
    config.reward = common.reward_section()
    config.reward.update(test_fraction=0.3, validation_fraction=0.3)
    config.reward.update(reward)
    return config


def make_conversation(number, turns=4, values=None):
    said = tuple((f'person {number + i % 2}', f'turn {i}') for i in range(turns))
    values = values or (1 + number % 9, 7, 8)
    by_name = dict(zip(ratings.RATING_NAMES, values, strict=True))
    return ChitchatConversation(f'c{number}', said, by_name)


@pytest.fixture
def chitchat(monkeypatch):
    """A function that replaces the conversations of chitchat."""

    def put(conversations):
        monkeypatch.setattr(ratings, 'read_chitchat', lambda folder: conversations)

    put([make_conversation(number) for number in range(40)])
    return put


def test_conversations_and_splits(chitchat, tmp_path):
    config = make_config()
    manifest = ratings.build_ratings(config, tmp_path)
    by_split = {s: ratings.read_ratings(tmp_path, s) for s in ratings.SPLITS}
    names = [one.id for rated in by_split.values() for one in rated]
    assert sorted(names) == sorted(f'c{number}' for number in range(40))
    for split, rated in by_split.items():
        counts = manifest['splits'][split]
        assert counts['items'] == len(rated)
        assert counts['pairs'] == len(rated) * (len(rated) - 1) // 2
        equal = sum(a.value == b.value for i, a in enumerate(rated) for b in rated[:i])
        assert counts['equal_pairs'] == equal
    for one in by_split['train']:
        assert one.value == 1 + int(one.id[1:]) % 9 + 15 and one.set == ''
        assert one.characters == 4 * len('turn 0')
    assert manifest['audit']['usable'] == 40
    # A complete RUN/ratings does not need chitchat.
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


@pytest.mark.parametrize(
    'target, value', [('sum', 19), ('witty', 4), ('interesting', 7), ('upbeat', 8)]
)
def test_one_rating_or_their_sum(target, value):
    for turns in (4, 5):
        conversation = make_conversation(3, turns)
        rated = ratings.rate_conversation(conversation, target, 0)
        assert rated.value == value
        roles = [message['role'] for message in rated.messages]
        assert (
            roles[::-1]
            == ['assistant', 'user', 'assistant', 'user', 'assistant'][:turns]
        )
    default = make_conversation(3, values=(5, 5, 5))
    assert ratings.rate_conversation(default, target, 0) is None


@pytest.mark.parametrize('turns, value', [(4, 1), (1, 0)])
def test_replied_reads_the_first_turn_alone(turns, value):
    rated = ratings.rate_conversation(make_conversation(0, turns), 'replied', 0)
    assert rated.value == value
    assert rated.messages == [dict(role='assistant', content='turn 0')]


def test_continued_reads_all_turns_of_half_of_them():
    rated = [
        ratings.rate_conversation(make_conversation(n, 6), 'continued', 0)
        for n in range(400)
    ]
    whole = [one for one in rated if one.value == 0]
    assert 160 < len(whole) < 240
    assert all(len(one.messages) == 6 for one in whole)
    assert {len(one.messages) for one in rated if one.value == 1} == {1, 2, 3, 4, 5}
    again = ratings.rate_conversation(make_conversation(7, 6), 'continued', 0)
    assert again == rated[7]
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
    """60 pairs; two have equal replies, one of them only after cleaning."""
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
    raw = ratings.build_ratings(make_config(preferences=str(path)), tmp_path / 'raw')
    assert raw['preferences'] == dict(lines=60, equal=1)  # no cleaning step
    config = make_config(preferences=str(path), clean=('data.clean',))
    manifest = ratings.build_ratings(config, tmp_path / 'run')
    assert manifest['preferences'] == dict(lines=60, equal=2)
    assert 'audit' not in manifest
    prompts = {}
    for split in ratings.SPLITS:
        rated = ratings.read_ratings(tmp_path / 'run', split)
        assert manifest['splits'][split]['pairs'] == len(rated) // 2
        for better, worse in zip(rated[::2], rated[1::2], strict=True):
            assert better.set == worse.set and (better.value, worse.value) == (1, 0)
            assert better.messages[-1] == dict(role='assistant', content='yes')
            assert worse.messages[-1] == dict(role='assistant', content='no')
        prompts[split] = {one.messages[0]['content'] for one in rated}
    assert not prompts['train'] & prompts['test']
    assert len(set.union(*prompts.values())) == 29
    left_out = ratings.RATINGS.details(manifest)
    first = 'reward: 60 records in the form chosen/rejected'
    assert left_out == f'{first}\nequal replies left out 2 of 60 pairs'

    with open(path, 'a') as file:
        file.write(path.read_text().splitlines()[-1] + '\n')
    with pytest.raises(UserError, match='reward.preferences=.*now there are 1 of'):
        ratings.build_ratings(config, tmp_path / 'run')
    path.unlink()  # a run that has read the file does not need it
    assert ratings.build_ratings(config, tmp_path / 'run') == manifest


def test_nothing_to_compare_is_refused(chitchat, tmp_path):
    chitchat([make_conversation(n, values=(8, 8, 8)) for n in range(40)])
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


def test_another_config_is_refused_languages_only_if_a_step_reads_them(
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
