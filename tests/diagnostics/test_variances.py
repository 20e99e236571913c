"""
Claim: the optimal baseline never has more variance than none or a constant one; and on MDPs built to show it,
reward-to-go has less than the whole return, a constant baseline less than none, a time-dependent one less than a
constant one, a state-dependent one less than a time-dependent one. None of these four is a theorem: on one more MDP
the constant baseline makes it worse.
"""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext.diagnostics import action_probabilities, exact_values, gradient_statistics
from sb3_pgext.envs import Bandit, TabularMDP, random_mdp
from tests.diagnostics.laboratory import collect_batches, estimates, model_on
from tests.diagnostics.sampler import sample_episodes


def traces(make, options_of, n_episodes=100, n_batches=60, gamma=1.0, prepare=lambda model: None):
    """tr Cov ĝ of each of the options with its interval, from the same batches."""
    model = model_on(make_vec_env(make, 8, seed=0), gamma=gamma, n_episodes=n_episodes)
    prepare(model)
    batches = collect_batches(model, n_batches)
    return [gradient_statistics(samples).trace for samples in estimates(model, batches, *options_of)]


def clearly_smaller(a, b):
    return a.high < b.low


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.prove) for seed in (1, 2))])
def test_optimal_is_no_larger_than_none_and_constant(seed):
    """A theorem for the exact expectations; batches of 400 episodes estimate them well enough for 5 %."""
    options = [
        {"credit": credit, "baseline": baseline}
        for credit in ("reward_to_go", "trajectory")
        for baseline in ("optimal", "none", "constant")
    ]
    mdp = random_mdp(seed, horizon=12)
    model = model_on(mdp, gamma=0.9, seed=seed)
    rng, probabilities = np.random.default_rng(seed), action_probabilities(model.policy, mdp).numpy()
    batches = [sample_episodes(mdp, probabilities, 400, rng) for _ in range(60)]
    of_options = [gradient_statistics(samples).trace for samples in estimates(model, batches, *options)]
    for optimal, none, constant in (of_options[:3], of_options[3:]):
        assert optimal.value <= 1.05 * min(none.value, constant.value)
        assert optimal.low < min(none.high, constant.high)


def steady_rewards(horizon):
    """Each step pays about 1, whatever is done."""
    mdp = random_mdp(0, end_probability=0.0)
    return TabularMDP(mdp.transitions, 1 + 0.1 * mdp.expected_rewards, mdp.initial, horizon)


def test_reward_to_go_below_trajectory_and_constant_below_none():
    options = [
        {"credit": credit, "baseline": baseline}
        for credit in ("reward_to_go", "trajectory")
        for baseline in ("none", "constant")
    ]
    to_go, to_go_constant, trajectory, trajectory_constant = traces(lambda: steady_rewards(8), options)
    assert clearly_smaller(to_go, trajectory)
    assert clearly_smaller(to_go_constant, to_go)
    assert clearly_smaller(trajectory_constant, trajectory)


def test_time_below_constant():
    """What is left to earn depends on the time alone."""
    constant, time = traces(lambda: steady_rewards(8), [{"baseline": "constant"}, {"baseline": "time"}])
    assert clearly_smaller(time, constant)


def test_state_below_time():
    """Two halves of the world that never meet, one of them rich; the critic knows."""

    def make():
        transitions = np.kron(np.eye(2), np.full((2, 2), 0.5))
        transitions = np.repeat(transitions[:, None], 2, axis=1)
        rewards = np.array([[5, 5.1], [5, 4.9], [-5, -5.1], [-5, -4.9]])
        return TabularMDP(transitions, rewards, np.full(4, 0.25), horizon=5)

    def know_the_values(model):
        at_time = [exact_values(model.policy, TabularMDP(*tables(make()), 5 - t), 1.0)[0] for t in range(5)]
        values = th.stack(at_time).mean(0).float()  # the best a critic can do that does not see the time
        model.policy.predict_values = lambda states: values[states.long()].view(-1, 1)

    time, state = traces(make, [{"baseline": "time"}, {"baseline": "state"}], prepare=know_the_values)
    assert clearly_smaller(state, time)


def tables(mdp):
    return mdp.transitions, mdp.expected_rewards, mdp.initial


def test_a_constant_baseline_can_make_it_worse():
    """The arm that is hardly ever chosen, whose score is large, pays nothing, and adds no variance without baseline."""

    def prefer_the_first(model):
        with th.no_grad():
            model.policy.action_net.bias[:] = th.tensor([3.0, 0.0])

    options = [{"baseline": "none"}, {"baseline": "constant"}]
    none, constant = traces(lambda: Bandit([10.0, 0.0], "gaussian", 0.1), options, prepare=prefer_the_first)
    assert clearly_smaller(none, constant)
