"""Runs compared by the validations of their training, seed by seed."""

import json

import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import validation_table


@pytest.fixture(autouse=True)
def unfinished(monkeypatch):
    """The folders of runs whose training has not ended."""
    folders = set()
    monkeypatch.setattr(
        validation_table,
        'why_unfinished',
        lambda folder: f'{folder} is not finished' if folder in folders else '',
    )
    return folders


def write(folder, *bits, seconds=2.0):
    """A run with these bits per byte after 10, 20, … steps."""
    lines = [dict(split='train', step=1, step_seconds=seconds)]
    lines += [
        dict(split='validation', step=10 * n, loss=value, bits_per_byte=value)
        for n, value in enumerate(bits, 1)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    storage.write_text(folder / 'metrics.jsonl', text)


def test_differences_are_of_the_same_seed_with_t_intervals(tmp_path, capsys):
    for seed, shift in enumerate((0.0, 0.5, 1.0)):  # seeds differ more than runs
        write(tmp_path / str(seed) / 'control', 3 + shift, 2 + shift, 4 + shift)
        better = 1.9 + shift + 0.01 * seed
        write(tmp_path / str(seed) / 'dropout', 3 + shift, 2.5 + shift, better)
        write(tmp_path / str(seed) / 'stopped', 3 + shift, 2 + shift)
        write(tmp_path / str(seed) / 'noisy', 2 + shift + (seed - 1))
    words = ['control', 'dropout=control', 'stopped=control', 'noisy=control']
    rows = validation_table.write_validation_table(tmp_path, words)
    control, dropout, stopped, noisy = rows
    assert control['best'] == dict(value=2.5) and control['last'] == dict(value=4.5)
    assert (control['step'], dropout['step'], dropout['seconds']) == (20, 30, 2)
    best = dropout['best']
    assert best['difference'] == pytest.approx(-0.09) and best['control'] == 2.5
    # mean -0.09, standard deviation 0.01, t(2 degrees, 97.5%) = 4.303 from tables
    half = 4.303 * 0.01 / 3**0.5
    assert best['interval'] == pytest.approx([-0.09 - half, -0.09 + half], rel=1e-3)
    assert best['effect'] == dropout['last']['effect'] == 'helps'
    assert stopped['best']['effect'] == 'equal'
    assert stopped['last']['effect'] == 'helps'
    assert noisy['best']['effect'] == 'open'
    assert storage.read_json(tmp_path / 'validation.json') == rows
    assert '-0.090 (-0.115 … -0.065)' in capsys.readouterr().out
    assert '-0.090 (-0.115 … -0.065)' in (tmp_path / 'validation.html').read_text()


def test_a_run_may_have_fewer_seeds_than_its_control(tmp_path):
    for seed in range(3):
        write(tmp_path / str(seed) / 'control', 2 + seed)
    write(tmp_path / '1' / 'ema', 3.5)
    (row,) = validation_table.write_validation_table(tmp_path, ['ema=control'])
    assert row['seeds'] == ['1'] and row['best']['effect'] == ''
    assert row['best']['difference'] == pytest.approx(0.5)
    assert row['best']['control'] == 3  # of that seed
    write(tmp_path / '7' / 'ema', 3.5)
    with pytest.raises(UserError, match='control of ema, lacks the seed 7'):
        validation_table.write_validation_table(tmp_path, ['ema=control'])


def test_runs_that_are_not_finished_are_left_out(tmp_path, unfinished, capsys):
    for seed in range(3):
        write(tmp_path / str(seed) / 'control', 2 + seed)
        write(tmp_path / str(seed) / 'ema', 1 + seed)
    write(tmp_path / '1' / 'ema')  # stopped before its first validation
    unfinished.add(tmp_path / '1' / 'ema')
    (row,) = validation_table.write_validation_table(tmp_path, ['ema=control'])
    assert row['seeds'] == ['0', '2'] and row['best']['effect'] == 'helps'
    assert row['best']['control'] == 3
    why = f'Left out: {tmp_path}/1/ema is not finished'
    assert why in capsys.readouterr().out
    assert why in (tmp_path / 'validation.html').read_text()
    unfinished.add(tmp_path / '2' / 'control')
    with pytest.raises(UserError, match='control of ema, lacks the seed 2'):
        validation_table.write_validation_table(tmp_path, ['ema=control'])
    unfinished |= {tmp_path / seed / 'ema' for seed in '02'}
    with pytest.raises(UserError, match='0/ema is not finished: run it to its end'):
        validation_table.write_validation_table(tmp_path, ['ema=control'])


def test_runs_that_diverged_say_so(tmp_path, capsys):
    for seed in range(2):
        write(tmp_path / str(seed) / 'control', 3, 2)
        write(tmp_path / str(seed) / 'high', 2, *[None] * seed)
        write(tmp_path / str(seed) / 'higher', None)
    words = ['control', 'high=control', 'higher=high']
    _, high, higher = validation_table.write_validation_table(tmp_path, words)
    assert high['best']['effect'] == 'equal'  # its checkpoint of step 10
    assert high['last'] == dict(
        value=None, control=2, difference=None, interval=None, effect='diverged'
    )
    assert higher['best']['effect'] == higher['last']['effect'] == 'diverged'
    _, row = validation_table.write_validation_table(tmp_path, ['high', 'control=high'])
    assert row['last']['effect'] == 'high diverged' and row['last']['value'] == 2
    assert 'diverged' in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(UserError, match='name the runs'):
        validation_table.write_validation_table(tmp_path, [])
    write(tmp_path / 'grpo')
    with pytest.raises(UserError, match='grpo has no validation in bits per byte'):
        validation_table.write_validation_table(tmp_path, ['grpo'])
