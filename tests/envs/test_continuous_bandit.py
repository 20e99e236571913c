"""Claim: the continuous bandit is what it says, and REINFORCE on it the one-point gradient estimator of lecture 004."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from scipy import stats

from sb3_pgext import REINFORCE
from sb3_pgext.envs import ContinuousBandit


def test_an_environment_of_gymnasium():
    check_env(gym.make("sb3_pgext/ContinuousBandit-v0").unwrapped, skip_render_check=True)


def test_rewards():
    env = ContinuousBandit(3, std=0.2)
    env.reset(seed=0)
    for action, mean in ((env.best_action, 1.0), (np.zeros(3, np.float32), 0.25)):
        rewards = np.array([env.step(action)[1] for _ in range(2000)])
        assert abs(rewards.mean() - mean) < stats.norm.ppf(1 - 0.01 / 4) * 0.2 / math.sqrt(2000)
        assert rewards.std() == pytest.approx(0.2, rel=0.1)
    assert env.step(env.best_action)[2:4] == (True, False)


@pytest.mark.parametrize(("arguments", "named"), [({"n_dims": 0}, "n_dims=0"), ({"std": -1.0}, r"std=-1\.0")])
def test_wrong_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        ContinuousBandit(**arguments)


def mean_alone(n_episodes, action_std, **arguments):
    """A Gaussian policy whose parameters are the mean action, d biases of one layer."""
    model = REINFORCE(
        "MlpPolicy",
        ContinuousBandit(2),
        n_episodes=n_episodes,
        action_std=action_std,
        policy_kwargs={"net_arch": [], "optimizer_class": th.optim.SGD},
        **{"baseline": "none", "seed": 0, "device": "cpu"} | arguments,
    )
    model.policy.action_net.weight.requires_grad_(False).zero_()
    return model


@pytest.mark.parametrize("n_episodes", [1, 5])
def test_the_gradient_is_the_one_point_estimator(n_episodes):
    """r (a - μ) / σ², the mean over the actions; with n = 1 the lecture's."""
    for sigma in (0.3, 1.5):
        model = mean_alone(n_episodes, sigma)
        model.policy.action_net.bias.data = th.tensor([0.2, -0.1])
        _, callback = model._setup_learn(10**9)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_episodes)
        actions, rewards = model.episodes.actions.double(), model.episodes.rewards.double()
        expected = (rewards[:, None] * (actions - th.tensor([0.2, -0.1]).double()) / sigma**2).mean(0)
        found = model.estimate_gradient().double()
        assert found.shape == (2,)
        assert (found - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())


def test_its_mean_is_the_gradient_of_the_smoothed_reward():
    """2 (a* - μ), whatever σ: the reward is quadratic. At 1 % for both numbers together."""
    model = mean_alone(4000, 0.5)
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 4000)
    each = (model.episodes.rewards[:, None] * model.episodes.actions / 0.25).double()
    z = (each.mean(0) - 1.0) / (each.std(0) / math.sqrt(4000))
    assert z.abs().max() < stats.norm.ppf(1 - 0.01 / 4)
    th.testing.assert_close(model.estimate_gradient(), each.mean(0).float(), rtol=1e-4, atol=1e-5)


def test_with_a_spread_that_decreases_it_finds_the_best_action():
    model = mean_alone(10, lambda progress: 0.05 + 0.5 * progress, learning_rate=0.05, baseline="constant")
    model.learn(2000, log_interval=None)
    action, _ = model.predict(np.zeros(1, np.float32), deterministic=True)
    np.testing.assert_allclose(action, 0.5, atol=0.1)
