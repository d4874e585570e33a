"""The comparison of two results."""

import json

import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.eval import results
from gptjax.eval.compare import compare
from gptjax.eval.tasks import reply_metrics
from tests import runs
from tests.eval.test_results import HOW, task_of


def write(path, tasks, tokenizer='t'):
    results.write_results(path, dict(tasks=tasks, tokenizer=tokenizer))
    return str(path)


@pytest.fixture
def two(tmp_path):
    """Two systems on twenty items; the second has more right answers."""
    one = {'choice': task_of([1] * 5 + [0] * 15)}
    other = {'choice': task_of([1] * 17 + [0] * 3)}
    for tasks in (one, other):  # as in a task of this kind
        task = tasks['choice']
        task['columns'] = ['accuracy', 'items', 'accuracy_tokens', 'accuracy_bytes']
        for item in task['items']:
            item['statistics'] += item['statistics'][:1] * 2
    first, second = tmp_path / 'one.json', tmp_path / 'other.json'
    return write(first, one), write(second, other), one, other


def test_a_difference_with_its_interval_and_p_value(two, tmp_path, capsys):
    first, second, *_ = two
    copy = tmp_path / 'compared.json'
    found = compare(first, second, copy)
    its = found['tasks']['choice']['accuracy']
    assert (its['first'], its['second']) == (0.25, 0.85)
    assert its['difference'] == pytest.approx(0.6)
    low, high = its['interval']
    assert 0.3 < low < 0.6 < high < 0.9
    # Only 12 items differ, all in one direction: 2 of 2**12 permutations are as
    # extreme.
    assert its['p'] == pytest.approx(1 / (1 + HOW.resamples))
    assert json.loads(copy.read_text()) == found
    printed = capsys.readouterr().out
    assert 'choice  accuracy' in printed and '0.600' in printed


def test_a_result_does_not_differ_from_itself_in_any_order(two, tmp_path):
    first, _, one, _ = two
    one['choice']['items'].reverse()
    found = compare(first, write(tmp_path / 'reversed.json', one))
    for its in found['tasks']['choice'].values():
        assert (its['difference'], its['interval'], its['p']) == (0, [0, 0], 1)


def test_a_figure_without_a_value_is_null(two, tmp_path, capsys):
    _, _, one, _ = two
    for item in one['choice']['items']:  # no item counts: 0 / 0
        item['statistics'] = [0] * len(item['statistics'])
    path, copy = write(tmp_path / 'nothing.json', one), tmp_path / 'compared.json'
    compare(path, path, copy)
    no_constant = lambda name: pytest.fail(f'{name} is no JSON')
    found = json.loads(copy.read_text(), parse_constant=no_constant)
    its = found['tasks']['choice']['accuracy']
    assert its['first'] is its['difference'] is its['p'] is None
    assert its['interval'] == [None, None]
    assert '– … –' in capsys.readouterr().out


def test_different_items_are_refused_by_name(two, tmp_path):
    first, second, _, other = two
    item = other['choice']['items'].pop(3)
    path = write(tmp_path / 'less.json', other)
    with pytest.raises(UserError, match=rf'choice: {path} lacks the item i3: evaluate'):
        compare(first, path)
    with pytest.raises(UserError, match=rf'choice: {path} lacks the item i3: evaluate'):
        compare(path, first)
    other['choice']['items'].append(dict(item, item_sha256='another'))
    path = write(tmp_path / 'changed.json', other)
    with pytest.raises(UserError, match=f'the item i3 has another content in {path}'):
        compare(first, path)
    other['choice']['columns'] = ['x', 'y', 'z', 'w']
    path = write(tmp_path / 'columns.json', other)
    with pytest.raises(UserError, match='choice has another kind or other columns in'):
        compare(first, path)


def test_items_with_the_same_id_are_paired_by_their_content(two, tmp_path):
    *_, one, other = two
    for tasks in (one, other):
        for item in tasks['choice']['items']:
            item['id'] = 'same'
    other['choice']['items'].reverse()
    first, second = (
        write(tmp_path / f'{name}.json', tasks)
        for name, tasks in dict(a=one, b=other).items()
    )
    its = compare(first, second)['tasks']['choice']['accuracy']
    assert its['p'] == pytest.approx(1 / (1 + HOW.resamples))  # as with ids
    other['choice']['items'][0]['item_sha256'] = 'another'
    path = write(tmp_path / 'c.json', other)
    with pytest.raises(UserError, match='the item same has another content'):
        compare(first, path)


def test_tasks_of_one_result_alone_are_noted(two, tmp_path):
    first, second, one, other = two
    other['reply'] = other['choice']
    found = compare(first, write(tmp_path / 'more.json', other))
    assert list(found['tasks']) == ['choice']
    assert found['notes'] == [f'reply: only in {tmp_path}/more.json']
    del other['choice']
    with pytest.raises(UserError, match='have no task in common'):
        compare(first, write(tmp_path / 'none.json', other))


