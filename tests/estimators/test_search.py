"""
Claim: search gradients are what their definitions say, unbiased where MATH.md says so, and of the variance that a
quadratic F gives them in closed form: 1 % of all runs of this file fail by chance.

For F(θ) = c + bᵀθ + ½ θᵀAθ the gradient of E F(μ + σε) is b + Aμ. The variances follow from the moments of a normal ε.
"""

import itertools
import math

import pytest
import torch as th
from scipy import stats

from sb3_pgext.estimators.search import SHAPINGS, centred_ranks, leave_one_out, mirrored, search_gradient

P, SIGMA, N = 3, 0.5, 6
N_POPULATIONS = 200_000
N_TESTS = 40
"""Comparisons in this file, with some to spare."""

# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_plain_gradient_is_its_sum(n):
    noise, fitness = th.randn(n, P), th.randn(n)
    expected = [sum(fitness[i] * noise[i, k] for i in range(n)) / n / SIGMA for k in range(P)]
    th.testing.assert_close(search_gradient(fitness, noise, SIGMA), th.stack(expected))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_antithetic_gradient_is_its_sum(n):
    noise, plus, minus = th.randn(n, P), th.randn(n), th.randn(n)
    expected = [sum((plus[i] - minus[i]) * noise[i, k] for i in range(n)) / (2 * n * SIGMA) for k in range(P)]
    found = search_gradient(th.cat([plus, minus]), mirrored(noise), SIGMA)
    th.testing.assert_close(found, th.stack(expected))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_leaving_one_out_is_its_loop(n):
    returns = th.randn(n, dtype=th.float64)
    expected = [returns[i] - sum(returns[j] for j in range(n) if j != i) / (n - 1) for i in range(n)]
    th.testing.assert_close(leave_one_out(returns), th.stack(expected))


@pytest.mark.parametrize("values", [[3.0, -1.0, 10.0], [1.0, 1.0], [2.0, 5.0, 2.0, 2.0, 7.0, 5.0], [0.0, 1e30, -1e30]])
def test_ranks_are_the_mean_over_all_ways_to_break_ties(values):
    def ranks(order):
        """By sorting, where equal returns stand as in this order."""
        best_last = sorted(order, key=lambda i: values[i])
        return [best_last.index(i) / (len(values) - 1) - 0.5 for i in range(len(values))]

    of_orders = th.tensor([ranks(order) for order in itertools.permutations(range(len(values)))])
    th.testing.assert_close(centred_ranks(th.tensor(values)), of_orders.mean(0))


@pytest.mark.parametrize("name", ["ranks", "standardized"])
def test_a_population_without_differences_moves_nothing(name):
    assert not SHAPINGS[name](th.full((6,), 3.0)).any()


@pytest.mark.parametrize("name", ["ranks", "standardized"])
def test_shapings_ignore_scale_and_shift(name):
    returns = th.randn(9, dtype=th.float64)
    th.testing.assert_close(SHAPINGS[name](returns), SHAPINGS[name](40 * returns - 7), atol=1e-7, rtol=1e-6)


# --- means and variances ---------------------------------------------------------------------------------------------


class Quadratic:
    """F(μ + σε) = f + σ gᵀε + ½ σ² εᵀAε around a μ, where g is the gradient of its mean."""

    def __init__(self, seed, offset=0.0):
        generator = th.Generator().manual_seed(seed)
        half = th.randn(P, P, generator=generator, dtype=th.float64)
        self.a = half + half.T
        self.f = offset + th.randn((), generator=generator, dtype=th.float64)
        self.g = th.randn(P, generator=generator, dtype=th.float64)

    def __call__(self, noise):
        return self.f + SIGMA * noise @ self.g + 0.5 * SIGMA**2 * th.einsum("...i,ij,...j", noise, self.a, noise)

    def _second_moment(self, f):
        """E[F² |ε|²] with another f: each term of degree k in ε has E[… |ε|²] = (P + k) E[…]."""
        trace, square = self.a.trace(), (self.a @ self.a).trace()
        of_squares = f**2 * P + SIGMA**2 * self.g @ self.g * (P + 2)
        return of_squares + SIGMA**4 / 4 * (2 * square + trace**2) * (P + 4) + f * SIGMA**2 * trace * (P + 2)

    def variance(self, estimator, n):
        """tr Cov ĝ of n directions."""
        signal = self.g @ self.g
        if estimator == "antithetic":  # the mean of (gᵀε) ε
            return signal * (P + 1) / n
        if estimator == "plain":
            return (self._second_moment(self.f) / SIGMA**2 - signal) / n
        # The covariance of F and ε in a sample, divided by σ; see Kendall & Stuart for its variance.
        spread = SIGMA**2 * signal + SIGMA**4 / 2 * (self.a @ self.a).trace()
        around_mean = self._second_moment(-(SIGMA**2) / 2 * self.a.trace())
        squares = around_mean - (n - 2) / (n - 1) * SIGMA**2 * signal + spread * P / (n - 1)
        return squares / (n * SIGMA**2)


