"""Pong from pixels: what the policy network of lecture 000 sees, and what it may do."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["PongDifferences", "foreground"]

UP, DOWN = 2, 3
"""ALE's numbers of them."""

_BACKGROUND = (144, 109)
"""Red values of the field, and of its other shade."""


def foreground(frame: np.ndarray) -> np.ndarray:
    """
    Find paddles and ball on every other pixel of the field (Karpathy, 2016, "Pong from pixels").

    :param frame: ALE's image, ``(210, 160, 3)``, uint8
    :return: 1 where something is, else 0, ``(80, 80)``, int8
    """
    red = frame[35:195:2, ::2, 0]
    return ((red != 0) & (red != _BACKGROUND[0]) & (red != _BACKGROUND[1])).astype(np.int8)


class PongDifferences(gym.Wrapper[np.ndarray, int, np.ndarray, int]):
    """
    ALE's Pong as the lecture's network plays it: observations are the difference between a frame and the one before it,
    80 × 80 numbers -1, 0 or 1, and the actions are UP (0) and DOWN (1).

    :param env: ``ALE/Pong-v5``, with images as observations
    """

    def __init__(self, env: gym.Env[np.ndarray, int]):
        super().__init__(env)
        self.observation_space = spaces.Box(-1, 1, (80, 80), np.int8)
        self.action_space: Any = spaces.Discrete(2)
        self._last = np.zeros((80, 80), np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """
        Begin a game.

        :param seed: of the game
        :param options: of the environment
        :return: zeros, as there is no frame before the first one; infos
        """
        frame, infos = self.env.reset(seed=seed, options=options)
        self._last = foreground(frame)
        return np.zeros_like(self._last), infos

    def step(self, action: int) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """
        Move the paddle.

        :param action: 0 for UP, 1 for DOWN
        :return: difference of frames, reward, terminated, truncated, infos
        """
        frame, reward, terminated, truncated, infos = self.env.step((UP, DOWN)[action])
        last, self._last = self._last, foreground(frame)
        return self._last - last, reward, terminated, truncated, infos
