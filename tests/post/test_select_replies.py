"""Kept replies and pairs; the files of the stage; resuming."""

import json
from types import SimpleNamespace

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.preferences import read_preferences
from gptjax.post import select_replies
from gptjax.post.select_replies import Choice, ScoredReply, choose_best, choose_right
from gptjax.train import init_from
from tests.post import starts

pytestmark = pytest.mark.usefixtures('one_device')


def drawn(*replies):
    return [ScoredReply(*reply) for reply in replies]


@pytest.mark.parametrize('keep, pairs', ((5, 5), (1, 1), (0, 0)))
def test_right_replies_are_kept_once_and_paired_with_wrong_ones(keep, pairs):
    replies = drawn(
        ('4', 0.0, True),
        ('5', 1.0, True),
        ('5', 1.0, True),
        ('05', 1.0, True),
        ('6', 0.5, True),
        ('5.', 1.0, False),  # truncated
        ('7', 0.0, False),
    )
    expected = ['5', '05'][:keep], [('5', '4'), ('05', '6')][:pairs], ''
    assert choose_right(replies, keep, pairs) == expected


@pytest.mark.parametrize(
    'choose, replies, expected',
    (
        (choose_right, [('5', 1.0, True)] * 2, (['5'], [], 'all right')),
        (choose_right, [('4', 0.0, True), ('6', 0.0, True)], ([], [], 'all wrong')),
        (choose_right, [('5', 1.0, False)], ([], [], 'none ended')),
        (choose_best, [('5', 1.0, False)], ([], [], 'none ended')),
        (choose_best, [('a', 0.5, True), ('b', 0.5, True)], (['a'], [], 'all equal')),
    ),
)
def test_problems_without_a_pair_say_why(choose, replies, expected):
    assert choose(drawn(*replies), 1, 1) == expected


def test_best_with_worst_by_a_reward():
    three = drawn(('a', 0.1, True), ('b', 0.9, True), ('c', 0.5, True))
    assert choose_best([*three, three[1]], 1, 9) == (['b'], [('b', 'a')], '')
    four = drawn(*((letter, score, True) for score, letter in enumerate('wxyz')))
    expected = ['z', 'y'], [('z', 'w'), ('y', 'x')], ''
    assert choose_best(four, 2, 9) == expected


def write(tmp_path, noise, pairs):
    """The manifest and files of two problems with these pairs each."""
    config = common.base()
    config.select = common.select_section()
    config.select.noise = noise
    problems = [
        SimpleNamespace(id=name, messages=[dict(role='user', content=name)])
        for name in 'ab'
    ]
    choices = [Choice(['4', '04'], pairs, '')] * 2
    replies = [drawn(('4', 1.0, True))] * 2
    manifest = select_replies.write_selected(
        config, tmp_path, problems, replies, choices
    )
    files = [(tmp_path / name).read_text() for name in select_replies.FILES]
    return manifest, [list(map(json.loads, file.splitlines())) for file in files]


def test_replies_to_one_problem_have_one_id(tmp_path):
    _, (chats, _) = write(tmp_path, 0.0, [('4', '5')])
    assert [chat['id'] for chat in chats] == ['a', 'a', 'b', 'b']


def test_noise_swaps_its_share_and_always_the_same(tmp_path):
    pairs = [('better', 'worse')] * 2000
    manifest, (_, lines) = write(tmp_path, 0.25, pairs)
    # Four standard deviations of a mean of 4000 coins.
    deviation = 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert manifest['turned'] / 4000 == pytest.approx(0.25, abs=deviation)
    assert manifest['turned'] == sum(line['chosen'] == 'worse' for line in lines)
    assert write(tmp_path, 0.25, pairs)[1][1] == lines
    assert write(tmp_path, 0.0, pairs)[0]['turned'] == 0


def test_replies_may_have_any_line_separator(tmp_path):
    path = tmp_path / '00000.jsonl'
    replies = [drawn(('a\u2028b\x85c\nd', 1.0, True), ('', 0.0, False))]
    select_replies.write_replies(path, 'about', [SimpleNamespace(id='p')], replies)
    assert select_replies.read_replies(path, 'about') == replies
    assert select_replies.read_replies(path, 'another') is None
    content = path.read_bytes()
    for damaged in (b'', b'\n', content.replace(b'{"id', b'\0"id'), b'{"about": 3}\n'):
        path.write_bytes(damaged)
        assert select_replies.read_replies(path, 'about') is None