def test_settings_that_differ_are_noted(two, tmp_path):
    first, _, one, _ = two
    one['choice']['settings'] = dict(seed=0, temperature=0.8)
    other = write(tmp_path / 'warm.json', one)
    one['choice']['settings'] = dict(seed=0, temperature=0.0)
    found = compare(write(tmp_path / 'cold.json', one), other)
    assert found['notes'] == ['choice: temperature is 0.0 and 0.8']


def perplexity_tasks(nats, sources=('chat', 'chat', 'chat')):
    columns = dict(nats=nats, tokens=[10, 20, 5], bytes=[30, 60, 9], words=[7, 9, 2])
    columns = {name: np.array(column, float) for name, column in columns.items()}
    documents = [
        dict(id=n, source=source, prompt_sha256=n, item_sha256=n)
        for n, source in zip('abc', sources, strict=True)
    ]
    result = results.make_result('perplexity', '', {}, columns, documents, HOW, {})
    return {'perplexity': result}


def test_loss_is_not_compared_between_tokenizers(tmp_path):
    first = write(tmp_path / 'one.json', perplexity_tasks([30, 50, 10]))
    tasks = perplexity_tasks([20, 40, 9])
    same = write(tmp_path / 'same.json', tasks)
    other = write(tmp_path / 'other.json', tasks, 'another')
    assert set(compare(first, same)['tasks']['perplexity']) == {
        *('loss', 'token_perplexity', 'bits_per_byte', 'word_perplexity')
    }
    found = compare(first, other)
    assert set(found['tasks']['perplexity']) == {'bits_per_byte', 'word_perplexity'}
    assert 'the tokenizers differ' in found['notes'][0]


def test_sources_are_compared_apart_too(tmp_path):
    sources = ('chat', 'web', 'chat')
    first, second = (
        write(tmp_path / f'{nats[1]}.json', perplexity_tasks(nats, sources))
        for nats in ([30, 50, 10], [30, 40, 10])
    )
    found = compare(first, second)['tasks']['perplexity']
    assert found['loss']['difference'] == pytest.approx(-10 / 35)
    assert found['loss/web']['difference'] == pytest.approx(-10 / 20)
    assert found['loss/chat']['difference'] == 0


def test_variety_is_compared_by_the_replies_themselves(tmp_path):
    def replies(texts):
        columns = reply_metrics.measure_replies(texts, [['r']] * len(texts))
        items = [
            dict(id=str(n), prompt_sha256='', item_sha256='', reply=text)
            for n, text in enumerate(texts)
        ]
        return {
            'reply': results.make_result('generation', '', {}, columns, items, HOW, {})
        }

    dull = replies(['yes it is so'] * 20)
    lively = replies([f'w{n} x{n} y{n} z{n}' for n in range(20)])
    first = write(tmp_path / 'dull.json', dull)
    found = compare(first, write(tmp_path / 'lively.json', lively))['tasks']['reply']
    its = found['distinct_1']
    assert (its['first'], its['second']) == (4 / 80, 1)
    assert its['p'] == pytest.approx(1 / 51) and its['interval'][0] > 0.5
    same = compare(first, first)['tasks']['reply']['distinct_2']
    assert (same['difference'], same['p']) == (0, 1)


def test_an_older_evaluation_has_fewer_figures(tmp_path):
    columns = reply_metrics.measure_replies(['5', 'six'], [['5'], ['6']])
    items = [dict(id=n, prompt_sha256='', item_sha256='', reply='5') for n in 'ab']
    new = results.make_result('generation', '', {}, columns, items, HOW, {})
    for name in reply_metrics.LATER_COLUMNS:
        del columns[name]
    old = results.make_result('generation', '', {}, columns, items, HOW, {})
    first, second = tmp_path / 'old.json', tmp_path / 'new.json'
    write(first, {'reply': old}), write(second, {'reply': new})
    for names in ((first, second), (second, first)):
        found = compare(*map(str, names))['tasks']['reply']
        assert found['exact_match']['difference'] == 0 and 'number' not in found
    assert compare(str(second), str(second))['tasks']['reply']['exact']['first'] == 0.5


def test_what_cannot_be_compared_is_one_line(two, tmp_path, capsys):
    first, second, *_ = two
    broken, other = tmp_path / 'broken.json', tmp_path / 'other_version.json'
    broken.write_text('{')
    other.write_text('{"results": {}}')
    for names, message in (
        ((first,), '--compare A B'),
        ((first, tmp_path / 'none.json'), 'no such file: run the stage eval'),
        ((first, tmp_path), 'eval.json: no such file'),
        ((first, broken), 'is not valid JSON'),
        ((other, first), 'run the stage eval again'),
    ):
        assert runs.gptjax('eval', '--compare', *names) == 2
        assert message in capsys.readouterr().err
    assert runs.gptjax('eval', '--compare', first, second) == 0
    assert 'B - A' in capsys.readouterr().out
