"""The model card: what it reads from the files of runs, and what it leaves out."""

import json
from types import SimpleNamespace

import pytest

from gptjax.core import run_dir, storage
from gptjax.serve.model_card import make_card
from gptjax.train.load_model import (
    inference_mesh,
    load_engine,
    load_model,
    model_fingerprint,
)

ENGINE = SimpleNamespace(
    context=128, vocab_size=512, trained_step=50, trained_fingerprint='these weights'
)


def figure(value, spread=0.05):
    return dict(value=value, interval=[value - spread, value + spread])


def item(skill, *contents, right=1):
    roles = ('user', 'assistant') * 2
    messages = [
        dict(role=role, content=content)
        for role, content in zip(roles, contents, strict=False)
    ]
    return dict(source=skill, messages=messages, reply='4', statistics=[right])


def evaluation(accuracies, items, **changes):
    """eval.json with a result by skill; drawn replies are less often right by 0.1."""
    figures = {'accuracy': figure(0.8), 'accuracy_drawn': figure(0.7)}
    for skill, accuracy in accuracies.items():
        figures[f'accuracy/{skill}'] = figure(accuracy)
        figures[f'accuracy_drawn/{skill}'] = figure(accuracy - 0.1)
    figures['accuracy']['baselines'] = {
        "always '4'": figure(0.1),
        'none': dict(value=None),
    }
    bootstrap = dict(level=0.95, resamples=10, seed=0)
    task = dict(kind='verifiable', about='problems', bootstrap=bootstrap)
    task |= dict(figures=figures, items=items)
    content = dict(checkpoint_step=50, fingerprint='these weights')
    return content | dict(tasks=dict(task=task)) | changes


@pytest.fixture
def run(tmp_path):
    """The last of four runs: pretraining, fine-tuning, a reward model and GRPO."""

    def write(name, stage, config, folder='', **manifest):
        command = f'python -m gptjax {stage} --workdir {name}'
        storage.write_json(tmp_path / name / 'environment.json', dict(command=command))
        storage.write_json(tmp_path / name / 'config.json', config)
        if folder:
            path = tmp_path / name / folder / 'manifest.json'
            storage.write_json(path, manifest)

    def source(licence, **counts):
        return dict(licence=licence, version='1.0', splits=dict(train=counts))

    def start(name, step):
        return dict(run=str(tmp_path / name), step=step)

    books, talk = source('MIT', documents=9), source('', conversations=5)
    write('base', 'pretrain', {}, 'documents', sources=dict(books=books), splits={})
    config = dict(start=start('base', 30))
    write('sft', 'sft', config, 'dialogue', sources=dict(talk=talk), splits={})
    ratings = dict(train=dict(items=7))
    write('judge', 'reward', config, 'ratings', splits=ratings)
    rewards = dict(liked=dict(function='model', run=str(tmp_path / 'judge')))
    task = dict(name='skills', path='', chats=str(tmp_path / 'sft/dialogue'))
    config = dict(start=start('sft', 40), policy={}, task=dict(task, rewards=rewards))
    write('assistant', 'grpo', config)
    return tmp_path / 'assistant'


def test_the_data_of_all_stages(run):
    card = make_card(run, 'assistant', ENGINE, 1000)
    assert (card.parameters, card.context, card.vocabulary) == (1000, 128, 512)
    stages = [(stage.run, stage.stage, stage.step) for stage in card.stages]
    assert stages[:2] == [('base', 'pretrain', 30), ('sft', 'sft', 40)]
    assert stages[2:] == [('judge', 'reward', None), ('assistant', 'grpo', 50)]
    sources = [
        [(s.name, s.amount, s.unit, s.licence) for s in stage.sources]
        for stage in card.stages
    ]
    talk = ('talk', 5, 'conversations', '')
    assert sources == [
        [('books', 9, 'documents', 'MIT')],
        [talk],
        [('ratings', 7, 'rated conversations', '')],
        [('skills', None, 'problems', ''), talk],
    ]
    assert 'knows nothing beyond the data' in card.remarks[1]
    assert 'has not been evaluated' in card.remarks[2]
    (run.parent / 'base/documents/manifest.json').unlink()
    remarks = make_card(run, 'assistant', ENGINE, 1000).remarks
    assert 'do not name all data' in remarks[1]


