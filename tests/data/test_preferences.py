"""Users' preference files."""

import gzip
import json

import pytest

from gptjax.core.console import UserError
from gptjax.data.preferences import read_preferences

HI = [dict(role='user', content='Hi!')]


def line(prompt=HI, chosen='Hello!', rejected='What?', **more):
    return json.dumps(dict(prompt=prompt, chosen=chosen, rejected=rejected, **more))


def read(tmp_path, *lines):
    path = tmp_path / 'mine.jsonl'
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return read_preferences(str(path), 'reward.preferences')


def test_lines_become_preferences(tmp_path):
    system = [dict(role='system', content='Be kind.'), *HI]
    found, counts = read(tmp_path, line(), '', line(system, 'Grüß dich', ''))
    assert counts == dict(lines=2, equal=0)
    assert [p.id for p in found] == ['mine.jsonl#1', 'mine.jsonl#3']
    better, worse = found[0].conversations()
    assert better == [*HI, dict(role='assistant', content='Hello!')]
    assert worse == [*HI, dict(role='assistant', content='What?')]
    assert found[1].chosen == 'Grüß dich' and found[1].prompt == system


def test_pairs_of_one_prompt_are_split_alike(tmp_path):
    found, _ = read(tmp_path, line(), line(chosen='Good day'), line([*HI, *HI]))
    keys = [p.split_key() for p in found]
    assert keys[0] == keys[1] != keys[2]


def test_equal_replies_are_counted_and_left_out(tmp_path):
    found, counts = read(tmp_path, line(), line(chosen='a', rejected='a'))
    assert len(found) == 1 and counts == dict(lines=2, equal=1)


def test_nothing_but_equal_replies_is_refused(tmp_path):
    with pytest.raises(UserError, match='equal in all 2 lines'):
        read(tmp_path, line(chosen='a', rejected='a'), line(chosen='', rejected=''))


def test_packed_files_and_folders(tmp_path):
    with gzip.open(tmp_path / 'a.jsonl.gz', 'wt') as file:
        file.write(line() + '\n')
    (tmp_path / 'b.jsonl').write_text(line(chosen='Good day') + '\n')
    found, _ = read_preferences(str(tmp_path), 'reward.preferences')
    assert [p.id for p in found] == ['a.jsonl.gz#1', 'b.jsonl#1']


@pytest.mark.parametrize(
    'wrong, pattern',
    (
        ('[1]', 'not a JSON object'),
        ('{"prompt": []}', 'has no "chosen"'),
        (line(prompt=[]), '"prompt" is not a list of messages'),
        (line(prompt='Hi!'), '"prompt" is not a list of messages'),
        (line(chosen=3), '"chosen" is not a string'),
        (line([dict(role='user')]), r'prompt\[0\] needs the strings "role"'),
        (line([dict(role='robot', content='x')]), "role='robot': use system, user"),
        (
            line([dict(role='assistant', content='x')]),
            'ends with a message of the assistant',
        ),
    ),
)
def test_a_wrong_line_is_named(tmp_path, wrong, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        read(tmp_path, line(), wrong)
    assert str(error.value).startswith(
        f'reward.preferences={tmp_path}/mine.jsonl: line 2'
    )
    assert '\n' not in str(error.value)


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(UserError, match='has no preference'):
        read(tmp_path, '')
    with pytest.raises(UserError, match='no such file'):
        read_preferences(str(tmp_path / 'none.jsonl'), 'reward.preferences')
