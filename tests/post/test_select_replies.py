"""Which replies are kept, which make a pair; the stage's files, and that it goes on."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.preferences import read_preferences
from gptjax.post import select_replies
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.select_replies import ScoredReply
from gptjax.train import init_from
from tests.post import starts


def drawn(*replies):
    return [ScoredReply(text, score, ended) for text, score, ended in replies]


def test_right_replies_are_kept_once_and_paired_with_wrong_ones():
    replies = drawn(
        ('4', 0.0, True),
        ('5', 1.0, True),
        ('5', 1.0, True),
        ('05', 1.0, True),
        ('6', 0.5, True),
        ('5.', 1.0, False),  # cut off: not to be learnt from
        ('7', 0.0, False),
    )
    choice = select_replies.choose_right(replies, keep=5, pairs=5)
    assert choice.kept == ['5', '05']
    assert choice.pairs == [('5', '4'), ('05', '6')]
    assert select_replies.choose_right(replies, 1, 1) == (['5'], [('5', '4')], '')
    assert select_replies.choose_right(replies, 0, 0).kept == []


@pytest.mark.parametrize(
    'replies, why',
    (
        (drawn(('5', 1.0, True), ('5', 1.0, True)), 'all right'),
        (drawn(('4', 0.0, True), ('6', 0.0, True)), 'all wrong'),
        (drawn(('5', 1.0, False)), 'none ended'),
    ),
)
def test_problems_without_a_pair_say_why(replies, why):
    choice = select_replies.choose_right(replies, 1, 1)
    assert choice.pairs == [] and choice.skipped == why


def test_best_with_worst_by_a_reward():
    replies = drawn(
        ('a', 0.1, True), ('b', 0.9, True), ('c', 0.5, True), ('b', 0.9, True)
    )
    assert select_replies.choose_best(replies, 1, 9) == (['b'], [('b', 'a')], '')
    four = drawn(*((letter, score, True) for score, letter in enumerate('wxyz')))
    choice = select_replies.choose_best(four, 2, 9)
    assert choice == (['z', 'y'], [('z', 'w'), ('y', 'x')], '')
    equal = drawn(('a', 0.5, True), ('b', 0.5, True))
    assert select_replies.choose_best(equal, 1, 1) == (['a'], [], 'all equal')
    assert (
        select_replies.choose_best(drawn(('a', 1.0, False)), 1, 1).skipped
        == 'none ended'
    )


def test_noise_swaps_its_share_and_always_the_same():
    those = [select_replies.is_swapped(0.25, 'seed', number) for number in range(4000)]
    # Four standard deviations of a mean of 4000 coins.
    assert np.mean(those) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    assert those == [
        select_replies.is_swapped(0.25, 'seed', number) for number in range(4000)
    ]
    assert not any(select_replies.is_swapped(0.0, number) for number in range(100))


# ---- the stage


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('select')
    starts.write_start(folder)
    return folder


def config_of(folder, **changes):
    config = common.base()
    config.start = common.start_section(str(folder / 'start'))
    config.task = common.task_section()
    config.task.path = str(folder / 'problems.jsonl')
    config.select = common.select_section()
    config.select.update(problems=20, replies=4, max_tokens=3, slots=8)
    config.chat.template = 'turns'
    config.data.context = 32
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir):
    return select_replies.select(init_from.inherit_config(config, workdir), workdir)


BY_LENGTH = {
    'select.by': 'reward',
    'task.rewards': dict(short=common.reward_part('shortness')),
}


def by_length(folder, **changes):
    config = config_of(folder, **{'select.by': 'reward', **changes})
    config.task.rewards = common.ConfigDict(BY_LENGTH['task.rewards'])
    return config


@pytest.fixture(scope='module')
def by_reward(folder):
    """RUN of a random model whose shortest replies are chosen, and its manifest."""
    workdir = folder / 'by_reward'
    # Of the few tokens that a random model draws, some end a reply.
    config = by_length(folder, **{'select.replies': 12, 'select.max_tokens': 12})
    return config, workdir, run(config, workdir)


def test_replies_to_one_problem_have_one_id(tmp_path):
    config = common.base()
    config.select = common.select_section()
    problems = [
        SimpleNamespace(id=name, messages=[dict(role='user', content=name)])
        for name in 'ab'
    ]
    its = drawn(('4', 1.0, True), ('04', 1.0, True), ('5', 0.0, True))
    chosen = [select_replies.choose_right(its, keep=2, pairs=1)] * 2
    select_replies.write_selected(config, tmp_path, problems, [its, its], chosen)
    with open(tmp_path / 'chats.jsonl') as lines:
        assert [json.loads(line)['id'] for line in lines] == ['a', 'a', 'b', 'b']


@pytest.mark.slow
def test_files_are_what_sft_and_dpo_read(by_reward):
    _, workdir, manifest = by_reward
    selected = workdir / 'selected'
    assert manifest['problems'] == 20 and manifest['replies'] == 240
    chats = [json.loads(line) for line in open(selected / 'chats.jsonl')]
    assert len(chats) == manifest['kept'] > 0
    assert [m['role'] for m in chats[0]['messages']] == ['user', 'assistant']
    preferences, counts = read_preferences(str(selected / 'pairs.jsonl'), 'here')
    assert counts == dict(lines=manifest['pairs'], equal=0) and preferences
    words = lambda text: len(text.split())
    assert all(words(p.chosen) < words(p.rejected) for p in preferences)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(by_reward, folder, monkeypatch):
    config, workdir, manifest = by_reward
    again = folder / 'again'
    monkeypatch.setattr(select_replies, 'PROBLEMS_PER_FILE', 8)
    small = run(config, again)
    names = sorted(path.name for path in (again / 'replies').iterdir())
    assert names == [f'{number:05d}.jsonl' for number in range(3)]
    # Killed while the third file was drawn: two are there, and nothing is chosen.
    for path in (again / 'selected').iterdir():
        path.unlink()
    last = (again / 'replies' / names[-1]).read_bytes()
    (again / 'replies' / names[-1]).unlink()
    kept = (again / 'replies' / names[0]).stat().st_mtime_ns
    assert run(config, again) == small
    assert (again / 'replies' / names[-1]).read_bytes() == last
    assert (again / 'replies' / names[0]).stat().st_mtime_ns == kept
    # Done: nothing is drawn, and another choice of the same replies draws nothing.
    monkeypatch.setattr(select_replies, 'make_sampler', None)
    assert run(config, again) == small
    for path in (again / 'selected').iterdir():
        path.unlink()
    more = by_length(folder, **dict(_drawing(config), **{'select.keep': 3}))
    assert run(more, again)['kept'] >= small['kept']


def _drawing(config):
    return {f'select.{name}': config.select[name] for name in ('replies', 'max_tokens')}


def test_bad_input_has_one_clear_error(folder, tmp_path):
    def refused(**changes):
        with pytest.raises(UserError) as error:
            run(config_of(folder, **changes), tmp_path / 'run')
        return str(error.value)

    assert 'chat.template=text' in refused(**{'chat.template': 'text'})
    assert 'select.max_tokens=32' in refused(**{'select.max_tokens': 32})
    open_ended = '{"prompt": "Say something about %d."}\n'
    path = tmp_path / 'open.jsonl'
    storage.write_text(path, ''.join(open_ended % n for n in range(60)))
    assert 'needs answers' in refused(**{'task.path': str(path)})


def test_a_verifier_that_gives_no_number_is_an_error(folder):
    task = Task(None, None, None, None, lambda problem, reply: math.nan)
    judge = select_replies.make_selection_reward(config_of(folder), task)
    with pytest.raises(UserError, match='the verifier gave nan for the reply .5. to p'):
        judge([SimpleNamespace(id='p')], ['5'])


def test_replies_to_other_problems_are_not_taken(folder, tmp_path, monkeypatch):
    path = tmp_path / 'problems.jsonl'
    lines = [json.dumps(dict(prompt=f'{n} ?', answer='no')) for n in range(60)]
    storage.write_text(path, '\n'.join(lines) + '\n')
    config = config_of(folder, **{'task.path': str(path)})
    about = []
    monkeypatch.setattr(
        select_replies,
        'draw_replies',
        lambda *args: about.append(args[-1]['problems']) or 1 / 0,
    )
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run(config, tmp_path / 'run')
    storage.write_text(path, '\n'.join(lines[::-1]) + '\n')
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / 'run')
    assert about[0] == about[1] != about[2]


def test_replies_come_back_with_whatever_breaks_a_line(tmp_path):
    path = tmp_path / '00000.jsonl'
    replies = [drawn(('a\u2028b\x85c\nd', 1.0, True), ('', 0.0, False))]
    select_replies.write_replies(path, 'about', [SimpleNamespace(id='p')], replies)
    assert select_replies.read_replies(path, 'about') == replies
    assert select_replies.read_replies(path, 'another') is None


def test_nothing_right_is_an_error(folder, tmp_path):
    lines = [json.dumps(dict(prompt=f'{n} ?', answer='no such')) for n in range(60)]
    storage.write_text(tmp_path / 'hard.jsonl', '\n'.join(lines) + '\n')
    config = config_of(folder, **{'task.path': str(tmp_path / 'hard.jsonl')})
    with pytest.raises(UserError, match='nothing is left of 80 replies to 20 problems'):
        run(config, tmp_path / 'run')
