"""
Claim: the weights are the products of ratios that their definitions say, truncation, normalisation and mixtures of
them too; everything stays finite at log-ratios of 1e4.
"""

import math

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_pgext.estimators.importance import (
    WEIGHTS,
    effective_sample_size,
    importance_weights,
    log_mixture,
    log_weights,
    per_decision_returns,
    self_normalized,
)
from sb3_pgext.estimators.returns import discounted_returns
from tests.estimators.batches import episode_lengths, flat_batch


def steps_of(lengths):
    """The indices of each episode's steps."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [range(start, start + n) for start, n in zip(starts, lengths, strict=True)]


def products(weights, ratios, lengths):
    """W of each step, as a product of plain numbers."""
    W = []
    for steps in steps_of(lengths):
        for t in steps:
            factors = {"trajectory": steps, "per_step": [t]}.get(weights, range(steps[0], t + 1))
            W.append(math.prod(ratios[k].item() for k in factors))
    return th.tensor(W, dtype=th.float64)


@pytest.mark.parametrize("weights", WEIGHTS)
@given(lengths=episode_lengths, seed=st.integers(0, 9))
def test_log_weights(weights, lengths, seed):
    episode, _, log_ratio = flat_batch(lengths, seed)
    result = importance_weights(log_weights(weights, log_ratio, episode))
    th.testing.assert_close(result, products(weights, log_ratio.exp(), lengths))


@pytest.mark.parametrize("weights", WEIGHTS)
@given(lengths=episode_lengths)
def test_without_a_difference_every_weight_is_1(weights, lengths):
    episode, time, rewards = flat_batch(lengths)
    log_w = log_weights(weights, th.zeros_like(rewards), episode)
    assert (importance_weights(log_w) == 1).all()
    assert (importance_weights(self_normalized(weights, log_w, time)) == 1).all()
    assert th.equal(per_decision_returns(rewards, log_w.exp(), episode, 0.9), discounted_returns(rewards, episode, 0.9))


@pytest.mark.parametrize("weights", WEIGHTS)
@given(lengths=episode_lengths, seed=st.integers(0, 9))
def test_the_mixture_takes_the_place_of_the_own_policy(weights, lengths, seed):
    """π_θ over Σ_k n_k/n Π π_k, from four tables of probabilities, of which the second acted."""
    episode, _, _ = flat_batch(lengths)
    probability = th.rand(4, sum(lengths), generator=th.Generator().manual_seed(seed), dtype=th.float64) + 0.1
    shares = th.tensor([0.2, 0.5, 0.3], dtype=th.float64)
    theta, behaviour = probability[0], probability[1:]
    own = behaviour[1]
    mixture = log_mixture(
        th.stack([log_weights(weights, (mu / own).log(), episode) for mu in behaviour]), shares.view(-1, 1)
    )
    result = importance_weights(log_weights(weights, (theta / own).log(), episode) - mixture)
    denominator = sum(
        share * products(weights, mu, lengths) for share, mu in zip(shares.tolist(), behaviour, strict=True)
    )
    th.testing.assert_close(result, products(weights, theta, lengths) / denominator)


@pytest.mark.parametrize("weights", WEIGHTS)
@given(lengths=episode_lengths, seed=st.integers(0, 9))
def test_self_normalisation(weights, lengths, seed):
    """By the mean over the episodes alive, or over all episodes."""
    episode, time, log_ratio = flat_batch(lengths, seed)
    W = products(weights, log_ratio.exp(), lengths)
    result = importance_weights(self_normalized(weights, log_weights(weights, log_ratio, episode), time))
    for steps in steps_of(lengths):
        for t, step in enumerate(steps):
            alive = [other[0 if weights == "trajectory" else t] for other in steps_of(lengths)
                     if weights == "trajectory" or len(other) > t]  # fmt: skip
            assert result[step].item() == pytest.approx(W[step].item() / W[alive].mean().item())


@given(lengths=episode_lengths, seed=st.integers(0, 9))
def test_per_decision_returns(lengths, seed):
    episode, _, rewards = flat_batch(lengths, seed)
    _, _, log_ratio = flat_batch(lengths, seed + 10)
    bootstrap_values = th.arange(1.0, len(lengths) + 1, dtype=th.float64)
    W = products("per_decision", log_ratio.exp(), lengths)
    result = per_decision_returns(rewards, W, episode, 0.9, bootstrap_values)
    for i, steps in enumerate(steps_of(lengths)):
        for t in steps:
            expected = sum(0.9 ** (k - t) * rewards[k] * W[k] for k in range(t, steps[-1] + 1))
            expected += 0.9 ** (steps[-1] + 1 - t) * bootstrap_values[i] * W[steps[-1]]
            th.testing.assert_close(result[t], expected)
    plain = per_decision_returns(rewards, W, episode, 0.9)
    th.testing.assert_close(plain, per_decision_returns(rewards, W, episode, 0.9, th.zeros_like(bootstrap_values)))


def test_effective_sample_size():
    W = th.tensor([1.0, 2.0, 3.0])
    assert effective_sample_size(W.log()).item() == pytest.approx(36 / 14)
    assert effective_sample_size((7 * W).log()).item() == pytest.approx(36 / 14)
    assert effective_sample_size(th.full((9,), -2.5)).item() == pytest.approx(9)
    assert effective_sample_size(th.tensor([0.0, -1e9, -1e9])).item() == 1


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_nan_and_no_infinity(weights, dtype):
    """Log-ratios of ±1e4 at each of 1,000 steps, through every function; the squared length of a sum is finite too."""
    lengths = [1000, 1, 37, 1000, 1000]
    episode, time, rewards = flat_batch(lengths, dtype=dtype)
    size = th.tensor([1e4, 1e4, -1e4, -1e4, 0.0], dtype=dtype)[episode]
    sign = th.where(th.rand(len(time), generator=th.Generator().manual_seed(0)) < 0.5, -1, 1)
    for log_ratio in (size, -size, size * sign):
        log_w = log_weights(weights, log_ratio, episode)
        mixture = log_mixture(th.stack([log_w, th.zeros_like(log_w)]), th.tensor([0.5, 0.5]))
        for x in (log_w, log_w - mixture, self_normalized(weights, log_w, time)):
            W = importance_weights(x)
            assert W.isfinite().all()
            assert (W * rewards).sum().square().isfinite()
            assert per_decision_returns(rewards, W, episode, 0.99).square().isfinite().all()
            assert 1 <= effective_sample_size(x).item() <= len(x)
        assert importance_weights(self_normalized(weights, log_w, time)).max() <= 5.001, "at most N"
