"""Finite Markov decision processes as gymnasium environments (``docs/mathematics.md``, section 8)."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from sb3_pgext.arguments import require, require_count, require_fraction, require_number, require_one_of

__all__ = ["TabularMDP", "chain", "gridworld", "random_mdp"]

HORIZON_ENDS = ("terminate", "truncate")
TOLERANCE = 1e-6
"""Of sums of probabilities: tables may come in float32."""


class TabularMDP(gym.Env[np.int64, np.int64]):
    r"""
    A finite MDP with S states and A actions. The observation is the state.

    :param transitions: P(s'|s,a), ``(S, A, S)``. A row may sum to less than 1: the rest is the probability that the
        episode ends with this step
    :param rewards: ``(S, A)``; or ``(S, A, S)``, depending on the next state, with 0 for the step that ends the episode
    :param initial: P(s_0), ``(S,)``
    :param horizon: number of steps after which the episode is over at the latest; None for no limit
    :param at_horizon: ``"terminate"``: the horizon belongs to the task, and the return is that of a finite horizon;
        ``"truncate"``: it is a time limit on an endless task, as ``gymnasium.wrappers.TimeLimit`` sets one, and the
        exact quantities are those of the task without it
    :raises ValueError: naming the argument, if shapes do not fit, a probability is negative, a row sums to more than 1,
        the initial probabilities do not sum to 1, or a reward is not finite
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  gymnasium declares it so

    def __init__(
        self,
        transitions: ArrayLike,
        rewards: ArrayLike,
        initial: ArrayLike,
        horizon: int | None = None,
        at_horizon: str = "terminate",
        render_mode: None = None,
    ):
        self.transitions = np.asarray(transitions, dtype=np.float64)
        self.initial = np.asarray(initial, dtype=np.float64)
        rewards = np.asarray(rewards, dtype=np.float64)
        self.horizon, self.at_horizon, self.render_mode = horizon, at_horizon, render_mode
        _check(self.transitions, rewards, self.initial, horizon, at_horizon)
        # Tables in float32 sum to 1 within rounding only; what is missing would be taken for the end of the episode.
        self.initial = self.initial / self.initial.sum()
        sums = self.transitions.sum(axis=2, keepdims=True)
        self.transitions = self.transitions / np.where(np.abs(sums - 1) < TOLERANCE, sums, 1)

        n_states, n_actions, _ = self.transitions.shape
        self.observation_space = spaces.Discrete(n_states)
        self.action_space = spaces.Discrete(n_actions)
        by_action = rewards.ndim == 2
        self._next_rewards = np.broadcast_to(rewards[..., None] if by_action else rewards, self.transitions.shape)
        self._end_rewards = rewards if by_action else np.zeros((n_states, n_actions))
        # Drawing the next state is one comparison with these; the last column is the end of the episode.
        self._cumulative = np.cumsum(self.transitions, axis=2)
        self._cumulative_initial = np.cumsum(self.initial)

    @property
    def expected_rewards(self) -> np.ndarray:
        """E[r|s,a], ``(S, A)``."""
        end = np.maximum(1 - self.transitions.sum(axis=2), 0)
        return (self.transitions * self._next_rewards).sum(axis=2) + end * self._end_rewards

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """
        :param seed: of the random generator
        :param options: not used
        :return: s_0 and no further information
        """
        super().reset(seed=seed)
        self._time = 0
        self._state = self._draw(self._cumulative_initial / self._cumulative_initial[-1])
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """
        :param action: a_t
        :return: s_{t+1} (the last state once more when the episode ends), r_t, terminated, truncated, no information
        """
        state, self._time = self._state, self._time + 1
        following = self._draw(self._cumulative[state, action])
        ended = following == len(self.initial)
        reward = self._reward(state, int(action), following)
        if not ended:
            self._state = following
        over = not ended and self._time == self.horizon
        terminated = ended or (over and self.at_horizon == "terminate")
        return np.int64(self._state), reward, terminated, over and self.at_horizon == "truncate", {}

    def _draw(self, cumulative: np.ndarray) -> int:
        """The index drawn; one past the last for the probability that is left."""
        return int(np.searchsorted(cumulative, self.np_random.random(), side="right"))

    def _reward(self, state: int, action: int, following: int) -> float:
        ended = following == len(self.initial)
        return float(self._end_rewards[state, action] if ended else self._next_rewards[state, action, following])


def _check(
    transitions: np.ndarray, rewards: np.ndarray, initial: np.ndarray, horizon: int | None, at_horizon: str
) -> None:
    """
    :raises ValueError: as :class:`TabularMDP` says
    """
    n_states = len(initial) if initial.ndim == 1 else 0
    require(n_states > 0, "initial", initial.shape, "shape (S,) with S >= 1")
    fits = transitions.ndim == 3 and transitions.shape[::2] == (n_states, n_states) and transitions.shape[1] > 0
    require(fits, "transitions", transitions.shape, f"shape (S, A, S) with S = {n_states} as in initial")
    fits = rewards.shape in (transitions.shape[:2], transitions.shape)
    require(fits, "rewards", rewards.shape, f"shape (S, A) = {transitions.shape[:2]} or (S, A, S)")
    if horizon is not None:
        require_count("horizon", horizon)
    require_one_of("at_horizon", at_horizon, HORIZON_ENDS)
    # Comparisons with NaN are false, so a NaN does not pass.
    fits = (initial >= 0).all() and abs(initial.sum() - 1) < TOLERANCE
    require(bool(fits), "initial", initial, "probabilities >= 0, summing to 1")
    fits = (transitions >= 0).all() and (transitions.sum(axis=2) < 1 + TOLERANCE).all()
    require(bool(fits), "transitions", transitions, "probabilities >= 0, each row summing to at most 1")
    require(bool(np.isfinite(rewards).all()), "rewards", rewards, "an array of finite numbers")


def random_mdp(
    seed: int = 0,
    n_states: int = 4,
    n_actions: int = 3,
    end_probability: float = 0.2,
    horizon: int | None = None,
    at_horizon: str = "terminate",
    render_mode: None = None,
) -> TabularMDP:
    """
    Random transitions (a Dirichlet distribution per row), standard normal rewards, episodes of variable length.

    :param seed: which of them
    :param n_states: S
    :param n_actions: A
    :param end_probability: the mean over (s, a) of the probability that the episode ends; between 0 and 2 times that
        for single ones, so that the length depends on the policy
    :param horizon: see :class:`TabularMDP`
    :param at_horizon: see :class:`TabularMDP`
    :param render_mode: there is nothing to render
    :return: the MDP
    :raises ValueError: ``end_probability`` outside [0, 0.5]
    """
    require_number("end_probability", end_probability, "a number in [0, 0.5]", 0.0, 0.5)
    rng = np.random.default_rng(seed)
    going_on = 1 - 2 * end_probability * rng.random((n_states, n_actions, 1))
    return TabularMDP(
        going_on * rng.dirichlet(np.ones(n_states), (n_states, n_actions)),
        rng.normal(size=(n_states, n_actions)),
        rng.dirichlet(np.ones(n_states)),
        horizon,
        at_horizon,
    )


def chain(
    n_states: int = 10,
    slip: float = 0.1,
    horizon: int | None = None,
    at_horizon: str = "truncate",
    render_mode: None = None,
) -> TabularMDP:
    """
    Long credit assignment: from the left end, only walking right all the way pays. Action 1 goes right, action 0 left.

    Leaving the chain ends the episode, with an expected reward of 1 at the right end and 0.1 at the left. (The reward
    belongs to state and action: with slipping, the expectation is paid, whether or not the chain is left.)

    :param n_states: length of the chain, at least 2
    :param slip: probability of going the other way
    :param horizon: see :class:`TabularMDP`
    :param at_horizon: see :class:`TabularMDP`
    :param render_mode: there is nothing to render
    :return: the MDP
    :raises ValueError: ``n_states < 2`` or ``slip`` outside [0, 1]
    """
    require_count("n_states", n_states, at_least=2)
    require_fraction("slip", slip)
    transitions = np.zeros((n_states, 2, n_states))
    rewards = np.zeros((n_states, 2))
    for action, right in ((0, slip), (1, 1 - slip)):
        transitions[:, action] = right * np.eye(n_states, k=1) + (1 - right) * np.eye(n_states, k=-1)
        rewards[-1, action], rewards[0, action] = right, 0.1 * (1 - right)
    return TabularMDP(transitions, rewards, np.eye(n_states)[0], horizon, at_horizon)


def gridworld(
    width: int = 4,
    height: int = 4,
    slip: float = 0.1,
    step_reward: float = -0.1,
    horizon: int | None = None,
    at_horizon: str = "truncate",
    render_mode: None = None,
) -> TabularMDP:
    """
    Walk from the top left to the bottom right corner, where the episode ends; episodes vary in length.

    The expected reward is 1 for reaching the goal, and ``step_reward`` otherwise. (It belongs to state and action: with
    slipping, the expectation is paid, whether or not the goal is reached.)

    States are numbered row by row; actions: up, right, down, left. Walking into a wall stays.

    :param width: columns
    :param height: rows
    :param slip: probability that a direction drawn at random is taken instead
    :param step_reward: reward of a step that does not reach the goal
    :param horizon: see :class:`TabularMDP`
    :param at_horizon: see :class:`TabularMDP`
    :param render_mode: there is nothing to render
    :return: the MDP
    :raises ValueError: fewer than two cells, or ``slip`` outside [0, 1]
    """
    if width < 1 or height < 1 or width * height < 2:
        raise ValueError(f"width={width!r}, height={height!r}: allowed are integers >= 1, at least 2 cells together")
    require_fraction("slip", slip)
    n_states = width * height
    goal = n_states - 1
    moves = np.zeros((n_states, 4, n_states))  # without slipping; the goal's column is the end of the episode
    for state in range(n_states):
        row, column = divmod(state, width)
        for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            to_row = min(max(row + down, 0), height - 1)
            to_column = min(max(column + right, 0), width - 1)
            moves[state, action, to_row * width + to_column] = 1
    transitions = (1 - slip) * moves + slip * moves.mean(axis=1, keepdims=True)
    rewards = step_reward * (1 - transitions[..., goal]) + transitions[..., goal]
    transitions[..., goal] = 0
    return TabularMDP(transitions, rewards, np.eye(n_states)[0], horizon, at_horizon)
