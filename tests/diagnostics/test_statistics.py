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
    statistics = gradient_statistics(samples(3000), MEAN)
    assert statistics.n_batches == 3000
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
    statistics = gradient_statistics(samples(3000), 2 * MEAN)
    assert statistics.bias == pytest.approx(-0.5, abs=4 * statistics.bias_error)
    assert statistics.bias_norm == pytest.approx(0.5, abs=0.03)
    sideways = gradient_statistics(samples(3000), MEAN + th.tensor([0.0, 5.0, 0.0]))
    assert sideways.bias_norm == pytest.approx(5 / 50**0.5, abs=0.03)
    assert gradient_statistics(samples(3000), MEAN).bias_norm < 0.05
    assert statistics.bias_error == pytest.approx(float((STD * MEAN).norm()) / 50 / 3000**0.5, rel=0.1)


def test_too_few_samples():
    with pytest.raises(ValueError, match="at least 3"):
        gradient_statistics(samples(2))
