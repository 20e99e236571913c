"""Claim: estimates and intervals are those of a hand calculation, and the intervals cover what they claim."""

import numpy as np
import pytest
from rliable import metrics

from sb3_pgext.compare.statistics import (
    area_under_curve,
    interquartile_mean,
    iqm_with_bootstrap_interval,
    mean_with_range,
    mean_with_t_interval,
    steps_to_threshold,
)


def test_mean_and_t_interval_of_three_seeds() -> None:
    estimate = mean_with_t_interval(np.array([1.0, 2.0, 3.0]))
    half_width = 4.302653 * 1.0 / 3**0.5  # Student's quantile for 2 degrees of freedom, from a table.
    assert estimate.value == 2.0
    assert estimate.low == pytest.approx(2.0 - half_width, rel=1e-6)
    assert estimate.high == pytest.approx(2.0 + half_width, rel=1e-6)


def test_seeds_that_agree_have_an_interval_of_no_width() -> None:
    estimate = mean_with_t_interval(np.array([-500.0, -500.0, -500.0]))
    assert (estimate.low, estimate.value, estimate.high) == (-500.0, -500.0, -500.0)


def test_range_of_a_few_seeds() -> None:
    estimate = mean_with_range(np.array([[13.0, 4.0], [500.0, 8.0], [384.0, 6.0]]))
    assert estimate.value.tolist() == [299.0, 6.0]
    assert estimate.low.tolist() == [13.0, 4.0]
    assert estimate.high.tolist() == [500.0, 8.0]


def test_t_intervals_cover_the_true_mean_19_times_in_20() -> None:
    scores = np.random.default_rng(0).normal(7.0, 3.0, (3, 20_000))
    estimate = mean_with_t_interval(scores)
    assert ((estimate.low < 7.0) & (estimate.high > 7.0)).mean() == pytest.approx(0.95, abs=0.006)


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    scores = np.array([100.0, 3.0, -50.0, 4.0, 1.0, 2.0, 9.0, 0.0])
    assert interquartile_mean(scores[:, None]) == pytest.approx((1.0 + 2.0 + 3.0 + 4.0) / 4)
    assert interquartile_mean(scores.reshape(4, 2)) == pytest.approx(metrics.aggregate_iqm(scores[:, None]))


def test_bootstrap_interval_is_that_of_resampling_by_hand() -> None:
    scores = np.array([1.0, 5.0, 2.0, 8.0, 4.0, 4.5, 7.0, 0.0, 3.0, 6.0])
    estimate = iqm_with_bootstrap_interval(scores)
    rng = np.random.default_rng(1)
    resampled = [np.sort(rng.choice(scores, 10))[2:8].mean() for _ in range(20_000)]
    assert estimate.value == pytest.approx(np.sort(scores)[2:8].mean())
    assert estimate.low == pytest.approx(np.quantile(resampled, 0.025), abs=0.15)
    assert estimate.high == pytest.approx(np.quantile(resampled, 0.975), abs=0.15)


def test_bootstrap_intervals_of_ten_seeds_cover_almost_as_they_claim() -> None:
    scores = np.random.default_rng(2).normal(0.0, 1.0, (10, 1000))
    estimate = iqm_with_bootstrap_interval(scores)
    coverage = ((estimate.low < 0) & (estimate.high > 0)).mean()
    assert 0.88 < coverage < 0.97


def test_bootstrap_is_repeatable_and_leaves_numpys_generator_alone() -> None:
    scores = np.random.default_rng(3).normal(size=(6, 4))
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first, second = iqm_with_bootstrap_interval(scores), iqm_with_bootstrap_interval(scores)
    assert np.random.random() == expected  # noqa: NPY002
    assert (first.low == second.low).all()
    assert (first.high == second.high).all()
    assert first.low.shape == (4,)


def test_area_under_the_curve_is_the_mean_return_over_the_training() -> None:
    timesteps = np.array([0, 10, 30])
    returns = np.array([[0.0, 10.0, 10.0], [4.0, 4.0, 4.0]])
    by_hand = (10 * (0 + 10) / 2 + 20 * 10) / 30
    assert area_under_curve(timesteps, returns) == pytest.approx([by_hand, 4.0])


def test_steps_to_threshold_is_the_first_evaluation_that_reaches_it() -> None:
    timesteps = np.array([0, 5, 10, 15])
    returns = np.array([[1.0, 9.0, 2.0, 9.0], [1.0, 2.0, 3.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    assert steps_to_threshold(timesteps, returns, 8.0).tolist() == [5, 15, np.inf]
