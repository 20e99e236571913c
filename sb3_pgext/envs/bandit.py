"""Bandits: episodes of one step."""

import numpy as np
from numpy.typing import ArrayLike

from sb3_pgext.arguments import require, require_number, require_one_of
from sb3_pgext.envs.tabular import TabularMDP

__all__ = ["Bandit"]

ARMS = ("bernoulli", "gaussian")


class Bandit(TabularMDP):
    """
    A K-armed bandit. The default is the two-armed one of lecture 004.

    :param means: mean reward of each arm, ``(K,)``; or in each of S states, ``(S, K)``
    :param arms: distribution of the rewards: ``"bernoulli"`` (0 or 1) or ``"gaussian"``
    :param std: standard deviation of Gaussian arms
    :param initial: probability of each state, ``(S,)``; None for all the same
    :param render_mode: there is nothing to render
    :raises ValueError: unknown ``arms``, a Bernoulli mean outside [0, 1], or ``std < 0`` or not finite
    """

    def __init__(
        self,
        means: ArrayLike = (0.6, 0.4),
        arms: str = "bernoulli",
        std: float = 1.0,
        initial: ArrayLike | None = None,
        render_mode: None = None,
    ):
        of_states = np.atleast_2d(np.asarray(means, dtype=np.float64))
        require(of_states.ndim == 2, "means", means, "a list of numbers, or one list for each state")
        n_states, n_arms = of_states.shape
        require_one_of("arms", arms, ARMS)
        require_number("std", std, "a finite number >= 0", at_least=0.0)
        if arms == "bernoulli":
            require(std == 1.0, "std", std, "only the default with arms='bernoulli', which has no other spread")
            in_range = (of_states >= 0).all() and (of_states <= 1).all()
            require(bool(in_range), "means", means, "a list of numbers in [0, 1] with arms='bernoulli'")
        self.arms, self.std = arms, std
        initial = np.full(n_states, 1 / n_states) if initial is None else initial
        super().__init__(np.zeros((n_states, n_arms, n_states)), of_states, initial, render_mode=render_mode)

    def _reward(self, state: int, action: int, following: int) -> float:
        mean = super()._reward(state, action, following)
        if self.arms == "bernoulli":
            return float(self.np_random.random() < mean)
        return float(self.np_random.normal(mean, self.std))
