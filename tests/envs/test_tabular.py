"""Claim: the finite environments do what their tables say, pass the checkers, and refuse tables that are none."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sb3_pgext  # noqa: F401  registers the environments
from sb3_pgext.envs import Bandit, TabularMDP, chain, gridworld, random_mdp

ENVIRONMENTS = {
    "two-armed": Bandit,
    "gaussian": lambda: Bandit([1.0, 2.0, 3.0], arms="gaussian", std=0.5),
    "random": lambda: random_mdp(0),
    "random with next-state rewards": lambda: TabularMDP(
        random_mdp(1).transitions, np.random.default_rng(0).normal(size=(4, 3, 4)), random_mdp(1).initial
    ),
    "finite horizon": lambda: random_mdp(2, end_probability=0.0, horizon=7),
    "time limit": lambda: random_mdp(2, end_probability=0.0, horizon=7, at_horizon="truncate"),
    "chain": lambda: chain(4),
    "gridworld": lambda: gridworld(3, 2),
}


@pytest.mark.filterwarnings("ignore:.*render_mode.*", "ignore:.*different from the unwrapped version.*")
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_checkers(name):
    gymnasium_check_env(ENVIRONMENTS[name](), skip_render_check=True)
    sb3_check_env(ENVIRONMENTS[name](), warn=False)


@pytest.mark.parametrize("name", ["Bandit", "RandomMDP", "Chain", "Gridworld"])
def test_registered(name):
    env = gym.make(f"sb3_pgext/{name}-v0")
    assert isinstance(env.unwrapped, TabularMDP)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert (
        gym.make("sb3_pgext/RandomMDP-v0", seed=3).unwrapped.transitions[0, 0, 0] == random_mdp(3).transitions[0, 0, 0]
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_frequencies_are_the_tables(name):
    """States drawn, rewards and ends, from 20,000 random steps, within 5 standard errors."""
    env = ENVIRONMENTS[name]()
    rng = np.random.default_rng(0)
    n_states, n_actions, _ = env.transitions.shape
    counts = np.zeros((n_states, n_actions, n_states + 1))
    rewards, squares = np.zeros((2, n_states, n_actions))
    starts, over, t = np.zeros(n_states), True, 0
    for i in range(20_000):
        if over:
            state, _ = env.reset(seed=0 if i == 0 else None)
            starts[state] += 1
            t = 0
        action = rng.integers(n_actions)
        following, reward, terminated, truncated, _ = env.step(action)
        t += 1
        at_horizon = t == env.horizon
        assert truncated <= (at_horizon and env.at_horizon == "truncate")
        counts[state, action, n_states if terminated and not at_horizon else following] += 1
        rewards[state, action] += reward
        squares[state, action] += reward**2
        state, over = following, terminated or truncated
        assert over or not at_horizon
    seen = counts.sum((1, 2)) > 0
    assert seen.sum() >= n_states - (name == "gridworld")  # nobody stands on the goal
    counts, rewards, squares = counts[seen], rewards[seen], squares[seen]
    visits = counts.sum(2)
    assert (visits > 50).all()
    end = np.maximum(1 - env.transitions.sum(2, keepdims=True), 0)
    expected = np.concatenate([env.transitions, end], axis=2)[seen]
    error = np.sqrt(expected * (1 - expected) / visits[..., None]) + 1e-9
    assert (np.abs(counts / visits[..., None] - expected) < 5 * error).all()
    error = np.sqrt(np.maximum(squares / visits - (rewards / visits) ** 2, 0) / visits) + 1e-9
    assert (np.abs(rewards / visits - env.expected_rewards[seen]) < 5 * error).all()
    error = np.sqrt(env.initial * (1 - env.initial) / starts.sum()) + 1e-9
    assert (np.abs(starts / starts.sum() - env.initial) < 5 * error).all()


def test_the_same_seed_gives_the_same_episode():
    def episode(seed):
        env = random_mdp(0)
        path, over = [env.reset(seed=seed)[0]], False
        while not over:
            state, _, terminated, truncated, _ = env.step(0)
            path.append(state)
            over = terminated or truncated
        return path

    assert episode(1) == episode(1)
    assert any(episode(1) != episode(seed) for seed in range(2, 8))


def test_long_credit_and_the_goal():
    assert chain(5, slip=0.0).expected_rewards.tolist() == [[0.1, 0], [0, 0], [0, 0], [0, 0], [0, 1]]
    grid = gridworld(2, 2, slip=0.0, step_reward=-1.0)
    assert grid.expected_rewards.tolist() == [[-1] * 4, [-1, -1, 1, -1], [-1, 1, -1, -1], [-1, 1, 1, -1]]


def test_tables_in_float32():
    """They sum to 1 within rounding only, and what is missing is not taken for the end of the episode."""
    rng = np.random.default_rng(0)
    transitions = rng.dirichlet(np.ones(5), (5, 2)).astype(np.float32)
    mdp = TabularMDP(transitions, np.zeros((5, 2), np.float32), np.full(5, 0.2, np.float32), np.int64(3))
    assert np.abs(mdp.transitions.sum(2) - 1).max() < 1e-15
    assert mdp.horizon == 3


P, R, d = np.full((2, 3, 2), 0.4), np.zeros((2, 3)), np.array([0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((P[:1], R, d), "transitions=.*shape"),
        ((P[..., :1], R, d), "transitions=.*shape"),
        ((P, R[:1], d), "rewards=.*shape"),
        ((P, R.T, d), "rewards=.*shape"),
        ((P, R, d[:1]), "transitions=.*S = 1"),
        ((P, R, [[1.0]]), "initial=.*shape"),
        ((2 * P, R, d), "transitions=.*at most 1"),
        ((-P, R, d), "transitions=.*>= 0"),
        ((P * np.nan, R, d), "transitions=.*probabilities"),
        ((P, R, [0.5, 0.4]), "initial=.*summing to 1"),
        ((P, R, [1.5, -0.5]), "initial=.*>= 0"),
        ((P, R + np.inf, d), "rewards=.*finite"),
        ((P, R, d, 0), "horizon=0"),
        ((P, R, d, True), "horizon=True"),
        ((P, R, d, 5, "stop"), "at_horizon='stop'"),
    ],
)
def test_tables_that_are_none(arguments, named):
    with pytest.raises(ValueError, match=f"(?s){named}"):
        TabularMDP(*arguments)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Bandit(arms="poisson"), "arms='poisson'"),
        (lambda: Bandit([0.5, 1.5]), "means="),
        (lambda: Bandit(std=0.5), "std=0.5.*bernoulli"),
        (lambda: Bandit(arms="gaussian", std=-1.0), "std=-1.0"),
        (lambda: random_mdp(end_probability=0.7), "end_probability=0.7"),
        (lambda: chain(1), "n_states=1"),
        (lambda: chain(slip=2), "slip=2"),
        (lambda: gridworld(1, 1), "width=1, height=1"),
        (lambda: gridworld(slip=-1), "slip=-1"),
    ],
)
def test_bad_arguments(make, named):
    with pytest.raises(ValueError, match=named):
        make()
