"""Examples from conversations and from users' files."""

import json

import pytest

from gptjax.core.console import UserError
from gptjax.eval.tasks import examples


@pytest.fixture
def documents():
    """Sixty conversations of one to six turns."""
    text_of = lambda n: '\n\n'.join(f'turn {turn} of {n}' for turn in range(1 + n % 6))
    return [dict(id=f'c/{n}', text=text_of(n)) for n in range(60)]


def test_the_reference_is_the_turn_after_the_prompt(documents):
    found = examples.reply_examples(documents, 0, seed=0)
    assert len(found) == 50  # ten conversations have only one turn
    texts = {document['id']: document['text'].split('\n\n') for document in documents}
    for example in found:
        turns = texts[example.id]
        contents = [message['content'] for message in example.prompt]
        roles = [message['role'] for message in example.prompt]
        assert turns[: len(contents)] == contents
        assert example.references == (turns[len(contents)],)
        assert roles[0] == roles[-1] == 'user' and set(roles[1::2]) <= {'assistant'}
    assert len({len(example.prompt) for example in found}) == 3
    with pytest.raises(UserError, match='no text with two turns'):
        examples.reply_examples([dict(id='a', text='only one\nturn')], 5, 0)


def test_an_example_depends_on_its_conversation_and_the_seed_alone(documents):
    by_id, other_seed = (
        {example.id: example for example in examples.reply_examples(documents, 0, seed)}
        for seed in (0, 1)
    )
    few = examples.reply_examples(documents[::-1][:30], 10, seed=0)
    assert len(few) == 10 and all(by_id[example.id] == example for example in few)
    assert other_seed.keys() == by_id.keys() and other_seed != by_id
    identities = [example.identity() for example in by_id.values()]
    hashes = {identity['item_sha256'] for identity in identities}
    assert len(hashes) == 50
    assert hashes.isdisjoint(identity['prompt_sha256'] for identity in identities)


def test_the_reply_is_one_of_the_choices(documents):
    replies = examples.reply_examples(documents, 0, seed=0)
    found = examples.choice_examples(replies, 4, seed=0)
    reference_of = {example.id: example.references[0] for example in replies}
    for example in found:
        assert example.choices[example.answer] == reference_of[example.id]
        assert len(set(example.choices)) == 4
        assert set(example.choices) <= set(reference_of.values())
    assert {example.answer for example in found} == {0, 1, 2, 3}
    with pytest.raises(UserError, match='eval.choices=99 .*: use a smaller number, or'):
        examples.choice_examples(replies, 99, seed=0)
    with pytest.raises(UserError, match='the 1 different replies: use --tasks=reply, '):
        examples.choice_examples(replies[:1], 4, seed=0)


def test_shuffled_references_are_of_other_examples():
    found = [examples.Example(str(n), 'p', (f'r{n}',)) for n in range(20)]
    others = examples.shuffle_references(found, seed=0)
    assert sorted(others) == sorted(f'r{n}' for n in range(20))
    assert all(other != f'r{n}' for n, other in enumerate(others))
    assert examples.shuffle_references(found[:1], 0) == ['']


@pytest.fixture
def read_lines(tmp_path):
    """Reads examples from a file with these lines."""
    path = tmp_path / 'mine.jsonl'

    def read(*lines):
        path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
        return examples.read_example_file(path)

    return read


def test_files_of_references_and_of_choices(read_lines):
    first, second = read_lines(
        '{"prompt": "Q:", "references": [" A"]}',
        '',
        '{"id": 7, "prompt": [{"role": "user", "content": "ü"}], '
        '"references": ["x", "y"], "stop": ["\\n"], "more": 1}',
    )
    assert first == examples.Example('mine.jsonl:1', 'Q:', (' A',))
    assert second.id == '7' and second.stop == ('\n',)
    assert second.prompt == [dict(role='user', content='ü')]
    (example,) = read_lines(
        '{"id": null, "prompt": "", "choices": ["a", "b"], "answer": 1}'
    )
    assert example.id == 'mine.jsonl:1'
    assert example.choices == ('a', 'b') and example.answer == 1


GOOD = '{"prompt": "p", "references": ["r"]}'
CHOICE = {'prompt': 'p', 'choices': ['a', 'b'], 'answer': 0}
BAD_LINES = {
    '[1]': 'not a JSON object',
    '{"references": ["r"]}': '"prompt" is missing',
    '{"prompt": 3, "references": ["r"]}': 'has no list "prompt", but 3',
    '{"prompt": [], "references": ["r"]}': 'has no list "prompt", but []',
    '{"prompt": [{"role": "me", "content": ""}], "references": ["r"]}': 'use system, ',
    '{"prompt": "p"}': 'give either "references", or "choices"',
    json.dumps({**CHOICE, 'references': ['r']}): 'give either',
    '{"prompt": "p", "references": "r"}': '"references" is not a list of strings',
    '{"prompt": "p", "references": []}': '"references" is not a list of strings',
    '{"prompt": "p", "references": ["r"], "stop": "x"}': '"stop" is not a list',
    json.dumps({**CHOICE, 'choices': ['a']}): 'two or more strings',
    json.dumps({**CHOICE, 'answer': 2}): '"answer" is 2: use the index',
    json.dumps({**CHOICE, 'answer': True}): '"answer" is true',
    '{"prompt": "p", "choices": ["a", "b"]}': '"answer" is null',
    json.dumps(CHOICE): "has 'choices', and line 1 has 'references'",
}


@pytest.mark.parametrize('line', BAD_LINES)
def test_the_error_of_a_bad_line_has_its_number(line, read_lines, tmp_path):
    with pytest.raises(UserError) as error:
        read_lines(GOOD, '', line)
    assert str(error.value).startswith(f'--tasks={tmp_path}/mine.jsonl: line 3')
    assert BAD_LINES[line] in str(error.value)


def test_ids_that_repeat_are_replaced_by_lines(read_lines, capsys):
    lines = [json.dumps(dict(id='sums', prompt=p, references=['r'])) for p in 'ab']
    found = [example.id for example in read_lines(*lines)]
    assert found == ['mine.jsonl:1', 'mine.jsonl:2']
    assert 'its ids repeat, so the lines are used' in capsys.readouterr().out


def test_missing_and_empty_files(read_lines, tmp_path):
    with pytest.raises(UserError, match='none.jsonl: No such file'):
        examples.read_example_file(tmp_path / 'none.jsonl')
    with pytest.raises(UserError, match='the file is empty'):
        read_lines(' ')
