"""Claim: the observations of Pong are those of the lecture's network, as Karpathy (2016) computes them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sb3_pgext.envs.pong import PongDifferences


def prepro(image):
    """Karpathy's function, with today's name of the type."""
    image = image.copy()[35:195]  # crop
    image = image[::2, ::2, 0]  # downsample by factor of 2
    image[image == 144] = 0  # erase background (background type 1)
    image[image == 109] = 0  # erase background (background type 2)
    image[image != 0] = 1  # everything else (paddles, ball) just set to 1
    return image.astype(float)


class Frames(gym.Env):
    """Images of ALE's size and colours, at random; the info has the last one, and the action."""

    observation_space, action_space = spaces.Box(0, 255, (210, 160, 3), np.uint8), spaces.Discrete(6)

    def _frame(self):
        self.frame = self.np_random.choice(np.array([0, 109, 144, 92, 213, 236], np.uint8), (210, 160, 3))
        return self.frame.copy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {"frame": self.frame}

    def step(self, action):
        self.t += 1
        return self._frame(), 1.0, self.t == 4, False, {"frame": self.frame, "action": action}


def of_ale():
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    return gym.make("ALE/Pong-v5")


@pytest.mark.parametrize("make", [Frames, of_ale], ids=["at random", "ALE"])
def test_the_preprocessing(make):
    env = make()
    wrapped, frames = PongDifferences(env), []
    frame = env.unwrapped.ale.getScreenRGB if make is of_ale else lambda: env.frame
    for episode in range(2):
        observation, _ = wrapped.reset(seed=episode)
        frames = [prepro(frame())]
        assert observation.shape == (80, 80)
        assert not observation.any()
        for t in range(4):
            observation, *_ = wrapped.step(t % 2)
            frames.append(prepro(frame()))
            assert observation.dtype == np.int8
            np.testing.assert_array_equal(observation, frames[-1] - frames[-2])
    assert any(frame.any() for frame in frames)


def test_up_is_ales_right_and_down_its_left():
    env = PongDifferences(Frames())
    env.reset()
    assert [env.step(action)[-1]["action"] for action in (0, 1)] == [2, 3]
    names = of_ale().unwrapped.get_action_meanings()
    assert names[2:4] == ["RIGHT", "LEFT"]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_it_is_a_proper_environment():
    check_env(PongDifferences(Frames()), skip_render_check=True)
