"""Estimates over seeds, each with the interval that suits their number."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.integrate
import scipy.stats
from rliable import library

MIN_SEEDS_FOR_BOOTSTRAP = 5
"""Below this a percentile bootstrap is far too narrow, and there are no quartiles to speak of."""

_BOOTSTRAP_REPETITIONS = 2000


@dataclass(frozen=True)
class Estimate:
    """
    A value and its 95 % interval, or the range of the seeds, for one quantity or for ``T`` at once.

    :param value: the estimate, ``()`` or ``(T,)``
    :param low: lower end, same shape
    :param high: upper end, same shape
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_with_t_interval(scores: np.ndarray) -> Estimate:
    """
    Estimate the mean over seeds with Student's 95 % interval, which is right for few seeds if they are roughly normal.

    :param scores: ``(S,)`` or ``(S, T)``, one row for each of two or more seeds
    :return: estimates of shape ``()`` or ``(T,)``
    """
    mean = scores.mean(axis=0)
    half = scipy.stats.t.ppf(0.975, len(scores) - 1) * scipy.stats.sem(scores)
    return Estimate(mean, mean - half, mean + half)


def mean_with_range(scores: np.ndarray) -> Estimate:
    """
    Average over too few seeds for an interval, beside the lowest and the highest of them, which hide nothing.

    Student's interval of two seeds is 12.7 standard errors to each side: far outside the returns that are possible.

    :param scores: ``(S,)`` or ``(S, T)``, one row per seed
    :return: mean, lowest and highest, each of shape ``()`` or ``(T,)``
    """
    return Estimate(scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    Average the middle half of the runs (Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021).

    :param scores: ``(S, E, ...)``, one row per seed and one column per environment
    :return: ``(...)``, over seeds and environments together
    """
    return np.asarray(scipy.stats.trim_mean(scores.reshape(-1, *scores.shape[2:]), 0.25))


def iqm_with_bootstrap_interval(scores: np.ndarray) -> Estimate:
    """
    Estimate the interquartile mean over seeds with rliable's bootstrap 95 % interval; one stratum: one environment.

    :param scores: ``(S,)`` or ``(S, T)``, one row per seed
    :return: estimates of shape ``()`` or ``(T,)``
    """
    return bootstrapped(scores[:, None], interquartile_mean)


def bootstrapped(scores: np.ndarray | tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> Estimate:
    """
    Estimate a statistic with rliable's stratified bootstrap 95 % interval: seeds are resampled in each environment.

    :param scores: ``(S, E, ...)``, or several such arrays, which are resampled independently
    :param statistic: of them, ``()`` or ``(T,)``
    :return: estimates of this shape
    """
    with _seeded_numpy():
        points, intervals = library.get_interval_estimates(
            {"": scores}, lambda *samples: np.atleast_1d(statistic(*samples)), reps=_BOOTSTRAP_REPETITIONS
        )
    shape = np.shape(statistic(*scores) if isinstance(scores, tuple) else statistic(scores))
    return Estimate(points[""].reshape(shape), *intervals[""].reshape(2, *shape))


def area_under_curve(timesteps: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """
    Average the return over a whole training: the area under the learning curve per environment step.

    :param timesteps: ``(T,)`` environment steps of the evaluations
    :param returns: ``(S, T)`` mean returns
    :return: ``(S,)``, in units of the return
    """
    return np.asarray(scipy.integrate.trapezoid(returns, timesteps, axis=1)) / (timesteps[-1] - timesteps[0])


def steps_to_threshold(timesteps: np.ndarray, returns: np.ndarray, threshold: float) -> np.ndarray:
    """
    Find the first evaluation of each seed that reaches a threshold.

    :param timesteps: ``(T,)`` environment steps of the evaluations
    :param returns: ``(S, T)`` mean returns
    :param threshold: the mean return to be reached
    :return: ``(S,)`` environment steps of that evaluation, infinite where there is none
    """
    reached = returns >= threshold
    return np.where(reached.any(axis=1), timesteps[reached.argmax(axis=1)], np.inf)


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """rliable draws from NumPy's global generator, whatever ``random_state`` it is given."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
