"""gymnasium's vectorised CartPole with episodes that follow each other as SB3 needs it."""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorWrapper

__all__ = ["SameStepCartPole"]

_BOUND = 0.05
"""First observations lie within this distance of 0."""


class SameStepCartPole(VectorWrapper):
    """
    gymnasium's vectorised CartPole in the autoreset mode ``SAME_STEP``; alone it has only ``NEXT_STEP``.

    The first observations are drawn as the environment draws them, one step earlier.

    :param env: the vectorised CartPole
    """

    env: CartPoleVectorEnv

    def __init__(self, env: CartPoleVectorEnv):
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Step all sub-environments, and begin the next episode where one has ended.

        :param actions: ``(E,)``
        :return: observations ``(E, 4)``, rewards, terminated, truncated, and infos with ``final_obs`` if one has ended
        """
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = terminated | truncated
        if ended.any():
            infos = {**infos, "final_obs": observations.copy(), "_final_obs": ended}
            cart_poles: Any = self.env  # its state is typed as None, which it is before the first reset
            cart_poles.state[:, ended] = cart_poles.np_random.uniform(-_BOUND, _BOUND, size=(4, ended.sum()))
            cart_poles.steps[ended] = 0
            cart_poles.prev_done[:] = False
            observations[ended] = cart_poles.state.T[ended]
        return observations, rewards, terminated, truncated, infos
