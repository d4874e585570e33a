"""Stages and their controls, over one seed and over several."""

import json

import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import bootstrap, results, stage_table
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.tasks import verifiable_replies

HOW = BootstrapSettings(200, 0.95, 0)


def write(folder, right, out_of=20):
    """A run that solves the first `right` of its problems in each kind of decoding."""
    solved = np.arange(out_of) < right
    columns = {n: solved.astype(float) for n in ('greedy', 'drawn', 'passed')}
    columns.update(stopped=np.ones(out_of), items=np.ones(out_of))
    ids = map(str, range(out_of))
    items = [dict(id=id, prompt_sha256='p', item_sha256=id) for id in ids]
    figures = bootstrap.compute_figures(columns, verifiable_replies.FIGURES, HOW)
    task = results.make_result('verifiable', '', figures, columns, items, HOW, {})
    folder.mkdir(parents=True)
    evaluation = dict(tasks=dict(task=task), tokenizer='t')
    results.write_results(folder / 'eval.json', evaluation)
    lines = [dict(split='train', step=1, step_seconds=s) for s in (right, 0.5)]
    lines.insert(1, dict(split='validation', step=1))
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    storage.write_text(folder / 'metrics.jsonl', text)


def row_of(found, stage, figure='accuracy'):
    (row,) = (
        row for row in found['rows'] if (row['stage'], row['figure']) == (stage, figure)
    )
    return row


def test_one_seed_has_bootstrap_intervals_and_paired_differences(tmp_path, capsys):
    write(tmp_path / 'sft', 10)
    write(tmp_path / 'more', 12)
    write(tmp_path / 'grpo', 17)
    found = stage_table.write_stage_table(tmp_path, ['sft', 'more=sft', 'grpo=more'])
    row = row_of(found, 'grpo')
    assert (row['value'], row['control'], row['seconds']) == (0.85, 'more', 17.5)
    assert row['difference'] == pytest.approx(0.25)
    low, high = row['difference_interval']
    # 5 of 20 pairs differ, all in one direction, so a paired difference is not below 0.
    assert 0 <= low < 0.25 < high < 0.5
    assert 'control' not in row_of(found, 'sft')
    printed = capsys.readouterr().out
    assert 'One seed' in printed and '+0.250' in printed
    assert json.loads((tmp_path / 'stages.json').read_text()) == found
    assert '+0.250' in (tmp_path / 'stages.html').read_text()


def test_skills_have_a_column_for_each_stage(tmp_path, capsys):
    write(tmp_path / 'before', 10)
    for name, right in (('sft', 0.5), ('grpo', 0.75)):
        write(tmp_path / name, 10)
        evaluation = storage.read_json(tmp_path / name / 'eval.json')
        figure = dict(value=right, interval=[right - 0.1, right + 0.1])
        evaluation['tasks']['task']['figures']['accuracy/add'] = figure
        storage.write_json(tmp_path / name / 'eval.json', evaluation)
    found = stage_table.write_stage_table(tmp_path, ['before', 'sft', 'grpo=sft'])
    shown = [(row['skill'], row['stage'], row['value']) for row in found['skills']]
    assert shown == [('add', 'sft', 0.5), ('add', 'grpo', 0.75)]
    *_, heading, greedy, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ['skill', 'figure', 'sft', 'grpo']
    assert greedy.index('0.750 (0.650 … 0.850)') == heading.index('grpo')
    assert '0.750 (0.650 … 0.850)' in (tmp_path / 'stages.html').read_text()


def test_several_seeds_have_means_and_ranges(tmp_path, capsys):
    for seed, (control, better) in enumerate([(10, 12), (8, 14), (12, 12)]):
        write(tmp_path / str(seed) / 'more', control)
        write(tmp_path / str(seed) / 'grpo', better)
    found = stage_table.write_stage_table(tmp_path, ['grpo=more'])
    row = row_of(found, 'grpo')
    assert row['value'] == pytest.approx(38 / 60)
    assert row['seconds'] == pytest.approx(38 / 3 + 0.5)
    assert row['interval'] == [0.6, 0.7]
    assert row['difference'] == pytest.approx((2 + 6 + 0) / 60)
    assert row['difference_interval'] == pytest.approx([0, 0.3])
    assert 'Means over 3 seeds' in capsys.readouterr().out


def test_figures_that_are_not_finite_are_a_dash(tmp_path, capsys):
    for seed in '01':
        for run, right in (('more', 12), ('grpo', 14)):
            write(tmp_path / seed / run, right)
    path = tmp_path / '1' / 'grpo' / 'eval.json'
    evaluation = storage.read_json(path)
    task = evaluation['tasks']['task']
    task['figures']['accuracy'].update(value=None, interval=[None, None])
    task['items'][0]['statistics'] = [None] * len(task['columns'])
    results.write_results(path, evaluation)
    row = row_of(stage_table.write_stage_table(tmp_path, ['grpo=more']), 'grpo')
    assert row['value'] is row['difference'] is None
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if ' grpo ' in line
        and 'accuracy ' in line and 'temperature' not in line
    )  # fmt: skip
    assert line.split()[-3:] == ['–', 'more', '–']


def test_names_from_runs_are_text_on_the_page(tmp_path):
    write(tmp_path / '<b>', 3)
    stage_table.write_stage_table(tmp_path, ['<b>'])
    assert '<b>' not in (tmp_path / 'stages.html').read_text()


def test_seeds_are_compared_by_their_names(tmp_path):
    for seed, run in ((0, 'grpo'), (1, 'grpo'), (1, 'more'), (2, 'more')):
        write(tmp_path / str(seed) / run, 10)
    with pytest.raises(UserError, match='grpo has the seeds 0, 1 and its .* more 1, 2'):
        stage_table.write_stage_table(tmp_path, ['grpo=more'])


def test_what_cannot_be_compared_is_named(tmp_path):
    write(tmp_path / 'sft', 10)
    with pytest.raises(UserError, match='name the runs'):
        stage_table.write_stage_table(tmp_path, [])
    with pytest.raises(UserError, match='has a run grpo'):
        stage_table.write_stage_table(tmp_path, ['sft', 'grpo'])
    with pytest.raises(UserError, match='has a run more'):
        stage_table.write_stage_table(tmp_path, ['sft=more'])
    (tmp_path / 'new').mkdir()
    with pytest.raises(UserError, match='run the stage eval first'):
        stage_table.write_stage_table(tmp_path, ['new'])
    write(tmp_path / 'other', 10, out_of=19)
    with pytest.raises(UserError, match='lacks the item 19'):
        stage_table.write_stage_table(tmp_path, ['sft=other'])
    storage.write_json(tmp_path / 'new' / 'eval.json', dict(tasks={}, tokenizer='t'))
    with pytest.raises(UserError, match='new was .*run `eval .*/new --tasks task`'):
        stage_table.write_stage_table(tmp_path, ['sft=new'])
    with pytest.raises(UserError, match='no run was evaluated on'):
        stage_table.write_stage_table(tmp_path, ['new'])
    assert not (tmp_path / 'stages.json').exists()
