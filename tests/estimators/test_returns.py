"""
Claim: the vectorised returns, advantages and λ-returns equal their definitions, computed step by step, and the
advantages are related as MATH.md 4 says.
"""

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


def batch_with_values(lengths, seed):
    """Episodes of which some end in a terminal state and some are bootstrapped; arguments of the advantages."""
    episode, _, rewards = flat_batch(lengths, seed)
    generator = th.Generator().manual_seed(seed + 1)
    values = th.randn(len(rewards), dtype=th.float64, generator=generator)
    bootstrap_values = th.randn(len(lengths), dtype=th.float64, generator=generator)
    bootstrap_values[th.rand(len(lengths), generator=generator) < 0.5] = 0.0
    return rewards, values, episode, bootstrap_values


@given(episode_lengths, fractions, st.integers(1, 12), st.integers(0, 100))
def test_n_step_advantages(lengths, gamma, n_step, seed):
    """Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) - V(s_t), one step at a time; the sum stops at the end of the episode."""
    rewards, values, episode, bootstrap_values = batch_with_values(lengths, seed)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    expected = th.zeros_like(rewards)
    for t in range(len(rewards)):
        end = ends[episode[t]]
        stop = min(t + n_step, end)
        following = bootstrap_values[episode[t]] if stop == end else values[stop]
        expected[t] = sum(gamma ** (k - t) * rewards[k] for k in range(t, stop)) + gamma ** (stop - t) * following
        expected[t] -= values[t]
    th.testing.assert_close(R.n_step_advantages(rewards, values, episode, gamma, n_step, bootstrap_values), expected)


@given(episode_lengths, fractions, fractions, st.integers(0, 100))
def test_identities_of_the_advantages(lengths, gamma, gae_lambda, seed):
    """gae(0) = td, gae(1) = mc, n_step(1) = td, n_step(≥ T) = mc, gae(λ) = (1-λ) Σ_n λ^{n-1} n_step(n)."""
    rewards, values, episode, bootstrap_values = batch_with_values(lengths, seed)
    start, end = (rewards, values, episode, gamma), (bootstrap_values,)
    td, mc = R.td_errors(*start, *end), R.monte_carlo_advantages(*start, *end)
    th.testing.assert_close(mc, returns_by_definition(rewards, episode, gamma, bootstrap_values) - values)
    th.testing.assert_close(R.generalized_advantages(*start, 0.0, *end), td)
    th.testing.assert_close(R.generalized_advantages(*start, 1.0, *end), mc)
    th.testing.assert_close(R.n_step_advantages(*start, 1, *end), td)
    longest = max(lengths)
    for n_step in (longest, longest + 1, 1000):
        th.testing.assert_close(R.n_step_advantages(*start, n_step, *end), mc)
    # From n = T on every term is mc, and their weights (1-λ) Σ_{n≥T} λ^{n-1} add up to λ^{T-1}.
    mixture = gae_lambda ** (longest - 1) * mc
    for n_step in range(1, longest):
        mixture += (1 - gae_lambda) * gae_lambda ** (n_step - 1) * R.n_step_advantages(*start, n_step, *end)
    th.testing.assert_close(R.generalized_advantages(*start, gae_lambda, *end), mixture)


def test_n_step_advantages_of_long_episodes_lose_no_digits():
    """In float32, where the difference of two sums over 20,000 steps would: rewards 1000, V = 0."""
    episode, _, _ = flat_batch([20_000])
    rewards, values = th.full((20_000,), 1000.1), th.zeros(20_000)
    advantages = R.n_step_advantages(rewards, values, episode, 1.0, 3, th.zeros(1))
    th.testing.assert_close(advantages[:-2], 3 * rewards[:-2])


@given(episode_lengths, fractions, st.integers(1, 12), st.integers(0, 100))
def test_advantages_and_targets_of_a_critic_of_q(lengths, gamma, lookahead, seed):
    """n rewards, then Q(s_{t+n}, a_{t+n}), or V of what follows the end; less E Q(s_t, ·), where it is an advantage."""
    rewards, values, episode, bootstrap_values = batch_with_values(lengths, seed)
    q = th.randn(len(rewards), dtype=th.float64, generator=th.Generator().manual_seed(seed + 2))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]

    def continued(n_step, by):
        result = th.zeros_like(rewards)
        for t in range(len(rewards)):
            stop = min(t + n_step, ends[episode[t]])
            following = bootstrap_values[episode[t]] if stop == ends[episode[t]] else by[stop]
            result[t] = sum(gamma ** (k - t) * rewards[k] for k in range(t, stop)) + gamma ** (stop - t) * following
        return result

    def advantages(kind, of_actions=q):
        steps = (rewards, values, of_actions, episode, gamma, lookahead, bootstrap_values)
        return R.critic_advantages(kind, *steps)

    th.testing.assert_close(advantages("q"), q - values)
    th.testing.assert_close(advantages("td"), continued(1, q) - values)
    th.testing.assert_close(advantages("n_step"), continued(lookahead, q) - values)
    th.testing.assert_close(advantages("mc"), continued(10, values) - values)
    n_step = R.n_step_advantages(rewards, values, episode, gamma, lookahead, bootstrap_values)
    assert th.equal(advantages("n_step", values), n_step), "with V in its place, those of a critic of V to the bit"

    def targets(kind):
        steps = (rewards, values, episode, gamma, 0.7, bootstrap_values)
        return R.critic_targets(kind, *steps, q, lookahead)

    th.testing.assert_close(targets("sarsa"), continued(1, q))
    th.testing.assert_close(targets("expected_sarsa"), continued(1, values))
    th.testing.assert_close(targets("n_step"), continued(lookahead, q))
    th.testing.assert_close(targets("mc"), continued(10, values))
    of_v = R.lambda_returns(rewards, values, episode, gamma, 0.7, bootstrap_values)
    th.testing.assert_close(targets("lambda"), of_v)
