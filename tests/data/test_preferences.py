"""Users' preference files."""

import json

import pytest

from gptjax.core.console import UserError
from gptjax.data.preferences import read_preferences

HI = [dict(role='user', content='Hi!')]


def line(prompt=HI, chosen='Hello!', rejected='What?'):
    return json.dumps(dict(prompt=prompt, chosen=chosen, rejected=rejected))


def read(tmp_path, *lines):
    path = tmp_path / 'mine.jsonl'
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return read_preferences(str(path), 'reward.preferences')


def test_lines_become_preferences(tmp_path):
    system = [dict(role='system', content='Be kind.'), *HI]
    lines = line(), '', line(system, 'Grüß dich', ''), line(HI, 'a', 'a'), line(HI, 'b')
    found, counts = read(tmp_path, *lines)
    assert counts == dict(lines=4, equal=1)
    assert [p.id for p in found] == ['mine.jsonl#1', 'mine.jsonl#3', 'mine.jsonl#5']
    better, worse = found[0].conversations()
    assert better == [*HI, dict(role='assistant', content='Hello!')]
    assert worse == [*HI, dict(role='assistant', content='What?')]
    assert found[1].chosen == 'Grüß dich' and found[1].prompt == system
    keys = [p.split_key() for p in found]  # the prompt decides the split
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    'wrong, pattern',
    (
        ('[1]', 'not a JSON object'),
        ('{"prompt": []}', 'has no "chosen"'),
        (line(chosen=3), 'has no "chosen" that is a string'),
        (line()[:-1] + ', "margin": 1}', 'has the field "margin", which no loss reads'),
        (line(prompt=[]), 'has no list "prompt"'),
        (line(prompt='Hi!'), 'has no list "prompt", but a text: write the list'),
        (line([dict(role='user')]), r'prompt\[0\] has no "content"'),
        (line([3]), r'prompt\[0\] has no "role" .*"chosen"'),
        (line([dict(role='robot', content='x')]), "role='robot': use system, user"),
        (line([dict(role='assistant', content='x')]), 'with a message of the assis'),
    ),
)
def test_the_error_names_the_line(tmp_path, wrong, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        read(tmp_path, line(), wrong)
    assert str(error.value).startswith(
        f'reward.preferences={tmp_path}/mine.jsonl: line 2'
    )
    assert '\n' not in str(error.value)


def test_files_without_a_preference_are_refused(tmp_path):
    with pytest.raises(UserError, match='equal in all 2 lines'):
        read(tmp_path, line(HI, 'a', 'a'), line(HI, '', ''))
    with pytest.raises(UserError, match='has no preference'):
        read(tmp_path, '')
    with pytest.raises(UserError, match='no such file'):
        read_preferences(str(tmp_path / 'none.jsonl'), 'reward.preferences')


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    half = 'x\ud83d'
    (found,), _ = read(tmp_path, line([dict(role='user', content=half)], half, 'b'))
    assert (found.prompt[0]['content'], found.chosen) == ('x\ufffd', 'x\ufffd')
