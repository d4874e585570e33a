"""Problems: the content decides the split, and (seed, index) decides the order."""

import json
import sys

import pytest

from configs import common
from configs import ppo as ppo_configs
from gptjax.core.config import complete_new
from gptjax.core.console import UserError
from gptjax.data.render_process import RefusedMessages
from gptjax.data.splits import assign_split
from gptjax.post.problems import problem_sources, verifiable_tasks
from gptjax.post.problems.verifiable_tasks import problem_inputs
from gptjax.post.rollout import PromptFormat
from gptjax.post.select_replies import first_problems


def section(**fields):
    section = common.task_section()
    section.update(dict(problems=300, demonstrations=40, validation=20, held_out=50))
    section.update(fields)
    return section


def make_task(seed=0, fits=lambda messages: True, **fields):
    return verifiable_tasks.make_task(section(**fields), seed, fits)


@pytest.fixture(scope='module')
def sums():
    pytest.importorskip('reasoning_gym')
    return make_task()


def ids(problems):
    return [problem.id for problem in problems]


def test_splits_share_no_problem_and_have_each_once(sums):
    splits = [
        [*map(sums.train, range(300))],
        sums.validation(20),
        sums.held_out(50),
    ]
    assert [len({*ids(split)}) for split in splits] == [300, 20, 50]
    questions = {p.messages[0]['content'] for split in splits for p in split}
    assert len(set().union(*map(ids, splits))) == len(questions) == 370


def test_training_problems_split_further_as_documents_do(sums):
    sides = [assign_split(problem.id, 0.1) for problem in sums.demonstrations(300)]
    assert 10 < sides.count('validation') < 60


def test_training_problems_are_a_function_of_seed_and_index(sums):
    again, other = map(make_task, (0, 1))
    numbers = range(290, 610)  # across the boundary of two epochs
    first = ids(map(sums.train, numbers))
    assert first == ids(map(again.train, reversed(numbers)))[::-1]
    assert first != ids(map(other.train, numbers))
    assert sorted(first[10:310]) == sorted(ids(sums.demonstrations(300)))
    # All seeds have the same problems, so that seeds can be compared.
    assert ids(sums.held_out(50)) == ids(other.held_out(50))
    assert ids(sums.demonstrations(40)) == ids(other.demonstrations(40))


def test_neighbouring_indices_of_the_generator_are_not_neighbours_here(sums):
    # reasoning-gym uses seed + index as a seed, which would repeat problems.
    places = [problem.meta['metadata']['source_index'] for problem in sums.held_out(50)]
    assert min(abs(a - b) for a in places for b in places if a != b) > 1000


def test_the_verifier_judges_numbers(sums):
    problem = sums.held_out(1)[0]
    assert sums.score(problem, problem.answer) == 1.0
    assert sums.score(problem, f'{problem.answer}.0') == 1.0
    assert sums.score(problem, f'{problem.answer}9') < 1.0
    assert sums.score(problem, '') == 0.0


def test_problems_that_do_not_fit_are_left_out(sums):
    short = lambda messages: len(messages[0]['content']) < 68
    assert all(short(p.messages) for p in make_task(fits=short).held_out(50))
    message = r'split train that fits the context \([1-9].* too long\): .* shorter'
    with pytest.raises(UserError, match=message):
        make_task(fits=lambda messages: False).train(0)


def test_a_small_task_has_all_problems_that_exist(sums):
    one_digit = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    task = make_task(options=one_digit)
    splits = [task.demonstrations(999), task.validation(999), task.held_out(999)]
    assert sum(map(len, splits)) == 200  # 10 x 10 pairs of numbers and two signs
    assert task.train(len(splits[0])).id in ids(splits[0])
    message = r'split validation .*\(0 are too long\): .* so that there are more prob'
    with pytest.raises(UserError, match=message):
        make_task(options=one_digit, held_out_fraction=1e-9).validation(9)


def test_unknown_datasets_and_options(sums, monkeypatch):
    with pytest.raises(UserError, match='task.name=chain_some: .* chain_sum'):
        make_task(name='chain_some')
    with pytest.raises(UserError, match='task.options of chain_sum: .*min_digits'):
        make_task(options=dict(min_digits=0))
    monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
    with pytest.raises(UserError, match='pip install reasoning-gym, or .*task.path'):
        make_task()


