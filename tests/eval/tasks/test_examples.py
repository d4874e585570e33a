"""Prompts from conversations and from users' files."""

import json

import pytest

from gptjax.core.console import UserError
from gptjax.eval.tasks import examples


def conversations(count):
    text_of = lambda n: '\n\n'.join(f'turn {turn} of {n}' for turn in range(1 + n % 6))
    return [dict(id=f'c/{n}', text=text_of(n)) for n in range(count)]


def test_the_reference_is_the_turn_after_the_prompt():
    documents = conversations(60)
    found = examples.reply_examples(documents, 0, seed=0)
    assert len(found) == 50  # ten have one turn only
    texts = {document['id']: document['text'].split('\n\n') for document in documents}
    for example in found:
        turns = texts[example.id]
        said = [message['content'] for message in example.prompt]
        roles = [message['role'] for message in example.prompt]
        assert turns[: len(said)] == said
        assert example.references == (turns[len(said)],)
        assert roles[0] == roles[-1] == 'user' and set(roles[1::2]) <= {'assistant'}
    assert len({len(example.prompt) for example in found}) == 3  # cuts differ


def test_an_item_depends_on_its_conversation_and_the_seed_alone():
    documents = conversations(60)
    every, other = (
        {item.id: item for item in examples.reply_examples(documents, 0, seed)}
        for seed in (0, 1)
    )
    few = examples.reply_examples(documents[::-1][:30], 10, seed=0)
    assert len(few) == 10 and all(every[example.id] == example for example in few)
    assert other.keys() == every.keys() and other != every
    identities = [example.identity() for example in every.values()]
    hashes = {identity['item_sha256'] for identity in identities}
    assert len(hashes) == 50
    assert hashes.isdisjoint(identity['prompt_sha256'] for identity in identities)


def test_texts_of_one_turn_are_refused():
    with pytest.raises(UserError, match='no text of two turns'):
        examples.reply_examples([dict(id='a', text='only one\nturn')], 5, 0)


def test_the_truth_is_one_of_the_choices():
    replies = examples.reply_examples(conversations(60), 0, seed=0)
    found = examples.choice_examples(replies, 4, seed=0)
    truths = {example.id: example.references[0] for example in replies}
    for example in found:
        assert example.choices[example.answer] == truths[example.id]
        assert len(set(example.choices)) == 4
        assert set(example.choices) <= set(truths.values())
    assert {example.answer for example in found} == {0, 1, 2, 3}
    with pytest.raises(UserError, match='eval.choices=99'):
        examples.choice_examples(replies, 99, seed=0)


def test_other_references_are_those_of_others():
    found = [examples.Example(str(n), 'p', (f'r{n}',)) for n in range(20)]
    others = examples.shuffle_references(found, seed=0)
    assert sorted(others) == sorted(f'r{n}' for n in range(20))
    assert all(other != f'r{n}' for n, other in enumerate(others))
    assert examples.shuffle_references(found[:1], 0) == ['']


def write(path, *lines):
    path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    return path


def test_files_of_references_and_of_choices(tmp_path):
    path = write(
        tmp_path / 'mine.jsonl',
        '{"prompt": "Q:", "references": [" A"]}',
        '',
        '{"id": 7, "prompt": [{"role": "user", "content": "ü"}], '
        '"references": ["x", "y"], "stop": ["\\n"], "more": 1}',
    )
    first, second = examples.read_example_file(path)
    assert first == examples.Example('mine.jsonl:1', 'Q:', (' A',))
    assert second.id == '7' and second.stop == ('\n',)
    assert second.prompt == [dict(role='user', content='ü')]
    line = '{"prompt": "", "choices": ["a", "b"], "answer": 1}'
    (example,) = examples.read_example_file(write(path, line))
    assert example.choices == ('a', 'b') and example.answer == 1


GOOD = '{"prompt": "p", "references": ["r"]}'
CHOICE = {'prompt': 'p', 'choices': ['a', 'b'], 'answer': 0}
BAD_LINES = {
    '[1]': 'no JSON object',
    '{"references": ["r"]}': 'has no "prompt"',
    '{"prompt": 3, "references": ["r"]}': '"prompt" is neither',
    '{"prompt": [], "references": ["r"]}': '"prompt" is neither',
    '{"prompt": [{"role": "me", "content": ""}], "references": ["r"]}': 'roles system',
    '{"prompt": "p"}': 'needs either "references" or "choices"',
    json.dumps({**CHOICE, 'references': ['r']}): 'needs either',
    '{"prompt": "p", "references": "r"}': '"references" is no list of texts',
    '{"prompt": "p", "references": []}': '"references" is no list of texts',
    '{"prompt": "p", "references": ["r"], "stop": "x"}': '"stop" is no list',
    json.dumps({**CHOICE, 'choices': ['a']}): 'two texts or more',
    json.dumps({**CHOICE, 'answer': 2}): '"answer" is 2: use the place',
    json.dumps({**CHOICE, 'answer': True}): '"answer" is true',
    json.dumps({**CHOICE, 'answer': 'a'}): '"answer" is "a"',
    '{"prompt": "p", "choices": ["a", "b"]}': '"answer" is null',
}


@pytest.mark.parametrize('line', BAD_LINES)
def test_a_bad_line_is_named_by_its_number(line, tmp_path):
    path = write(tmp_path / 'mine.jsonl', GOOD, '', line)
    with pytest.raises(UserError) as error:
        examples.read_example_file(path)
    assert str(error.value).startswith(f'--tasks={path}: line 3')
    assert BAD_LINES[line] in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match='none.jsonl: No such file'):
        examples.read_example_file(tmp_path / 'none.jsonl')
    with pytest.raises(UserError, match='the file is empty'):
        examples.read_example_file(write(tmp_path / 'empty.jsonl', ' '))
    path = write(tmp_path / 'mixed.jsonl', GOOD, json.dumps(CHOICE))
    with pytest.raises(UserError, match="line 2: has 'choices', and line 1 has 'ref"):
        examples.read_example_file(path)
    twice = '{"id": "x", "prompt": "p", "references": ["r"]}'
    path = write(tmp_path / 'twice.jsonl', twice, twice)
    with pytest.raises(UserError, match="line 2: the id 'x' is that of line 1"):
        examples.read_example_file(path)
