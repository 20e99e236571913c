"""Bandits: one state, episodes of one step."""

from collections.abc import Sequence

import numpy as np

from sb3_pgext.arguments import require, require_number, require_one_of
from sb3_pgext.envs.tabular import TabularMDP

__all__ = ["Bandit"]

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
