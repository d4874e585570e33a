"""The factor at steps computed by hand, and properties of every step."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import base
from gptjax.core import schema
from gptjax.core.console import UserError
from gptjax.optim.schedules import make_schedule

ALL_STEPS = np.arange(500)  # one shape, as each new shape would be compiled


def make_optim(schedule, warmup_steps=4, final_scale=0.1, decay_fraction=0.5):
    optim = base().optim
    optim.schedule = schedule
    optim.warmup_steps = warmup_steps
    optim.final_scale = final_scale
    optim.decay_fraction = decay_fraction
    return optim


@pytest.mark.parametrize(
    ('schedule', 'middle', 'last', 'after'),
    [
        ('constant', 1.0, 1.0, 1.0),
        # p = (12 - 4) / (20 - 4) = 1/2 and (19 - 4) / 16 = 15/16
        ('cosine', 0.1 + 0.9 / 2, 0.1 + 0.45 * (1 + np.cos(np.pi * 15 / 16)), 0.1),
        ('linear', 1 - 0.9 / 2, 1 - 0.9 * 15 / 16, 0.1),
        ('inverse_sqrt', (5 / 13) ** 0.5, 0.5, (5 / 21) ** 0.5),
        # the last 10 of 20 steps decay: 2 and 9 of these 10 are done
        ('wsd', 1 - 0.9 * 2 / 10, 1 - 0.9 * 9 / 10, 0.1),
    ],
)
def test_values_by_hand(schedule, middle, last, after):
    scale = make_schedule(make_optim(schedule), num_steps=20)
    steps = [0, 3, 4, 12, 19, 20]
    expected = [1 / 5, 4 / 5, 1.0, middle, last, after]
    np.testing.assert_allclose([scale(s) for s in steps], expected, rtol=1e-6)


def test_wsd_is_flat_until_it_falls():
    scale = make_schedule(make_optim('wsd'), num_steps=20)
    np.testing.assert_array_equal([scale(s) for s in range(4, 11)], 1.0)
    assert scale(11) < 1.0


def test_wsd_does_not_fall_during_the_warm_up():
    optim = make_optim('wsd', warmup_steps=8, final_scale=0.0, decay_fraction=1.0)
    scale = make_schedule(optim, num_steps=10)
    np.testing.assert_allclose([scale(s) for s in (7, 8, 9)], [8 / 9, 1.0, 0.5])


def test_inverse_sqrt_stops_at_the_final_scale():
    optim = make_optim('inverse_sqrt', warmup_steps=0, final_scale=0.5)
    scale = make_schedule(optim, num_steps=100)
    np.testing.assert_allclose(
        [scale(s) for s in (0, 2, 3, 99)], [1, 3**-0.5, 0.5, 0.5]
    )


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.sampled_from(schema.OPTIM['schedule'].range.choices),
    num_steps=st.integers(1, len(ALL_STEPS)),
    warmup_share=st.floats(0, 0.99),
    final_scale=st.floats(0, 1),
    decay_fraction=st.floats(0, 1),
)
def test_rises_to_the_peak_and_never_rises_again(
    schedule, num_steps, warmup_share, final_scale, decay_fraction
):
    warmup = int(warmup_share * num_steps)
    optim = make_optim(schedule, warmup, final_scale, decay_fraction)
    scales = make_schedule(optim, num_steps)(ALL_STEPS)
    scales = np.asarray(scales)[:num_steps]
    assert scales.max() == scales[warmup] == 1.0
    assert (scales > 0).all()
    assert (np.diff(scales[: warmup + 1]) > 0).all()
    assert (np.diff(scales[warmup:]) <= 1e-6).all()
    assert (scales[warmup:] >= final_scale - 1e-6).all()


def test_traced_steps_give_the_same():
    scale = make_schedule(make_optim('cosine'), num_steps=20)
    np.testing.assert_allclose(jax.jit(scale)(12), scale(12), rtol=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match='optim.warmup_steps=20 is not below train.num'):
        make_schedule(make_optim('wsd', warmup_steps=20), num_steps=20)