def test_a_reply_with_a_special_token_is_no_message(tmp_path, monkeypatch):
    texts = ['5', '5<|user|>', '5']
    truncated_B = [False, False, True]
    rollout = SimpleNamespace(problems=[], replies=texts, truncated_B=truncated_B)
    stub = SimpleNamespace(complete=None, close=lambda: None)
    monkeypatch.setattr(select_replies, 'draw_rollout', lambda *args: rollout)
    monkeypatch.setattr(select_replies, 'make_sampler', lambda *args: stub)
    config = common.base()
    config.select = common.select_section()
    config.select.replies = 3
    prompt_format = SimpleNamespace(tokenizer=SimpleNamespace(specials={'<|user|>': 4}))
    [replies] = select_replies.draw_replies(
        *(config, tmp_path, None, prompt_format, [SimpleNamespace(id='p')]),
        reward=lambda problems, replies: [1.0, 1.0, 1.0],
        inputs={},
    )
    assert [reply.ended for reply in replies] == [True, False, False]


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
    config.task.rewards = dict(short=common.reward_part('shortness'))
    config.select = common.select_section()
    config.select.update(problems=20, replies=4, max_tokens=3, slots=8)
    config.chat.template = 'turns'
    config.data.context = 32
    config.update_from_flattened_dict(changes)
    return config


def by_reward(folder, keep=1):
    # A random model samples a stop token now and then, so some replies end.
    config = config_of(folder, **{'select.by': 'reward', 'select.keep': keep})
    config.select.update(replies=12, max_tokens=12)
    return config


def run(config, workdir):
    return select_replies.select(init_from.inherit_config(config, workdir), workdir)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_files_that_sft_and_dpo_read(folder, monkeypatch):
    workdir = folder / 'run'
    replies, selected = workdir / 'replies', workdir / 'selected'
    monkeypatch.setattr(select_replies, 'PROBLEMS_PER_FILE', 8)
    manifest = run(by_reward(folder), workdir)
    assert manifest['problems'] == 20 and manifest['replies'] == 240
    chats = [json.loads(line) for line in open(selected / 'chats.jsonl')]
    assert len(chats) == manifest['kept'] > 0
    assert [m['role'] for m in chats[0]['messages']] == ['user', 'assistant']
    preferences, counts = read_preferences(str(selected / 'pairs.jsonl'), 'here')
    assert counts == dict(lines=manifest['pairs'], equal=0) and preferences
    words = lambda text: len(text.split())
    assert all(words(p.chosen) < words(p.rejected) for p in preferences)

    # As if killed during the third file: two files exist, and nothing is selected.
    names = sorted(path.name for path in replies.iterdir())
    assert names == [f'{number:05d}.jsonl' for number in range(3)]
    for path in selected.iterdir():
        path.unlink()
    last = (replies / names[-1]).read_bytes()
    (replies / names[-1]).unlink()
    kept = (replies / names[0]).stat().st_mtime_ns
    assert run(by_reward(folder), workdir) == manifest
    assert (replies / names[-1]).read_bytes() == last
    assert (replies / names[0]).stat().st_mtime_ns == kept
    # A finished stage generates nothing; neither does another selection of its replies.
    monkeypatch.setattr(select_replies, 'make_sampler', None)
    assert run(by_reward(folder), workdir) == manifest
    for path in selected.iterdir():
        path.unlink()
    assert run(by_reward(folder, keep=3), workdir)['kept'] >= manifest['kept']


def write_problems(path, prompt='%d ?', **fields):
    lines = [json.dumps(dict(prompt=prompt % n, **fields)) for n in range(60)]
    storage.write_text(path, '\n'.join(lines) + '\n')
    return {'task.path': str(path)}


@pytest.mark.parametrize(
    'changes, message',
    (
        ({'chat.template': 'text'}, 'chat.template=text'),
        ({'select.max_tokens': 32}, 'select.max_tokens=32'),
        (dict(fields={}), 'needs answers'),
        (
            dict(fields=dict(answer='no such')),
            'no reply can be kept of 80 replies to 20 problems',
        ),
    ),
)
def test_bad_input_has_one_clear_error(folder, tmp_path, changes, message):
    if 'fields' in changes:
        changes = write_problems(tmp_path / 'problems.jsonl', **changes['fields'])
    with pytest.raises(UserError, match=message):
        run(config_of(folder, **changes), tmp_path / 'run')


def test_replies_to_other_problems_are_not_taken(folder, tmp_path, monkeypatch):
    path = tmp_path / 'problems.jsonl'
    config = config_of(folder, **write_problems(path, answer='no'))
    fingerprints = []
    monkeypatch.setattr(
        select_replies,
        'draw_replies',
        lambda *args: fingerprints.append(args[-1]['problems']) or 1 / 0,
    )
    for prompt in ('%d ?', '%d ?', '%d !'):
        write_problems(path, prompt, answer='no')
        with pytest.raises(ZeroDivisionError):
            run(config, tmp_path / 'run')
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