class Parsing:
    """A dataset whose verifier parses the reply; a broken verifier always raises."""

    def __init__(self, broken):
        self.broken = broken

    def __getitem__(self, index):
        return dict(question=f'{index} + 1?', answer=str(index + 1))

    def score_answer(self, reply, entry):
        if self.broken:
            raise KeyError('no such entry')
        return float(int(reply) == int(entry['answer']))


@pytest.mark.parametrize('broken', (False, True))
def test_a_verifier_that_raises(broken, monkeypatch):
    monkeypatch.setattr(problem_sources, 'make_gym_dataset', lambda *_: Parsing(broken))
    task = make_task()
    (problem,) = task.held_out(1)
    if broken:  # also for the right answer
        with pytest.raises(KeyError, match='no such entry'):
            task.score(problem, 'seven')
    else:
        assert task.score(problem, problem.answer) == 1.0
        assert task.score(problem, 'seven') == 0.0


# ---- files


def write(path, *lines):
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n', encoding='utf-8')
    return str(path)


SUMS = [dict(prompt=f'{n} + 1 =', answer=str(n + 1)) for n in range(60)]


def test_a_file_of_problems(tmp_path, capsys):
    path = write(tmp_path / 'sums.jsonl', *SUMS, *SUMS[:3])
    short = lambda messages: messages[0]['content'] not in ('7 + 1 =', '8 + 1 =')
    task = make_task(fits=short, path=path, problems=20)
    train, validation = task.demonstrations(99), len(task.validation(99))
    held_out = len(task.held_out(99))
    assert sorted(ids(map(task.train, range(20)))) == sorted(ids(train))
    assert task.score(train[0], f' {train[0].answer}\n') == 1.0
    assert task.score(train[0], 'no') == 0.0
    assert capsys.readouterr().out == (
        'warning: equal prompts left out 3, data.context (too long) left out 2, '
        f'task.problems=20 left out {60 - 2 - validation - held_out - 20} of 63 '
        f'problems\nproblems: 20 for training, {validation} for validation, '
        f'{held_out} held out\n'
    )


def test_the_error_of_prompts_that_are_too_long_names_the_fields(tmp_path):
    prompt_format = PromptFormat(None, 'turns', 64, 48, 1.0, 'policy')
    with pytest.raises(UserError) as error:
        verifiable_tasks.make_task(
            section(path=write(tmp_path / 'sums.jsonl', *SUMS)),
            0,
            lambda messages: False,
            prompt_format.room_advice,
        )
    for part in ('60 are too long', '--config.policy.max_tokens=48', 'data.context=64'):
        assert part in str(error.value)


def test_the_conversations_of_dialogue_follow_the_start():
    config = ppo_configs.get_config('reward=runs/judge')
    assert config.task.path == 'runs/sft/dialogue'
    config.start.run = 'runs/mine'
    assert config.task.path == 'runs/mine/dialogue'
    config.task.path = 'mine.jsonl'
    assert complete_new(config).task.path == 'mine.jsonl'


def test_one_prompt_with_two_answers_is_refused(tmp_path):
    write(tmp_path / 'a.jsonl', *SUMS[:3], dict(SUMS[1], answer='7'))
    with pytest.raises(UserError, match='is not there: .*task.path=runs/sft/dialogue'):
        make_task(path=str(tmp_path / 'dialogue'))
    with pytest.raises(UserError, match='lines 2 and 4 have the same prompt and diff'):
        problem_sources.read_problems(tmp_path / 'a.jsonl')


def test_messages_end_with_the_answer_or_have_none(tmp_path):
    said = [dict(role='system', content='Be brief.'), dict(role='user', content='Hi')]
    reply = dict(role='assistant', content='Hello')
    write(tmp_path / 'a.jsonl', dict(messages=[*said, reply]))
    (problem,), _ = problem_sources.read_problems(tmp_path / 'a.jsonl')
    assert (list(problem.messages), problem.answer) == (said, 'Hello')
    open_ended = [dict(prompt=f'Tell me of {n}') for n in range(60)]
    path = write(tmp_path / 'b.jsonl', *open_ended)
    assert make_task(path=path).score is None


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (dict(question='1'), 'line 2 has no list "messages", .* of "prompt"'),
        (dict(messages=[dict(role='robot', content='')]), "messages.0..role='robot'"),
        (dict(prompt='1', answer=0), 'answer that is not a string'),
        (dict(messages=[dict(role='assistant', content='')]), 'no message to reply to'),
        ([1], 'line 2 is .* JSON object'),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    write(tmp_path / 'a.jsonl', SUMS[0], line)
    with pytest.raises(UserError, match=message):
        problem_sources.read_problems(tmp_path / 'a.jsonl')


