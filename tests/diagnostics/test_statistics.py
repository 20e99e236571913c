"""Claim: trace, signal-to-noise, cosine and bias of samples are those of the distribution they come from."""

import numpy as np
import pytest
import torch as th

from sb3_pgext.diagnostics import gradient_statistics

MEAN = th.tensor([3.0, 0.0, -4.0], dtype=th.float64)
STD = th.tensor([1.0, 2.0, 5.0], dtype=th.float64)
TRACE, SIGNAL_TO_NOISE = 30.0, 5 / np.sqrt(30)


def samples(n, seed=0, mean=MEAN):
    return mean + STD * th.randn(n, 3, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def test_the_truth_is_found_with_many_samples():
    statistics = gradient_statistics(samples(1500), MEAN)
    assert statistics.n_batches == 1500
    assert statistics.trace.value == pytest.approx(TRACE, rel=0.05)
    assert statistics.signal_to_noise.value == pytest.approx(SIGNAL_TO_NOISE, rel=0.05)
    cosine = th.cosine_similarity(samples(100_000, seed=1), MEAN.unsqueeze(0)).mean().item()
    assert statistics.cosine.value == pytest.approx(cosine, abs=0.02)
    assert abs(statistics.bias) < 4 * statistics.bias_error < 0.1


def test_by_definition():
    x = samples(5)
    trace = x.var(0).sum().item()
    signal = max(x.mean(0).square().sum().item() - trace / 5, 0) ** 0.5
    others = [x[[j for j in range(5) if j != i]].mean(0) for i in range(5)]
    cosine = np.mean([th.cosine_similarity(x[i], others[i], dim=0).item() for i in range(5)])
    statistics = gradient_statistics(x)
    assert statistics.trace.value == pytest.approx(trace)
    assert statistics.signal_to_noise.value == pytest.approx(signal / trace**0.5)
    assert statistics.cosine.value == pytest.approx(cosine)
    assert statistics.bias is None


def test_intervals_cover():
    """95 % intervals, in 300 experiments of 100 batches: the number that cover is within binomial noise of 285."""
    hits = np.zeros(2)
    for seed in range(300):
        statistics = gradient_statistics(samples(100, seed))
        for k, (interval, truth) in enumerate(
            [(statistics.trace, TRACE), (statistics.signal_to_noise, SIGNAL_TO_NOISE)]
        ):
            hits[k] += interval.low <= truth <= interval.high
    assert (hits > 0.90 * 300).all()
    assert (hits < 0.99 * 300).all()


def test_noise_has_no_signal():
    statistics = [gradient_statistics(samples(50, seed, 0 * MEAN)) for seed in range(100)]
    assert abs(np.mean([s.cosine.value for s in statistics])) < 0.02
    assert np.median([s.signal_to_noise.value for s in statistics]) < 0.1


def test_a_bias_is_seen():
    statistics = gradient_statistics(samples(1000), 2 * MEAN)
    assert statistics.bias == pytest.approx(-0.5, abs=4 * statistics.bias_error)
    assert statistics.bias_norm.value == pytest.approx(0.5, abs=0.06)
    assert statistics.bias_norm.low < statistics.bias_norm.value < statistics.bias_norm.high
    sideways = gradient_statistics(samples(1000), MEAN + th.tensor([0.0, 5.0, 0.0]))
    assert sideways.bias_norm.value == pytest.approx(5 / 50**0.5, abs=0.06)
    assert gradient_statistics(samples(1000), MEAN).bias_norm.value < 0.08
    assert statistics.bias_error == pytest.approx(float((STD * MEAN).norm()) / 50 / 1000**0.5, rel=0.1)


def test_bias_by_definition():
    """Products of different batches only, as (Σ_{j≠k} d_j·g_k) / (Σ_{j≠k} g_j·g_k); each without one in turn."""
    x, g = samples(5), samples(5, seed=1, mean=10 * MEAN)

    def by_definition(batches):
        pairs = [(j, k) for j in batches for k in batches if j != k]
        of_reference = sum(g[j] @ g[k] for j, k in pairs)
        along = sum((x[j] - g[j]) @ g[k] for j, k in pairs) / of_reference
        square = sum((x[j] - g[j]) @ (x[k] - g[k]) for j, k in pairs) / of_reference
        return along.item(), square.item()

    statistics = gradient_statistics(x, g)
    along, square = by_definition(range(5))
    replicates = np.array([by_definition([j for j in range(5) if j != i]) for i in range(5)])
    errors = np.sqrt(4 * replicates.var(axis=0))
    assert statistics.bias == pytest.approx(along)
    assert statistics.bias_error == pytest.approx(errors[0])
    norm = statistics.bias_norm
    assert norm.value == pytest.approx(max(square, 0) ** 0.5)
    assert norm.low == pytest.approx(max(square - 1.96 * errors[1], 0) ** 0.5)
    assert norm.high == pytest.approx(max(square + 1.96 * errors[1], 0) ** 0.5)


def test_paired_samples_show_a_bias_that_their_noise_would_hide():
    """Half of another estimator, with a little noise of its own, of the same 40 batches: their common noise cancels."""
    g = samples(40, mean=2 * MEAN)
    statistics = gradient_statistics(0.5 * g + 0.01 * samples(40, 1, 0 * MEAN), g)
    assert statistics.bias == pytest.approx(-0.5, abs=4 * statistics.bias_error)
    assert statistics.bias_error < 0.02
    assert statistics.bias_norm.value == pytest.approx(0.5, abs=0.02)
    unpaired = gradient_statistics(0.5 * g, g.flip(0))
    assert unpaired.bias_error > 10 * statistics.bias_error
    same = gradient_statistics(g, g)
    assert (same.bias, same.bias_error, same.bias_norm.value) == (0, 0, 0)


def test_the_interval_of_a_bias_covers():
    """Along the reference and in all directions; the number of 300 that cover is within binomial noise of 285."""
    hits = np.zeros(2)
    bias = th.tensor([1.0, -2.0, 0.5], dtype=th.float64)
    for seed in range(300):
        g = samples(100, seed)
        statistics = gradient_statistics(g + bias + samples(100, 1000 + seed, 0 * MEAN), g)
        truth = (bias @ MEAN / (MEAN @ MEAN)).item()
        hits[0] += abs(statistics.bias - truth) <= 1.96 * statistics.bias_error
        hits[1] += statistics.bias_norm.low <= (bias.norm() / MEAN.norm()).item() <= statistics.bias_norm.high
    assert (hits > 0.90 * 300).all()
    assert (hits < 0.99 * 300).all()


def test_no_bias_where_the_reference_cannot_be_told_from_0():
    assert gradient_statistics(samples(5), 0 * MEAN).bias is None
    of_noise = [gradient_statistics(samples(20), samples(20, seed, 0 * MEAN)).bias for seed in range(1, 101)]
    assert sum(bias is not None for bias in of_noise) < 15
    assert gradient_statistics(samples(100), samples(100, 1)).bias is not None


def test_too_few_samples():
    with pytest.raises(ValueError, match="at least 3"):
        gradient_statistics(samples(2))