def samples_of(estimator, quadratic, n, seed=0):
    """ĝ of many populations, ``(N_POPULATIONS, P)``."""
    noise = th.randn(N_POPULATIONS, n, P, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    if estimator in ("antithetic", "ranks"):
        noise = th.cat([noise, -noise], dim=1)
    fitness = quadratic(noise)
    if estimator == "plain, leave-one-out":
        fitness = th.func.vmap(leave_one_out)(fitness)
    if estimator == "ranks":
        order = fitness.argsort(1).argsort(1)
        fitness = order / (fitness.shape[1] - 1) - 0.5
    return th.func.vmap(search_gradient, (0, 0, None))(fitness.to(noise.dtype), noise, SIGMA)


def z_of(samples, exact):
    """max |z| of the mean, its bound at 1 % over the whole file, and the standard errors."""
    errors = samples.std(0) / len(samples) ** 0.5
    return ((samples.mean(0) - exact) / errors).abs().max(), stats.norm.isf(0.01 / 2 / N_TESTS / P), errors


UNBIASED = ["plain", "plain, leave-one-out", "antithetic"]


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("seed", [0, 1])
def test_unbiased_for_a_quadratic_f(estimator, seed):
    """A bias of 2.5 % of the gradient would be found, of 1 % by the antithetic estimator."""
    quadratic = Quadratic(seed)
    z, bound, errors = z_of(samples_of(estimator, quadratic, N), quadratic.g)
    assert z < bound
    smallest = bound / (quadratic.g / errors).abs().max()
    assert smallest < (0.01 if estimator == "antithetic" else 0.025), smallest


def test_ranks_are_biased():
    quadratic = Quadratic(0)
    z, bound, _ = z_of(samples_of("ranks", quadratic, N), quadratic.g)
    assert z > 10 * bound


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("n", [2, N])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_variances_are_those_of_theory(estimator, n, offset):
    quadratic = Quadratic(2, offset)
    samples = samples_of(estimator, quadratic, n)
    squares = ((samples - quadratic.g) ** 2).sum(1)
    z = (squares.mean() - quadratic.variance(estimator, n)) / squares.std() * len(squares) ** 0.5
    assert z.abs() < stats.norm.isf(0.01 / 2 / N_TESTS)
    assert squares.std() / len(squares) ** 0.5 < 0.02 * quadratic.variance(estimator, n)


def test_the_order_of_the_variances():
    """
    Far from 0, a baseline has less variance than none; where F is curved, pairs have less than as many members with a
    baseline, and where it is straight they have more: the other half of a pair says nothing new.
    """
    curved, straight = Quadratic(2, offset=5.0), Quadratic(2, offset=5.0)
    curved.a, straight.a = 5 * curved.a, 0 * straight.a
    for quadratic in (curved, straight):
        plain, baseline, pairs = (
            _interval(samples_of(estimator, quadratic, n) - quadratic.g)
            for estimator, n in (("plain", 2 * N), ("plain, leave-one-out", 2 * N), ("antithetic", N))
        )
        assert baseline[1] < plain[0]
        assert (pairs[1] < baseline[0]) if quadratic is curved else (baseline[1] < pairs[0])


def _interval(deviations):
    squares = (deviations**2).sum(1)
    error = stats.norm.isf(0.01 / 2 / N_TESTS) * squares.std() / math.sqrt(len(squares))
    return squares.mean() - error, squares.mean() + error
