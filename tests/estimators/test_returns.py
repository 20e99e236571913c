"""Claim: the vectorised returns, TD errors and λ-returns equal their definitions, computed step by step."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_pgext.estimators import returns as R
from tests.estimators.batches import episode_lengths, flat_batch

fractions = st.floats(0, 1)


def returns_by_definition(rewards, episode, gamma, bootstrap_values):
    """Σ_{k≥t} γ^{k-t} r_k + γ^{T-t} V(s_T), one step at a time from the end."""
    result, following = th.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        if t + 1 == len(rewards) or episode[t + 1] != episode[t]:
            following = bootstrap_values[episode[t]]
        following = rewards[t] + gamma * following
        result[t] = following
    return result


@given(episode_lengths, fractions, st.integers(0, 100))
def test_discounted_returns(lengths, gamma, seed):
    episode, _, rewards = flat_batch(lengths, seed)
    bootstrap_values = th.randn(len(lengths), dtype=th.float64)
    expected = returns_by_definition(rewards, episode, gamma, bootstrap_values)
    th.testing.assert_close(R.discounted_returns(rewards, episode, gamma, bootstrap_values), expected)
    expected = returns_by_definition(rewards, episode, gamma, th.zeros(len(lengths)))
    th.testing.assert_close(R.discounted_returns(rewards, episode, gamma), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_long_episodes_neither_underflow_nor_lose_digits(gamma, device):
    """γ^t of 20,000 steps is far below the smallest float: an implementation that divides by it gives NaN."""
    episode, _, _ = flat_batch([20_000, 1], device=device)
    rewards = th.ones(20_001, device=device)
    result = R.discounted_returns(rewards, episode, gamma)
    powers = th.pow(th.tensor(gamma, dtype=th.float64), th.arange(20_000))
    expected = powers.cumsum(0).flip(0).float().to(device)
    th.testing.assert_close(result[:-1], expected)
    assert result[-1] == 1.0


@given(episode_lengths, fractions, fractions, st.integers(0, 100))
def test_lambda_returns(lengths, gamma, gae_lambda, seed):
    """Ψ_t = δ_t + γλΨ_{t+1} within the episode, y_t = Ψ_t + V(s_t); λ = 1 is G_t, λ = 0 is r_t + γV(s_{t+1})."""
    episode, _, rewards = flat_batch(lengths, seed)
    values, bootstrap_values = th.randn(len(rewards), dtype=th.float64), th.randn(len(lengths), dtype=th.float64)
    expected, one_step = th.zeros_like(rewards), th.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        last = t + 1 == len(rewards) or episode[t + 1] != episode[t]
        one_step[t] = rewards[t] + gamma * (bootstrap_values[episode[t]] if last else values[t + 1])
        following = 0.0 if last else expected[t + 1] - values[t + 1]
        expected[t] = one_step[t] + gamma * gae_lambda * following
    arguments = (rewards, values, episode, gamma)
    th.testing.assert_close(R.lambda_returns(*arguments, gae_lambda, bootstrap_values), expected)
    th.testing.assert_close(R.lambda_returns(*arguments, 0.0, bootstrap_values), one_step)
    monte_carlo = R.discounted_returns(rewards, episode, gamma, bootstrap_values)
    th.testing.assert_close(R.lambda_returns(*arguments, 1.0, bootstrap_values), monte_carlo)
    th.testing.assert_close(R.td_errors(*arguments, bootstrap_values), one_step - values)


def test_trajectory_returns_and_discount_weights():
    _, time, rewards = flat_batch([2, 1, 3])
    assert R.trajectory_returns(rewards, time).tolist() == [rewards[0], rewards[2], rewards[3]]
    th.testing.assert_close(R.discount_weights(time, 0.5), th.tensor([1, 0.5, 1, 1, 0.5, 0.25]))


def test_gradients_pass_through():
    """Off-policy and value-based uses differentiate through the sums."""
    episode, _, rewards = flat_batch([3, 2])
    rewards.requires_grad_()
    R.discounted_sum_to_go(rewards, episode, 0.5)[0].backward()
    assert rewards.grad.tolist() == [1.0, 0.5, 0.25, 0.0, 0.0]


@given(st.integers(1, 4), st.integers(1, 9), fractions, fractions, st.integers(0, 100))
def test_rollout_advantages(n_envs, n_steps, gamma, gae_lambda, seed):
    """The same sums, of E sub-environments of as many steps each, cut anywhere."""
    generator = th.Generator().manual_seed(seed)
    ends = th.rand(n_envs, n_steps, generator=generator) < 0.3
    ends[:, -1] = True
    segment = ends.flatten().cumsum(0) - ends.flatten().long()
    rewards, values = th.randn(2, n_envs * n_steps, dtype=th.float64, generator=generator)
    bootstrap_values = th.randn(int(ends.sum()), dtype=th.float64, generator=generator)
    arguments = (rewards, values, segment, gamma, gae_lambda, bootstrap_values)
    th.testing.assert_close(R.rollout_advantages(*arguments, n_envs), R.generalized_advantages(*arguments))
