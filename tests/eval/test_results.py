"""Results as JSON and as a table."""

import json

import numpy as np

from gptjax.eval import bootstrap, results
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.report import tables

HOW = BootstrapSettings(resamples=50, level=0.9, seed=0)


def columns_of(right):
    return dict(accuracy=np.array(right, float), items=np.ones(len(right)))


def task_of(right, **more):
    columns = columns_of(right)
    figures = bootstrap.compute_figures(
        columns, {'accuracy': bootstrap.mean_figure('accuracy')}, HOW
    )
    items = [
        dict(id=f'i{n}', prompt_sha256=f'p{n}', item_sha256=f's{n}')
        for n in range(len(right))
    ]
    more.update(settings=dict(seed=0))
    return results.make_result('choice', '', figures, columns, items, HOW, **more)


def test_a_result_has_what_a_comparison_needs():
    task = task_of([1, 0, 0.5, 1], signatures={})
    assert task['figures']['accuracy']['value'] == 0.625
    low, high = task['figures']['accuracy']['interval']
    assert low < 0.625 < high
    assert task['bootstrap'] == dict(resamples=50, level=0.9, seed=0)
    assert task['items'][2]['statistics'] == [0.5, 1]
    columns = results.read_columns(json.loads(results.to_json(task)))
    for name, column in columns_of([1, 0, 0.5, 1]).items():
        assert columns[name].tolist() == column.tolist()
    assert task['prompts_sha256'] != task_of([1, 0, 0.5])['prompts_sha256']


def test_json_reads_back_and_lists_of_numbers_are_one_line(tmp_path):
    value = dict(
        a=[1, 2.5, None], b=[dict(c='ü "x"', d=[]), [3, [4]]], e={}, f=True, g=(5, 6)
    )
    results.write_results(tmp_path / 'x.json', value)
    text = (tmp_path / 'x.json').read_text()
    assert json.loads(text) == json.loads(json.dumps(value))
    assert '  "a": [1, 2.5, null],\n' in text and 'ü' in text


def test_what_has_no_value_is_null(capsys):
    empty = dict(accuracy=np.zeros(2), items=np.zeros(2))
    figures = bootstrap.compute_figures(
        empty, {'accuracy': bootstrap.mean_figure('accuracy')}, HOW
    )
    assert figures == {'accuracy': dict(value=None, interval=[None, None])}
    tables.print_tasks('x', {'t': dict(figures=figures)})
    assert '–' in capsys.readouterr().out


def test_the_table_has_the_baselines_of_every_figure(capsys):
    task = task_of([1, 0])
    results.add_baseline(task['figures'], 'chance', {'accuracy': dict(value=0.25)})
    task['figures']['bleu'] = dict(value=12.345, interval=[11.0, 13.0])
    tables.print_tasks('a run', {'mine': task})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'a run'
    assert lines[2].split()[:3] == ['mine', 'accuracy', '0.500']
    assert lines[2].rstrip().endswith('0.250 chance')
    assert lines[3].split() == ['BLEU', '12.3', '(11.0', '…', '13.0)']
    assert tables.label_of('bits_per_byte/mine') == 'bits per byte, mine'


def test_no_cell_is_cut_and_markup_is_text(capsys):
    row = ('[b]x[/b] :smile:', 'y' * 300)
    tables.print_table([('a', 'b'), row])
    assert capsys.readouterr().out.splitlines()[1] == '  '.join(row)
