"""Bandits: one state, episodes of one step."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pgext.arguments import require, require_count, require_number, require_one_of
from sb3_pgext.envs.tabular import TabularMDP

__all__ = ["Bandit", "ContinuousBandit"]

ARMS = ("bernoulli", "gaussian")


class Bandit(TabularMDP):
    """
    A K-armed bandit. The default is the two-armed one of lecture 004.

    :param means: mean reward of each arm, ``(K,)``
    :param arms: distribution of the rewards: ``"bernoulli"`` (0 or 1) or ``"gaussian"``
    :param std: standard deviation of Gaussian arms
    :param render_mode: there is nothing to render
    :raises ValueError: unknown ``arms``, a Bernoulli mean outside [0, 1], or ``std < 0`` or not finite
    """

    def __init__(
        self,
        means: Sequence[float] = (0.6, 0.4),
        arms: str = "bernoulli",
        std: float = 1.0,
        render_mode: None = None,
    ):
        require_one_of("arms", arms, ARMS)
        require_number("std", std, "a finite number >= 0", at_least=0.0)
        if arms == "bernoulli":
            require(std == 1.0, "std", std, "only the default with arms='bernoulli', which has no other spread")
            in_range = all(0 <= mean <= 1 for mean in means)
            require(in_range, "means", means, "a list of numbers in [0, 1] with arms='bernoulli'")
        self.arms, self.std = arms, std
        super().__init__(np.zeros((1, len(means), 1)), [list(means)], [1.0], render_mode=render_mode)

    def _reward(self, state: int, action: int, following: int) -> float:
        mean = super()._reward(state, action, following)
        if self.arms == "bernoulli":
            return float(self.np_random.random() < mean)
        return float(self.np_random.normal(mean, self.std))


class ContinuousBandit(gym.Env[np.ndarray, np.ndarray]):
    r"""
    A bandit whose action is d numbers, with the reward :math:`1 - \lVert a - a^* \rVert^2` and normal noise.

    The observation is always 0. The best action has 0.5 everywhere.

    :param n_dims: d
    :param std: standard deviation of the noise
    :param render_mode: there is nothing to render
    :raises ValueError: ``n_dims < 1``, or ``std < 0`` or not finite
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  gymnasium declares it so

    def __init__(self, n_dims: int = 2, std: float = 0.1, render_mode: None = None):
        require_count("n_dims", n_dims)
        require_number("std", std, "a finite number >= 0", at_least=0.0)
        self.std, self.render_mode = std, render_mode
        self.best_action = np.full(n_dims, 0.5, np.float32)
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-10.0, 10.0, (n_dims,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: of the random generator
        :param options: not used
        :return: 0 and no further information
        """
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: a, ``(d,)``
        :return: 0, the reward, and the end of the episode
        """
        mean = 1 - float(((action - self.best_action) ** 2).sum())
        return np.zeros(1, np.float32), mean + self.std * float(self.np_random.normal()), True, False, {}