# ---- RUN/task


def test_answers_as_conversations_are_the_same_for_all_seeds(sums, tmp_path):
    config = common.base()
    config.task = section()
    write_task = lambda name: verifiable_tasks.write_task(config, tmp_path / name)
    manifest = write_task('a')
    assert manifest['problems'] == dict(train=40, validation=20, held_out=50)
    config.seed = 7
    assert write_task('b')['sha256'] == manifest['sha256']
    config.task.demonstrations = 0
    assert write_task('none')['problems']['train'] == 0
    assert (tmp_path / 'none' / 'task' / 'train.jsonl').read_bytes() == b''
    config.task.demonstrations = 40
    lines = (tmp_path / 'a/task/train.jsonl').read_text().splitlines()
    problem = sums.demonstrations(1)[0]
    answer = dict(role='assistant', content=problem.answer)
    assert json.loads(lines[0])['messages'] == [*problem.messages, answer]
    (tmp_path / 'b/task/held_out.jsonl').unlink()
    with pytest.raises(UserError, match='task/held_out.jsonl is missing: delete'):
        write_task('b')
    config.task.validation = 10
    with pytest.raises(UserError, match='task.validation: 20 there, 10 here'):
        write_task('a')


# ---- a folder of conversations


def say(*texts, head=()):
    roles = ('user', 'assistant') * len(texts)
    said = zip(roles, texts, strict=False)
    return [*head, *(dict(role=role, content=text) for role, text in said)]


def folder_of(tmp_path, train, validation):
    for name, chats in dict(train=train, validation=validation).items():
        lines = [
            json.dumps(dict(id=f'{name}{place}@0', messages=messages))
            for place, messages in enumerate(chats)
        ]
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
    return tmp_path


def test_prompts_of_conversations_are_not_trained_on_where_they_are_held_out(
    tmp_path, capsys
):
    chats = [say(f'question {i}', 'yes') for i in range(60)]
    folder = folder_of(tmp_path, [say('question 3', 'no'), *chats[20:]], chats[:30])
    task = make_task(path=str(folder))
    train, validation, held_out = (
        {problem.messages[-1]['content'] for problem in problems_of(99)}
        for problems_of in (task.demonstrations, task.validation, task.held_out)
    )
    assert train == {f'question {i}' for i in range(30, 60)}
    assert validation | held_out == {f'question {i}' for i in range(30)}
    assert not validation & held_out and validation and held_out
    assert task.score is None
    printed = capsys.readouterr().out
    # ten of the 41 training conversations, and 'question 3', are held out
    assert 'problems: 30 for training' in printed
    assert printed.startswith('warning: equal prompts left out 11 of 71 problems')


def test_a_prompt_that_does_not_fit_loses_its_oldest_messages(tmp_path):
    head = [dict(role='system', content='Be kind.')]
    chat = say('one', 'two', 'three', 'four', head=head)
    long = say('a prompt that is longer than all that there is', 'five')
    folder = folder_of(tmp_path, [chat, long], [say(str(i), 'b') for i in range(20)])
    fits = lambda messages: sum(len(m['content']) for m in messages) <= 13
    train = make_task(fits=fits, path=str(folder)).demonstrations(9)
    assert [problem.messages for problem in train] in (
        [(*head, dict(role='user', content=text))] for text in ('one', 'three')
    )


def test_a_prompt_that_the_template_refuses_is_left_out(tmp_path, capsys):
    def fits(messages):
        if messages[-1]['content'] == '5':
            raise RefusedMessages('no')
        return True

    chats = [say(str(i), 'b') for i in range(20)]
    folder = folder_of(tmp_path, chats, chats[10:])
    train = make_task(fits=fits, path=str(folder)).demonstrations(99)
    assert len(train) == 9
    assert 'the chat template (it refuses them) left out 1' in capsys.readouterr().out