def test_skills_and_suggestions(run):
    accuracies = {f'skill{n}': 0.99 - n / 100 for n in range(7)}
    accuracies |= dict(most=0.7, less=0.69)
    items = [item(skill, f'{skill}?') for skill in accuracies]
    items.insert(0, item('skill1', 'hi', 'Hello!', 'not this one'))
    items.insert(1, item('skill1', ' the first question ', right=0))
    storage.write_json(run / 'eval.json', evaluation(accuracies, items))
    card = make_card(run, 'assistant', ENGINE, 1000)
    assert [skill.name for skill in card.can] == [*accuracies][:-1]
    assert [skill.name for skill in card.cannot] == ['less']
    best = card.can[0]
    assert (best.accuracy, best.accuracy_drawn, best.problems) == (0.99, 0.89, 1)
    assert card.can[1].problems == 3
    texts = [suggestion.text for suggestion in card.suggestions]
    assert texts[:3] == ['skill0?', 'the first question', 'skill2?']
    assert len(texts) == 6 and 'most?' not in texts
    [task] = card.tasks
    assert [figure.label for figure in task.figures][0] == 'accuracy'
    assert task.figures[0].interval == (0.8 - 0.05, 0.8 + 0.05)
    assert task.figures[0].baselines == {"always '4'": 0.1}
    quantized = make_card(run, 'assistant', ENGINE, 1000, weights='int8')
    assert 'without quantization' in quantized.remarks[-1]


def test_one_skill_has_the_figures_of_the_task(run):
    storage.write_json(run / 'eval.json', evaluation({}, [item('add', '2 + 2')]))
    card = make_card(run, 'assistant', ENGINE, 1000)
    assert [(s.skill.name, s.skill.accuracy) for s in card.suggestions] == [
        ('add', 0.8)
    ]


def test_figures_of_other_weights_are_not_shown(run):
    items = [item('add', '2 + 2')]
    other = evaluation({}, items, fingerprint='others', checkpoint_step=1200)
    storage.write_json(run / 'eval.json', other)
    card = make_card(run, 'assistant', ENGINE, 1000)
    assert not (card.can or card.tasks or card.suggestions)
    assert 'other weights, of step 1,200' in card.remarks[-1]


def test_damaged_files_leave_their_parts_out(run, capsys):
    wrong = evaluation(dict(add=0.9), [item('add', '2'), item('add', '\ud800')])
    infinite = evaluation({}, [item('add', '2')])
    infinite['tasks']['task']['figures']['accuracy']['value'] = float('inf')
    texts = ['', '{', '[]', '{"tasks": 3}', 'null', json.dumps(wrong)]
    texts += [json.dumps(infinite), '{"config": []}', '{"command": "\'"}']
    texts += ['{"start": {"run": 1}}', '{"splits": {"train": {"documents": "x"}}}']
    files = ['eval.json', 'config.json', 'environment.json']
    for path in [run / file for file in files] + [run.parent / 'base' / 'documents']:
        path = path / 'manifest.json' if path.name == 'documents' else path
        content = path.read_bytes() if path.exists() else None
        for text in texts:
            path.write_text(text)
            card = make_card(run, 'assistant', ENGINE, 1000)
            assert json.loads(card.model_dump_json())['suggestions'] == []
        path.unlink()
        path.mkdir()
        make_card(run, 'assistant', ENGINE, 1000)
        path.rmdir()
        if content:
            path.write_bytes(content)
    lines = set(capsys.readouterr().err.splitlines())
    assert all(line.endswith('ignored') for line in lines)
    # A run that starts from itself has one stage.
    config = dict(start=dict(run=str(run), step=1))
    storage.write_json(run / 'config.json', config)
    assert len(make_card(run, 'assistant', ENGINE, 1000).stages) == 1


def test_the_engine_knows_the_weights_that_were_evaluated(served_run):
    config = run_dir.read_config(served_run)
    trained = load_model(config, served_run, inference_mesh(config))
    engine = load_engine(config, served_run, weights='int8', slots=1)
    assert engine.trained_fingerprint == model_fingerprint(trained)
