"""Users' preference files."""

import json

import pytest

from gptjax.core.console import UserError
from gptjax.data.preferences import read_preferences

HI = [dict(role='user', content='Hi!')]


TWO = [*HI, dict(role='assistant', content='Hello!')]


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
        (line()[:-1] + ', "margin": -1}', 'margin=-1 is not 0 or a positive'),
        (line(prompt=[]), 'has no list "prompt"'),
        (line(prompt=3), 'has no list "prompt", but 3: write lines'),
        (line(chosen=TWO), 'one of "chosen" and "rejected" is a whole conversation'),
        (line(None, TWO, [HI[0], TWO[0], TWO[1]]), 'differ before the last message'),
        (line('Ho!', TWO, TWO), 'the "prompt" is not that of "chosen"'),
        (line()[:-1] + ', "label": true}', 'has the fields of chosen/rejected and of'),
        ('{"prompt": "Hi!", "replies": ["a"]}', 'no list of at least two replies'),
        (
            '{"prompt": "Hi!", "replies": ["a", "b"], "scores": [1]}',
            '"scores" is no list of 2 numbers',
        ),
        ('{"prompt": "a", "completion": "b", "label": 2}', 'label=2: write true'),
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


REPLY = [dict(role='assistant', content='Hello!')]
OTHER = [dict(role='assistant', content='What?')]
FORMS = (
    dict(prompt='Hi!', chosen='Hello!', rejected='What?'),
    dict(prompt=HI, chosen=REPLY, rejected=OTHER),
    dict(chosen=HI + REPLY, rejected=HI + OTHER),
    dict(prompt='Hi!', chosen=HI + REPLY, rejected=HI + OTHER, messages=HI + REPLY),
    dict(
        chosen='\n\nHuman: Hi!\n\nAssistant: Hello!',
        rejected='\n\nHuman: Hi!\n\nAssistant: What?',
    ),
    dict(prompt='Hi!', replies=['Hello!', 'What?']),
    dict(prompt='Hi!', replies=['What?', 'Hello!'], scores=[1.0, 4.5]),
)


def test_every_form_gives_the_same_preference(tmp_path):
    found, _ = read(tmp_path, *map(json.dumps, FORMS))
    for one in found:
        assert one[1:] == (HI, 'Hello!', 'What?')
    path = tmp_path / 'named.jsonl'
    path.write_text(json.dumps(dict(q='Hi!', good='Hello!', bad='What?', chosen=1)))
    columns = 'prompt=q', 'chosen=good', 'rejected=bad'
    (named,), _ = read_preferences(str(path), 'here', columns)
    assert named[1:] == found[0][1:]


def test_a_ranking_gives_all_pairs_but_ties(tmp_path):
    lines = (
        dict(prompt='Hi!', replies=[*'abc']),
        dict(prompt='Hi!', replies=[*'abcc'], scores=[2, 2, 1, 0]),
    )
    found, counts = read(tmp_path, *map(json.dumps, lines))
    pairs = [(p.id.split()[-1], p.chosen + p.rejected) for p in found]
    assert pairs == [
        *(('0>1', 'ab'), ('0>2', 'ac'), ('1>2', 'bc')),
        *(('0>2', 'ac'), ('1>2', 'bc')),  # the other c is a repetition
    ]
    assert counts == dict(lines=2, equal=0)


def test_labels_and_margins_are_for_other_losses(tmp_path):
    label = dict(prompt='Hi!', completion='Hello!', label=True)
    with pytest.raises(UserError, match='mine.jsonl#1 has a label .*loss=kto'):
        read(tmp_path, json.dumps(label))
    with pytest.raises(UserError, match='put them into two files'):
        read(tmp_path, json.dumps(label), line())
    with pytest.raises(UserError, match='"margin", which only the stage reward reads'):
        read(tmp_path, line()[:-1] + ', "margin": 2}')


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    half = 'x\ud83d'
    (found,), _ = read(tmp_path, line([dict(role='user', content=half)], half, 'b'))
    assert (found.prompt[0]['content'], found.chosen) == ('x\ufffd', 'x\ufffd')
