"""The stage eval: a trained model and its baselines."""

import json
import math
import shutil
from contextlib import contextmanager

import pytest
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval import evaluate as stage
from gptjax.eval import results
from gptjax.eval.evaluate import evaluate
from gptjax.eval.held_out_documents import (
    choose_documents,
    find_run_of_documents,
)
from gptjax.eval.tasks import examples
from tests import runs


@pytest.fixture(scope='module')
def config(trained_run) -> ConfigDict:
    config = run_dir.read_config(trained_run)
    config.eval.documents = 5
    return config


@pytest.fixture(scope='module')
def evaluated(trained_run, config, tmp_path_factory):
    """(run directory, what `evaluate` returned)."""
    workdir = runs.copy(trained_run, tmp_path_factory.mktemp('evaluated') / 'run')
    return workdir, evaluate(config, workdir)


def test_results_and_baselines_are_written(evaluated, trained_run):
    workdir, evaluation = evaluated
    assert json.loads((workdir / 'eval.json').read_text()) == evaluation
    results = evaluation['results']
    assert results['documents'] == 5 and results['context'] == 64
    assert results['bits_per_byte'] == pytest.approx(
        results['loss'] * results['tokens'] / math.log(2) / results['bytes']
    )
    # After four steps the model is a little better than a uniform distribution.
    assert 0.5 * math.log(512) < results['loss'] < math.log(512)
    assert evaluation['baselines']['bits_per_byte']['xz'] > 1
    validations = [r for r in runs.records(workdir) if r['split'] == 'validation']
    best = min(validations, key=lambda record: record['loss'])
    assert evaluation['checkpoint_step'] == best['step']
    for path in (trained_run / 'checkpoints').rglob('*'):  # they must not change
        if path.is_file():
            copy = workdir / path.relative_to(trained_run)
            assert copy.read_bytes() == path.read_bytes()


def test_a_later_run_is_evaluated_on_documents_of_its_start_run(
    evaluated, config, tmp_path
):
    first, evaluation = evaluated
    later = runs.copy(first, tmp_path / 'later')
    for name in ('eval.json', 'baselines.json'):
        (later / name).unlink()
    written_at = (first / 'baselines.json').stat().st_mtime_ns
    for name in ('documents', 'prepared'):
        shutil.rmtree(later / name)
    with_start = ConfigDict(config.to_dict())
    with_start.start = ConfigDict(dict(run=str(first), step=0))
    found = evaluate(with_start, later, 'perplexity')
    for name in ('results', 'baselines'):
        assert {**found[name], 'seconds': 0} == {**evaluation[name], 'seconds': 0}
    assert (later / 'baselines.json').exists()
    assert (first / 'baselines.json').stat().st_mtime_ns == written_at


def test_every_mesh_gives_the_same(evaluated, config):
    workdir, evaluation = evaluated
    other = ConfigDict(config.to_dict())
    other.mesh.update(data=1, fsdp=2, tensor=2, context=2)
    found = evaluate(other, workdir)['results']['loss']
    assert found == pytest.approx(evaluation['results']['loss'], rel=1e-5)


def test_runs_that_cannot_be_evaluated(tmp_path, config):
    other = ConfigDict(config.to_dict())
    other.eval.batch_size = 12  # not divisible by the mesh
    with pytest.raises(UserError, match='eval.batch_size=12 is not divisible'):
        evaluate(other, tmp_path)
    with pytest.raises(UserError, match='run the stage data first'):
        find_run_of_documents(config, tmp_path)
    storage.write_text(tmp_path / 'documents' / 'validation.jsonl', '{"id": "half')
    # As if the process had been killed.
    storage.write_text(tmp_path / '.documents.unfinished', '')
    with pytest.raises(UserError, match='run the stage data first'):
        find_run_of_documents(config, tmp_path)
    with pytest.raises(UserError, match='run the stage pretrain first'):
        evaluate(config, tmp_path)


# ---- what is written


def test_results_that_another_process_writes_meanwhile_stay(
    evaluated, config, tmp_path, monkeypatch
):
    workdir = runs.copy(evaluated[0], tmp_path / 'run')
    path = workdir / 'eval.json'
    before = json.loads(path.read_text())
    task = before['tasks']['perplexity']

    def ours(predictor, documents):
        found = json.loads(path.read_text())  # another process would end here
        results.write_results(
            path, dict(found, tasks=dict(found['tasks'], theirs=task))
        )
        return dict(ours=task)

    monkeypatch.setattr(stage, 'find_task', lambda name, config: ours)
    found = evaluate(config, workdir, 'ours')
    assert list(found['tasks']) == ['perplexity', 'theirs', 'ours']
    assert json.loads(path.read_text()) == found
    assert found['results'] == before['results']


def test_damaged_results_count_as_none(tmp_path, capsys):
    path = tmp_path / 'eval.json'
    for content in (b'', b'[]', b'{}'):
        path.write_bytes(content)
        assert stage._read_earlier_results(path, 'weights') == {}
    assert 'eval.json is damaged: it is ignored' in capsys.readouterr().err


