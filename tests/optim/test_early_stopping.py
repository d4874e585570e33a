"""Patience counts validations since the lowest loss."""

import json

from gptjax.optim.early_stopping import EarlyStopping


def after_losses(patience, *losses):
    value = EarlyStopping(patience)
    for loss in losses:
        value = value.after(loss)
    return value


def test_stops_after_patience_validations_without_a_better_one():
    assert not after_losses(2, 3.0, 2.0, 2.5).should_stop
    assert after_losses(2, 3.0, 2.0, 2.5, 2.0).should_stop
    assert not after_losses(2, 3.0, 2.0, 2.5, 1.9, 1.95).should_stop


def test_never_stops_without_patience():
    assert not after_losses(0, *range(10)).should_stop


def test_nan_is_worse_and_never_the_best():
    value = after_losses(2, float('nan'), float('nan'))
    assert value.should_stop and value.best is None


def test_survives_json():
    value = after_losses(2, 3.0, 4.0)
    assert EarlyStopping(**json.loads(json.dumps(value._asdict()))) == value
