"""The page of several runs: what differs, paired differences, and who is refused."""

import re
from html.parser import HTMLParser

import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.energy import EnergyMeter
from gptjax.eval.report import run_comparison
from gptjax.eval.report.run_cost import Cost
from gptjax.train.checkpoint import Checkpoints
from tests import runs

EVIL = '<script>alert("a")</script>&'


def item(number, right):
    names = dict(id=f'q{number}', item_sha256=f'hash {number}', source='')
    return dict(names, statistics=[1, right])


def evaluation(right, seed=0):
    """eval.json of a task of choices; the examples depend on `seed`."""
    items = [item(seed + n, int(n < right)) for n in range(20)]
    figure = dict(value=right / 20, interval=[0.0, 1.0], baselines={})
    figure['baselines']['chance'] = dict(value=0.25)
    task = dict(
        kind='means',
        about='choices',
        figures=dict(right=figure),
        bootstrap=dict(resamples=50, level=0.95, seed=0),
        settings=dict(choices=4),
        columns=['items', 'right'],
        items=items,
    )
    return dict(tokenizer='same', tasks=dict(mine=task))


@pytest.fixture(scope='module')
def pair(trained_run, tmp_path_factory):
    """Two finished runs that differ in a field, in their replies and in figures."""
    folder = tmp_path_factory.mktemp('pair')
    for name, rate, right in (('first', 0.5, 5), ('second', 0.25, 15)):
        run = runs.copy(trained_run, folder / name)
        config = storage.read_json(run / 'config.json')
        config['optim']['learning_rate'] = rate
        config['sample']['prompts'] = [EVIL, name]
        storage.write_json(run / 'config.json', config)
        storage.write_json(run / 'eval.json', evaluation(right))
        sample = dict(prompt=EVIL, text=f'{EVIL} reply of {name} {EVIL}', seed=0)
        storage.write_json(run / 'samples.json', [sample])
    return folder


class Tags(HTMLParser):
    """The names of all tags, and the addresses that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [v for k, v in attrs if k in ('src', 'href')]


def test_the_page_of_two_runs(pair, tmp_path, capsys):
    out = tmp_path / 'new/runs.html'
    words = 'report', pair / 'first', pair / 'second', '--to', out, '--watts=50'
    assert runs.gptjax(*words) == 0
    text = out.read_text()
    tags = Tags(text)
    assert 'script' not in tags.tags and not tags.fetched
    assert text.count('&lt;script&gt;') == 5 and 'reply of second' in text
    config = text[text.index('<h2>Config') : text.index('<h2>Data')]
    assert 'optim.learning_rate' in config and 'model.width' not in config
    assert re.search(r'\+0\.500<span class="about">0\.\d+ … 0\.\d+\np = 0\.', text)
    assert '0.250 chance' in text and 'estimated: time × 50 W' in text
    assert text.count('<polyline class="run0"') == text.count('<polyline class="run1"')
    assert text.count('git checkout') == 2 or 'python -m gptjax pretrain' in text
    assert str(out) in capsys.readouterr().out


def test_other_examples_have_no_difference(pair, tmp_path):
    other = runs.copy(pair / 'second', tmp_path / 'other')
    storage.write_json(other / 'eval.json', evaluation(10, seed=7))
    read = run_comparison.read_runs([pair / 'first', other, pair / 'second'])
    [task] = run_comparison.compare_figures(read)
    [row] = task['rows']
    assert [cell[0] for cell in row[1:]] == ['0.250', '0.500', '0.750', '–', '+0.500']
    assert len(task['notes']) == 1 and 'lacks the item q' in task['notes'][0]
    (other / 'eval.json').unlink()
    read = run_comparison.read_runs([pair / 'first', other])
    [task] = run_comparison.compare_figures(read)
    assert task['notes'] == ['B other was not evaluated on this task.']


def test_only_what_differs_is_a_row():
    columns = [dict(a='1', b='2'), dict(a='1', b='3', c='4')]
    rows = run_comparison.different_rows(columns)
    assert rows == [['b', '2', '3'], ['c', '–', '4']]


def test_who_is_refused(pair, tmp_path, capsys, monkeypatch):
    def refused(*folders):
        assert runs.gptjax('report', *folders, '--to', tmp_path / 'page') == 2
        assert not (tmp_path / 'page').exists()
        return capsys.readouterr().err.strip().split('\n')[-1]

    first, second = pair / 'first', pair / 'second'
    assert 'named twice' in refused(first, second, second / '../second')
    assert '2 to 8 runs' in refused(first)
    assert 'is not a run directory' in refused(first, tmp_path)
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/config.json').write_bytes((first / 'config.json').read_bytes())
    assert 'begun has no checkpoint, so it is not' in refused(first, tmp_path / 'begun')
    half = lambda self: (2, dict(reason=None))
    monkeypatch.setattr(Checkpoints, 'newest_record', half)
    assert f'{first} is not finished (it is at step 2)' in refused(first, second)
    assert runs.gptjax('report', first, second) == 2
    assert '--to FILE.html' in capsys.readouterr().err


def test_energy_is_measured_or_called_an_estimate():
    cost = Cost(updates=10, seconds=3600.0, tokens=None, flops=None, joules=None)
    assert run_comparison.energy_cell(cost, 80.0) == [
        '80 Wh',
        'estimated: time × 80 W',
    ]
    measured = cost._replace(joules=7200.0)
    assert run_comparison.energy_cell(measured, 80.0) == ['2 Wh', 'measured (RAPL)']


def test_the_energy_meter(tmp_path):
    def write(zone, name, energy):
        storage.write_text(tmp_path / zone / 'name', name)
        storage.write_text(tmp_path / zone / 'energy_uj', f'{energy}\n')
        storage.write_text(tmp_path / zone / 'max_energy_range_uj', '9000000')

    assert EnergyMeter(tmp_path).read() is None
    write('intel-rapl:0', 'package-0', 8_000_000)
    write('intel-rapl:0:0', 'core', 1)
    write('intel-rapl:0:1', 'dram', 100)
    meter = EnergyMeter(tmp_path)
    write('intel-rapl:0', 'package-0', 500_000)  # it started again at 9 J
    write('intel-rapl:0:0', 'core', 4_000_000)
    write('intel-rapl:0:1', 'dram', 500_100)
    assert meter.read() == pytest.approx(2.0)
    assert meter.read() == 0.0
    (tmp_path / 'intel-rapl:0/energy_uj').unlink()
    assert meter.read() is None


def test_a_run_that_is_not_finished_says_so(trained_run):
    checkpoints = Checkpoints(trained_run / 'checkpoints', {}, read_only=True)
    step, record = checkpoints.newest_record()
    checkpoints.close()
    assert (step, record['reason']) == (4, 'finished')


def test_errors_name_the_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', {})
    with pytest.raises(UserError, match='has no checkpoint'):
        checkpoints.newest_record()
    checkpoints.close()
