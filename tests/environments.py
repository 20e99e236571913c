"""Spaces of every kind, and small environments whose truth is known."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pgext.envs import TabularMDP

IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
IMAGE_LAST = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
DICT = spaces.Dict({"image": IMAGE, "vector": VECTOR, "kind": spaces.Discrete(3)})
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-2, 1, (2,), np.float32),
    "box_2d": spaces.Box(-2, 1, (2, 2), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


class OneOrFifty(gym.Env):
    """An episode lasts 1 or 50 steps, by a coin, and returns 10 or 1: the mean return is 5.5."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    MEAN_RETURN, STD_RETURN = 5.5, 4.5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = 1 if self.np_random.random() < 0.5 else 50
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        ended = self.t == self.length
        reward = {1: 10.0, 50: 1.0}[self.length] if ended else 0.0
        return np.zeros(1, np.float32), reward, ended, False, {}


class Scripted(gym.Env):
    """
    Episodes of given lengths, one after the other; the observation is (episode number, t), the reward 100·episode + t.

    :param lengths: of the episodes; the last one repeats. Negative: truncated (-length)
    :param poison: where to put a NaN: ``"observation"``, ``"reward"`` or None
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, lengths=(3,), poison=None):
        self.lengths, self.poison = lengths, poison
        self.episode = -1

    def _observation(self):
        bad = self.poison == "observation" and self.t == 2
        return np.array([self.episode, np.nan if bad else self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        reward = np.nan if self.poison == "reward" and self.t == 2 else 100.0 * self.episode + self.t
        self.t += 1
        length = self.lengths[min(self.episode, len(self.lengths) - 1)]
        at_end = self.t == abs(length)
        return self._observation(), reward, at_end and length > 0, at_end and length < 0, {}


class NeverEnding(gym.Env):
    """No end, no limit; reward 1 a step."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class AnySpaces(gym.Env):
    """
    Episodes of 5 steps over any spaces. Reward 1.

    :param observation_space: sampled from
    :param action_space: what it takes, and checks
    """

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 5, False, {}


class RewardsAndLimits(AnySpaces):
    """Rewards that vary, and every second episode is truncated."""

    episodes = 0

    def step(self, action):
        observation, _, terminated, _, info = super().step(action)
        self.episodes += terminated
        truncated = terminated and self.episodes % 2 == 0
        return observation, float(self.t + np.sum(action)), terminated and not truncated, truncated, info


class ActionIsReward(AnySpaces):
    """Episodes of 5 steps; action 1 pays 1, action 0 nothing."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action), terminated, truncated, info


class Countdown(AnySpaces):
    """5 steps of reward 1, seen in the observation."""

    def __init__(self):
        super().__init__(spaces.Box(0, 5, (1,)), spaces.Discrete(2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        _, *outcome = super().step(action)
        return np.full(1, self.t, np.float32), *outcome


class PaysLater(TabularMDP):
    """Two steps: the first action chooses what the second step pays, whatever is done then."""

    def __init__(self, render_mode=None):
        transitions = np.zeros((3, 2, 3))
        transitions[0, 0, 1] = transitions[0, 1, 2] = transitions[1:, :, 0] = 1.0
        super().__init__(transitions, [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [1.0, 0.0, 0.0], horizon=2)


for _cls in (OneOrFifty, Scripted, NeverEnding, PaysLater):
    gym.register(f"tests/{_cls.__name__}-v0", entry_point=_cls)
