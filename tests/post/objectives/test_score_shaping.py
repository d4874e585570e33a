"""Changes to scores, by hand."""

import numpy as np
import pytest

from gptjax.post.objectives import score_shaping


def test_any_numbers_become_float32():
    for numbers in ([1, 0], [True, False], np.float64([1, 0]), np.int64([1, 0])):
        ours = score_shaping.as_scores(numbers)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, [1.0, 0.0])


def test_missing_eos_penalty():
    ended_B = np.array([True, False])
    ours_B = score_shaping.missing_eos_penalty(np.array([1, 1]), ended_B, 0.25)
    np.testing.assert_array_equal(ours_B, [1.0, 0.75])


def test_overlong_penalty():
    # Maximum 8, buffer 4: 0 up to 4 tokens, then -1/4 per token, at least -1.
    lengths_B = np.array([0, 4, 5, 6, 8, 9, 30])
    mask_BT = np.arange(32) < lengths_B[:, None]
    ours_B = score_shaping.overlong_penalty(mask_BT, longest=8, buffer=4)
    np.testing.assert_allclose(ours_B, [0, 0, -0.25, -0.5, -1, -1, -1])


def test_running_moments_are_those_of_everything_at_once():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 2.0, size) for size in (5, 1, 0, 40)]
    moments = score_shaping.RunningMoments()
    for batch in batches:
        moments = moments.after(batch.astype(np.float32))
    everything = np.concatenate(batches)
    assert moments.count == 46
    assert moments.mean == pytest.approx(everything.mean(), rel=1e-6)
    assert moments.std == pytest.approx(everything.std(), rel=1e-6)
    # While all scores are equal:
    assert score_shaping.RunningMoments().std == 1.0
    assert score_shaping.RunningMoments().after([3, 3, 3]).std == 1.0


def test_scale_scores():
    ours_B = score_shaping.scale_scores(np.array([0, 2, -8]), scale=2.0)
    np.testing.assert_array_equal(ours_B, [0.0, 1.0, -4.0])
    ours_B = score_shaping.scale_scores([0, 2, -8], scale=2.0, clip=0.5)
    np.testing.assert_array_equal(ours_B, [0.0, 0.5, -0.5])