def test_what_is_held_out_stays_so_whatever_fits(tmp_path):
    chats = [say(f'first {i}', 'yes', f'second {i}', 'no') for i in range(60)]
    folder = folder_of(tmp_path, [say('a', 'b')], chats)
    held_out = []
    for most in (50, 10):
        fits = lambda messages, most=most: (
            sum(len(m['content']) for m in messages) < most
        )
        task = make_task(fits=fits, path=str(folder))
        texts = (problem.messages[-1]['content'] for problem in task.held_out(99))
        held_out.append({text.split()[1] for text in texts})
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize('share', [0.25, 0.5])
def test_prompts_of_chats_are_mixed_into_the_training_problems(tmp_path, share):
    chats = [say(f'question {n}', 'b') for n in range(40)]
    chats = str(folder_of(tmp_path, chats, chats[:9]))
    plain, mixed = (
        make_task(
            name='skills',
            problems=30,
            chats=path,
            chat_share=share,
        )
        for path in ('', chats)
    )
    drawn = [mixed.train(n) for n in range(20)]
    answered = [problem for problem in drawn if problem.answer]
    assert len(answered) == 20 * (1 - share)
    assert answered == [plain.train(n) for n in range(len(answered))]
    assert mixed.held_out(20) == plain.held_out(20)
    scores = [mixed.score(problem, problem.answer) for problem in drawn]
    assert scores == [float(bool(problem.answer)) for problem in drawn]


def test_without_chats_the_inputs_are_those_of_older_versions():
    task = section()
    inputs = problem_inputs(task.to_dict())
    assert not {'task.chats', 'task.chat_share'} & inputs.keys()
    assert 'on' not in inputs['task.rewards']['correct']
    assert problem_inputs(section(chats='chats').to_dict())['task.chat_share'] == 0.25


def test_the_first_problems_are_all_different(tmp_path):
    chats = [say(f'question {n}', 'b') for n in range(5)]
    chats = str(folder_of(tmp_path, chats, chats[:1]))
    task = make_task(name='skills', problems=30, chats=chats)
    for n, expected in ((20, 20), (99, 34)):
        problems = first_problems(task.train, n)
        assert len({problem.id for problem in problems}) == len(problems) == expected


def test_chats_that_are_not_there_are_named_by_their_field(tmp_path):
    with pytest.raises(UserError, match='task.chats='):
        make_task(name='skills', chats=str(tmp_path / 'none')).train(3)


@pytest.mark.parametrize(
    'line',
    (
        '{"id": 3, "messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": "b"}]}',
        '{"id": "a", "messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": null}]}',
        '{"id": "a"',
        '["a"]',
    ),
)
def test_a_broken_line_of_a_folder_names_the_file(tmp_path, line):
    folder = folder_of(tmp_path, [say('a', 'b')], [say('c', 'd')])
    (folder / 'train.jsonl').write_text(line + '\n')
    with pytest.raises(UserError, match='task.path=.*train.jsonl: '):
        make_task(path=str(folder))


def test_a_folder_that_holds_no_conversations_is_refused(tmp_path):
    with pytest.raises(UserError, match='task.path=.*validation.jsonl.*RUN/dialogue'):
        make_task(path=str(tmp_path))
    folder = folder_of(tmp_path, [say('a', 'b')], [say('c', 'd')])
    (folder / 'train.jsonl').write_text('{"id": "a", "messages": []}\n\n')
    with pytest.raises(UserError, match='train.jsonl: no conversation has a reply'):
        make_task(path=str(folder))


def test_other_conversations_are_another_task(tmp_path):
    folder = folder_of(tmp_path, [say('a', 'b')], [say('c', 'd')])
    path = section(path=str(folder))
    before = verifiable_tasks.problems_fingerprint(path)
    assert verifiable_tasks.problems_fingerprint(path) == before
    folder_of(tmp_path, [say('a', 'e')], [say('c', 'd')])
    assert verifiable_tasks.problems_fingerprint(path) != before


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    path = tmp_path / 'problems.jsonl'
    path.write_text(json.dumps(dict(prompt='x\ud83d', answer='y\ud83d')))
    (problem,), _ = problem_sources.read_problems(path)
    assert problem.messages[0]['content'] == 'x\ufffd' and problem.answer == 'y\ufffd'
