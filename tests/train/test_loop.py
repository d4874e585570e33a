"""The loop, on a model with one parameter and known losses."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.optim.optimizer import make_learning_rate
from gptjax.train import loop
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.metrics import MetricsWriter, read_metrics
from gptjax.train.state import TrainState
from gptjax.train.stopping import watching
from tests import helpers


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    writer = functools.partial(MetricsWriter, tensorboard=False)
    monkeypatch.setattr(loop, 'MetricsWriter', writer)


def step(state, batch):
    """Adds the batch to the only parameter; the loss is the sum so far."""
    good = bool(np.isfinite(batch))
    value = state.params['value'] + (batch if good else 0)
    loss = value if good else jnp.float32(batch)
    metrics = dict(
        loss=loss, grad_norm=jnp.float32(2), tokens=jnp.float32(8), good=float(good)
    )
    return TrainState(state.step + 1, dict(value=value), state.opt_state), metrics


def config_of(**train):
    config = helpers.config()
    config.train.update(num_steps=6, eval_every=2, max_bad_steps=3)
    config.train.update(train)
    config.checkpoint.update(every=2, keep=10, keep_best=0)
    return config


def run(
    workdir,
    config,
    numbers=range(1, 100),
    losses=None,
    before=lambda step: None,
    before_validation=lambda done: None,
    **training,
):
    """Trains on `numbers`, one per step, starting from the newest checkpoint.

    losses: from step to validation loss; None: the validation loss is the parameter.
    training: fields of `Training`.
    """
    stride = training.get('steps_per_update', 1)

    def update(state, number, record):
        before(number)
        good = []
        for place in range(number, number + stride):
            state, metrics = step(state, jnp.float32(numbers[place]))
            good.append(metrics['good'])
        return state, dict(metrics, good=good if stride > 1 else good[0])

    def validate(state, done):
        assert done == int(state.step)
        before_validation(done)
        loss = losses[done] if losses else float(state.params['value'])
        return dict(loss=loss, bits_per_byte=loss / 2)

    def make_training(setup):
        return loop.Training(
            update=update,
            validate=validate,
            flops_per_token=(3.0, 6.0),
            peak_flops=12.0,
            documents_of=lambda step: [f'book/{step}#{n}' for n in range(9)],
            **training,
        )

    stage = loop.Stage(
        name='number',
        mesh=helpers.mesh_of(),
        shapes=dict(value=jax.ShapeDtypeStruct((), jnp.float32)),
        axes=dict(value=()),
        loss_fn=lambda params, batch, key: (params['value'], {}),
        init=lambda: (lambda: dict(value=jnp.float32(0)),),
        identity={},
        make_training=make_training,
    )
    return loop.fit(config, workdir, stage)


def lines_of(workdir):
    """The metrics without those that depend on the clock."""
    compared = ('step', 'split', 'loss', 'skipped', 'bits_per_byte')
    lines = read_metrics(workdir / 'metrics.jsonl')
    return [[line.get(name) for name in compared] for line in lines]


def signal_at(step, number):
    """For `run(before=…)`: sends a signal while the batch of `step` is read."""
    return lambda now: now == step and os.kill(os.getpid(), number)


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('0*'))


def test_every_line_is_exact(tmp_path):
    outcome = run(tmp_path, config_of(), numbers=[1, 2, np.nan, 4, 5, 6])
    assert outcome.summary()['reason'] == 'finished' and outcome.signal is None
    assert outcome.record['skipped'] == 1 and outcome.record['reason'] == 'finished'
    lines = read_metrics(tmp_path / 'metrics.jsonl')
    train = [line for line in lines if line['split'] == 'train']
    assert [line['step'] for line in train] == [1, 2, 3, 4, 5, 6]
    assert [line['loss'] for line in train] == [1, 3, None, 7, 12, 18]
    assert [line['skipped'] for line in train] == [0, 0, 1, 1, 1, 1]
    learning_rate = make_learning_rate(config_of())
    for number, line in enumerate(train):
        assert line['learning_rate'] == float(learning_rate(number))
        assert line['grad_norm'] == 2 and line['tokens'] == 8
        rate = line['tokens_per_second']
        assert rate == pytest.approx(8 / line['step_seconds'])
        assert line['mfu_causal'] == pytest.approx(rate * 3 / 12)
        assert line['mfu_full'] == pytest.approx(rate * 6 / 12)
    places = [(line['step'], line['split']) for line in lines]
    assert places == [
        *((1, 'train'), (2, 'train'), (2, 'validation')),
        *((3, 'train'), (4, 'train'), (4, 'validation')),
        *((5, 'train'), (6, 'train'), (6, 'validation')),
    ]
    validated = [line for line in lines if line['split'] == 'validation']
    assert [line['loss'] for line in validated] == [3, 7, 18]
    assert [line['bits_per_byte'] for line in validated] == [1.5, 3.5, 9]
    assert steps_of(tmp_path) == [2, 4, 6]


def best_of(workdir):
    checkpoints = Checkpoints(workdir / 'checkpoints', {}, read_only=True)
    best = checkpoints.best_step()
    checkpoints.close()
    return best


def test_the_best_validation_is_saved_though_no_checkpoint_was_due(tmp_path):
    losses = {3: 3.0, 6: 1.0, 9: 2.0, 12: 2.5}
    config = config_of(num_steps=12, eval_every=3)
    config.checkpoint.update(every=5, keep=2, keep_best=1)
    run(tmp_path / 'a', config, losses=losses)
    assert steps_of(tmp_path / 'a') == [6, 10, 12] and best_of(tmp_path / 'a') == 6
    # A resumed run remembers its best validation.
    stop = signal_at(7, signal.SIGTERM)
    assert run(tmp_path / 'b', config, losses=losses, before=stop).signal
    outcome = run(tmp_path / 'b', config, losses=losses)
    assert steps_of(tmp_path / 'b') == [6, 10, 12] and best_of(tmp_path / 'b') == 6
    assert float(outcome.state.params['value']) == sum(range(1, 13))


def test_the_best_validation_is_not_saved_with_keep_best_0(tmp_path):
    config = config_of(num_steps=12, eval_every=3)
    config.checkpoint.every = 5
    run(tmp_path, config, losses={3: 3.0, 6: 1.0, 9: 2.0, 12: 2.5})
    assert steps_of(tmp_path) == [5, 10, 12]


def test_early_stopping_counts_validations_of_before_an_interruption(tmp_path):
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1, 10: 1.0}
    config = config_of(num_steps=20, patience=2)
    stop = signal_at(6, signal.SIGTERM)
    summary = run(tmp_path, config, losses=losses, before=stop).summary()
    assert summary['reason'] == 'interrupted'
    summary = run(tmp_path, config, losses=losses).summary()
    assert summary['reason'] == 'stopped early'
    assert summary['step'] == 8 == steps_of(tmp_path)[-1]
    assert summary['validation'] == dict(loss=2.1, bits_per_byte=1.05, step=8)


def test_too_many_bad_steps_stop_and_leave_the_checkpoints(tmp_path):
    numbers = [1, 2, 3, 4, np.nan, np.nan, np.nan, 5]
    with pytest.raises(UserError) as raised:
        run(tmp_path, config_of(num_steps=8), numbers=numbers)
    message = str(raised.value)
    assert 'not finite in 3 updates in a row, up to step 6' in message
    assert 'book/6#0, book/6#1' in message and 'book/6#8' not in message
    assert (
        'optim.learning_rate' in message and f'--workdir {tmp_path} --step 6' in message
    )
    assert steps_of(tmp_path) == [2, 4, 6]
    # With other data, the run resumes from that step.
    outcome = run(tmp_path, config_of(num_steps=8), numbers=[1, 2, 3, 4, 9, 9, 3, 5])
    assert float(outcome.state.params['value']) == 10 + 3 + 5


def test_bad_steps_that_are_not_in_a_row_do_not_stop(tmp_path):
    numbers = [1, np.nan, np.nan, 2, np.nan, np.inf]
    outcome = run(tmp_path, config_of(), numbers=numbers)
    assert outcome.summary()['reason'] == 'finished' and outcome.record['skipped'] == 4
    assert outcome.record['skipped_in_a_row'] == 2


@pytest.mark.parametrize('number', (signal.SIGTERM, signal.SIGINT))
def test_a_signal_saves_and_the_run_resumes_exactly(number, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop = signal_at(3, number)
    outcome = run(tmp_path / 'a', config_of(), before=stop)
    assert outcome.summary()['reason'] == 'interrupted' and outcome.signal == number
    assert outcome.record['reason'] is None
    done = int(outcome.state.step)
    assert done < 6 and steps_of(tmp_path / 'a') == [2, *range(4, done + 1)]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run(tmp_path / 'a', config_of()).summary()['reason'] == 'finished'
    run(tmp_path / 'b', config_of())
    lines = lines_of(tmp_path / 'a')
    assert lines == lines_of(tmp_path / 'b') and len(lines) == 9


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    stop = signal_at(5, signal.SIGTERM)
    assert run(tmp_path, config_of(), before=stop).summary()['reason'] == 'finished'


def test_a_profile_is_written_and_closed(tmp_path):
    run(tmp_path / 'a', config_of(profile_step=1))
    traces = [*(tmp_path / 'a' / 'profile').rglob('*.xplane.pb')]
    assert traces and traces[0].stat().st_size
    for step in (4, 100, 1):  # the run ends before the profile does
        run(tmp_path / f'b{step}', config_of(profile_step=step))


def test_only_a_finite_loss_is_compared_by(tmp_path):
    losses = {2: float('nan'), 4: 2.5, 6: float('inf')}
    run(tmp_path, config_of(), losses=losses)
    assert steps_of(tmp_path) == [2, 4, 6] and best_of(tmp_path) == 4


def fail_at(step):
    def fail(now):
        if now == step:
            raise UserError('a reward gave nan')

    return fail


@pytest.mark.parametrize(
    'failing, saved',
    ((dict(before=fail_at(3)), [2, 3]), (dict(before_validation=fail_at(4)), [2, 4])),
    ids=('update', 'validation'),
)
def test_a_stage_that_fails_saves_first(failing, saved, tmp_path):
    with pytest.raises(UserError, match='gave nan'):
        run(tmp_path / 'a', config_of(), **failing)
    assert steps_of(tmp_path / 'a') == saved
    assert float(run(tmp_path / 'a', config_of()).state.params['value']) == 21
    # A validation that failed is repeated when the run resumes.
    run(tmp_path / 'b', config_of())
    assert lines_of(tmp_path / 'a') == lines_of(tmp_path / 'b')


def test_an_update_may_make_several_steps(tmp_path):
    config = config_of(num_steps=8, eval_every=4)
    config.checkpoint.every = 3  # but no checkpoint within an update
    options = dict(steps_per_update=2, validate_first=True, fetch_late=False)
    options['numbers'] = [1, np.nan, 3, 4, 5, 6, 7, 8]
    outcome = run(tmp_path / 'a', config, **options)
    assert steps_of(tmp_path / 'a') == [4, 6, 8]
    assert outcome.summary()['step'] == 8 and outcome.record['skipped'] == 1
    assert [line[:3] for line in lines_of(tmp_path / 'a')] == [
        *([0, 'validation', 0], [2, 'train', None], [4, 'train', 8]),
        *([4, 'validation', 8], [6, 'train', 19], [8, 'train', 34]),
        [8, 'validation', 34],
    ]
    stop = signal_at(2, signal.SIGTERM)
    assert run(tmp_path / 'b', config, before=stop, **options).signal
    assert steps_of(tmp_path / 'b') == [4]
    run(tmp_path / 'b', config, **options)
    assert lines_of(tmp_path / 'b') == lines_of(tmp_path / 'a')
    # The step of the best validation is saved, and patience counts validations.
    config = config_of(num_steps=8, eval_every=2, patience=2)
    config.checkpoint.update(every=100, keep=1, keep_best=1)
    options['losses'] = {0: 0.9, 2: 0.5, 4: 0.7, 6: 0.6}
    outcome = run(tmp_path / 'c', config, **options)
    assert outcome.summary()['reason'] == 'stopped early'
    assert steps_of(tmp_path / 'c') == [2, 6] and best_of(tmp_path / 'c') == 2


def test_the_record_is_json():
    record = loop.new_record(config_of(patience=3))
    assert json.loads(json.dumps(record)) == record


def after_losses(patience, *losses):
    value = loop.EarlyStopping(patience)
    for loss in losses:
        value = value.after(loss)
    return value


def test_patience_counts_validations_since_the_lowest_loss():
    assert not after_losses(2, 3.0, 2.0, 2.5).should_stop
    assert after_losses(2, 3.0, 2.0, 2.5, 2.0).should_stop
    assert not after_losses(2, 3.0, 2.0, 2.5, 1.9, 1.95).should_stop
    assert not after_losses(0, *range(10)).should_stop
    never = after_losses(2, float('nan'), float('nan'))
    assert never.should_stop and never.best is None


def test_who_watches_a_run_ends_it_for_good(tmp_path):
    seen = []

    def watch(done, validation):
        seen.append((done, validation['loss']))
        return 'pruned' if done == 4 else None

    with watching(watch):
        outcome = run(tmp_path, config_of())
    assert seen == [(2, 3.0), (4, 10.0)]
    assert outcome.summary()['reason'] == 'pruned' and steps_of(tmp_path) == [2, 4]
    again = run(tmp_path, config_of())  # nobody watches
    assert again.summary() == outcome.summary() and len(lines_of(tmp_path)) == 6
    whole = run(tmp_path / 'whole', config_of())
    assert whole.summary()['reason'] == 'finished'
    with watching(lambda done, validation: 'pruned' if done == 6 else None):
        assert run(tmp_path / 'last', config_of()).summary()['reason'] == 'finished'