def test_reading_a_model_shows_a_progress_bar(config, tmp_path, monkeypatch, capsys):
    shown = []

    @contextmanager
    def bar(label, total):
        shown.append(label)
        yield
        shown.pop()

    def load_model(*_):
        raise UserError(f'shown: {shown}')

    monkeypatch.setattr(stage.console, 'progress_bar', bar)
    monkeypatch.setattr(stage, 'load_model', load_model)
    with pytest.raises(UserError, match="shown: .'reading the model'"):
        evaluate(config, tmp_path, 'perplexity')

    shown.clear()
    monkeypatch.setattr(stage, 'load_start_run', load_model)
    monkeypatch.setattr(stage.dialogue_task, 'write_transcripts', lambda *_: None)
    with_start = ConfigDict(dict(config.to_dict(), start=dict(run='a', step=1)))
    stage._add_start_as_baseline(with_start, config.eval, tmp_path, None, [], {})
    assert "shown: ['reading the model of the start run']" in capsys.readouterr().out


# ---- tasks

CHEAP = ('--config=configs/tiny.py', *runs.SHORT[1:], '--config.eval.documents=12')


@pytest.fixture(scope='module')
def tasks_workdir(trained_run, tmp_path_factory):
    return runs.copy(trained_run, tmp_path_factory.mktemp('tasks') / 'run')


@pytest.fixture(scope='module')
def evaluated_tasks(tasks_workdir, tmp_path_factory):
    """(what `eval --json` wrote for three tasks, standard output)."""
    folder = tmp_path_factory.mktemp('files')
    (folder / 'mine.jsonl').write_text(
        '{"prompt": "The sky is ", "choices": ["blue", "a kind of tea"], "answer": 0}\n'
        '{"prompt": [{"role": "user", "content": "Hi!"}], "choices": ["Hey", "No"], '
        '"answer": 1}\n'
    )
    path = folder / 'out' / 'found.json'
    names = f'reply,choice,{folder}/mine.jsonl'
    words = ('eval', *CHEAP, f'--workdir={tasks_workdir}', f'--tasks={names}')
    words = (*words, '--max_tokens=8', f'--json={path}')
    output, _ = runs.finish(runs.start(*words))
    return json.loads(path.read_text()), output


def test_both_json_files_agree_and_every_figure_has_an_interval_and_a_baseline(
    evaluated_tasks, tasks_workdir
):
    found, output = evaluated_tasks
    assert found == json.loads((tasks_workdir / 'eval.json').read_text())
    assert list(found['tasks']) == ['perplexity', 'reply', 'choice', 'mine']
    assert found['results']['documents'] == 12
    assert found['checkpoint_step'] in (2, 4) and len(found['fingerprint']) == 64
    for task_name, task in found['tasks'].items():
        assert task['bootstrap'] == dict(resamples=1000, level=0.95, seed=0)
        for name, figure in task['figures'].items():
            if name == 'number':  # no reference is a number
                assert figure['value'] is None, task_name
                continue
            low, high = figure['interval']
            assert low <= figure['value'] * (1 + 1e-12) + 1e-12, (task_name, name)
            assert figure['value'] <= high * (1 + 1e-12) + 1e-12, (task_name, name)
            assert figure['baselines'], (task_name, name)
    for word in ('bits per byte', 'BLEU', 'chrF', 'ROUGE-Lsum', 'distinct-2', 'chance'):
        assert word in output


def test_results_have_the_settings_and_the_examples(evaluated_tasks, tasks_workdir):
    found, _ = evaluated_tasks
    reply = found['tasks']['reply']
    assert reply['settings']['max_tokens'] == 8 and reply['settings']['seed'] == 0
    assert reply['settings']['prompt_tokens_at_most'] == 64 - 8
    documents = [*storage.read_jsonl(tasks_workdir / 'documents' / 'validation.jsonl')]
    documents = choose_documents(documents, 12)
    expected = examples.reply_examples(documents, 200, seed=0)
    for item, example in zip(reply['items'], expected, strict=True):
        assert item['prompt_sha256'] == example.identity()['prompt_sha256']
        assert item['references'] == [*example.references]
    assert len(reply['prompts_sha256']) == 64
    assert 'tok:13a' in reply['signatures']['bleu']
    assert found['tasks']['mine']['items'][0]['id'] == 'mine.jsonl:1'


def test_a_second_call_gives_the_same_and_keeps_earlier_results(
    evaluated_tasks, tasks_workdir
):
    before = evaluated_tasks[0]
    config = run_dir.read_config(tasks_workdir)
    config.eval.update(documents=12, max_tokens=8)
    found = evaluate(config, tasks_workdir, 'reply', tasks_workdir / 'copy.json')
    assert found['results'] == before['results']  # not computed again
    assert list(found['tasks']) == list(before['tasks'])
    copied = json.loads((tasks_workdir / 'copy.json').read_text())
    assert copied == dict(found, tasks=dict(reply=found['tasks']['reply']))
    # The numbers of devices differ, but the replies are the same.
    replies, replies_before = (
        [item['reply'] for item in evaluation['tasks']['reply']['items']]
        for evaluation in (found, before)
    )
    assert replies == replies_before


def test_tasks_that_do_not_exist_are_refused_before_the_model_is_read(
    tmp_path, trained_run, capsys
):
    for flag, message in (
        ('--tasks=reply,speling', 'speling: no such task: use perplexity, reply'),
        (f'--tasks={tmp_path}/none.jsonl', 'none.jsonl: No such file'),
        ('--tasks=,', '--tasks is empty'),
        ('--tasks=x/a.jsonl,a.jsonl', "2 results are called 'a'"),
        ('--step=2', 'name another file'),
        (f'--json={tmp_path}', 'is a folder'),
    ):
        assert runs.gptjax('eval', f'--workdir={trained_run}', flag) == 2
        assert message in capsys.readouterr().err
    assert not (trained_run / 'eval.json').exists()
