"""A forecast is made before the large run, once, and a killed ladder goes on."""

import json
import math

import pytest

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.models import parameter_count, settings
from gptjax.tune import forecast, ladder
from gptjax.tune.scaling_law import Law
from gptjax.tune.trial_run import Training
from tests import helpers
from tests.test_main import error_of

LAW = Law(A=300.0, B=600.0, E=1.8, alpha=0.4, beta=0.4)


def make_config(**train):
    config = helpers.config(num_layers=3, width=96, num_heads=12)
    config.eval.resamples = 20
    config.train.update(dict(num_steps=2000) | train)
    return config


def scale(workdir, base, stop_at=None):
    """Runs a ladder whose runs take no time: their losses are those of LAW.

    stop_at: the name of the run that a signal ends. Returns (what `forecast_and_score`
    returns, the names of the runs that were trained).
    """
    trained = []

    def prepare(values, folder):
        config = base.copy_and_resolve_references()
        config.update_from_flattened_dict(values)
        return config

    def train(config, folder, lock):
        trained.append(folder.name)
        made = workdir / 'forecast.json'
        assert made.exists() == (folder.name == 'large')
        if folder.name == 'large':
            assert 'measured' not in json.loads(made.read_text())
        if folder.name == stop_at:
            return dict(reason='interrupted')
        model = settings.resolve(config.model, config.tokenizer.vocab_size)
        steps = config.train.num_steps
        tokens = steps * config.train.batch_size * config.data.context
        loss = LAW.predict(parameter_count.matrix_params(model), tokens)
        loss *= 1 + 0.002 * math.sin(steps)  # as if by chance
        folder.mkdir(parents=True)
        record = dict(step=steps, split='validation', loss=loss)
        (folder / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
        return dict(reason='finished')

    training = Training(prepare, train)
    rungs = ladder.open_ladder(base, workdir)
    losses, summary = ladder.train_ladder(rungs, workdir, training)
    if not summary:
        summary = forecast.forecast_and_score(base, rungs, losses, workdir, training)
    return summary, trained


def read(workdir):
    return json.loads((workdir / 'forecast.json').read_text())


def test_a_ladder_that_was_killed_is_that_which_was_not(tmp_path):
    base, killed = make_config(), tmp_path / 'killed'
    assert scale(killed, base, stop_at='06')[0]['reason'] == 'interrupted'
    summary, trained = scale(killed, base, stop_at='large')
    assert summary and trained[0] == '06' and trained[-1] == 'large'
    made = read(killed)
    assert scale(killed, base) == (None, ['large'])
    scored = read(killed)
    # The forecast stays as it was made; the score is added.
    assert made.items() <= scored.items()
    added = {'measured', 'inside', 'error', 'baseline_error'}
    assert scored.keys() - made.keys() == added
    assert scored['inside'] and abs(scored['error']) < 0.03
    assert abs(scored['baseline_error']) > 0.05
    page = (killed / 'report.html').read_text()
    assert 'inside the 95% interval' in page and page.count('<svg viewBox="0 0') == 2

    whole = tmp_path / 'whole'
    assert scale(whole, base)[0] is None
    differing = {'made'}
    for name in scored.keys() - differing:
        assert read(whole)[name] == scored[name], name
    assert (
        scale(whole, base) == (None, []) and read(whole)['made'] == read(whole)['made']
    )


def test_the_ladder():
    base = make_config()
    large, rungs = ladder.make_large(base), ladder.make_ladder(base)
    assert len(rungs) == 14 and len({rung.parameters for rung in rungs}) >= 6
    for rung in rungs:
        share = ladder.BUDGETS[rung.budget]
        assert rung.flops == pytest.approx(large.flops * share, rel=0.02)
        width, heads = rung.values['model.width'], rung.values['model.num_heads']
        assert width == 8 * heads < 96
        assert rung.values['optim.learning_rate'] == pytest.approx(
            base.optim.learning_rate * (96 / width) ** 0.5
        )


def test_what_is_refused(tmp_path):
    base = make_config()
    scale(tmp_path / 'a', base, stop_at='large')
    with pytest.raises(
        UserError, match=r'another ladder \(config.train.num_steps: 200'
    ):
        scale(tmp_path / 'a', make_config(num_steps=2001))
    made = tmp_path / 'a' / 'forecast.json'
    content = made.read_text()
    for damaged in (content[:99], '[]', '{"predicted": 3.0}'):
        made.write_text(damaged)
        with pytest.raises(
            UserError, match=r'forecast\.json is damaged: bring it back'
        ):
            scale(tmp_path / 'a', base)
    made.write_text(content)
    metrics = tmp_path / 'a' / 'runs' / '03' / 'metrics.jsonl'
    record = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(record | dict(loss=3.0)) + '\n')
    with pytest.raises(UserError, match='was made from other losses than those in'):
        scale(tmp_path / 'a', base)
    metrics.write_text(json.dumps(record) + '\n')
    scale(tmp_path / 'a', base)
    made.unlink()
    with pytest.raises(UserError, match='large was trained without a forecast'):
        scale(tmp_path / 'a', base)
    (tmp_path / 'a' / 'ladder.json').write_text('{')
    with pytest.raises(UserError, match=r'ladder\.json is damaged: delete it'):
        scale(tmp_path / 'a', base)
    run_dir.write_config(base, tmp_path / 'b')
    with pytest.raises(UserError, match='is a run or a study, not a ladder'):
        scale(tmp_path / 'b', base)


@pytest.mark.parametrize(
    'words, message',
    (
        ((), 'use --config configs/NAME.py and --workdir RUN, or --fit FILE.csv'),
        (
            ('--config=configs/tiny.py',),
            'model.num_heads=4: widths are multiples of a head, which gives 2 sizes',
        ),
        (
            ('--config=configs/scaling.py', '--config.train.num_steps=50'),
            'train.num_steps=50: a run of the ladder would have 8 steps, and needs 10: '
            'use at least 63',
        ),
        (('--config=configs/scaling.py', '--drop=5'), '--drop=5: it belongs to --fit'),
        (('--config=configs/more.py:README.md',), 'start.run=runs/base: the runs of a'),
    ),
)
def test_configs_that_are_refused(words, message, capsys, tmp_path):
    workdir = tmp_path / 'ladder'
    assert message in error_of(capsys, 'scaling', *words, f'--workdir={workdir}')
    assert not workdir.exists()
