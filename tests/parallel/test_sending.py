"""Claim: environments as users wrap them arrive in another process as they are, and what cannot be sent is named."""

import threading

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_pgext.parallel.sending import require_sendable, sendable


def copy_of(thing):
    return cloudpickle.loads(sendable(thing))


def steps_of(env, n=30):
    env.seed(5)
    env.action_space.seed(5)
    yield env.reset()
    for _ in range(n):
        yield env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[:3]


WRAPPERS = {
    "none": lambda env: env,
    "VecNormalize": VecNormalize,
    "VecFrameStack": lambda env: VecFrameStack(env, 2),
    "several": lambda env: VecFrameStack(VecNormalize(env, gamma=0.5), 3),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_copy_steps_as_the_original_does(name):
    env = WRAPPERS[name](make_vec_env("CartPole-v1", 2))
    list(steps_of(env))  # statistics
    twin = copy_of(env)
    assert type(twin) is type(env)
    for ours, theirs in zip(steps_of(twin), steps_of(env), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    twin.set_attr("nobody", 1)
    assert not hasattr(env.unwrapped.envs[0], "nobody")


def test_an_object_stays_one_object():
    env = VecNormalize(make_vec_env("CartPole-v1", 1))
    outer, inner = copy_of((env, env.venv))
    assert outer.venv is inner


@pytest.mark.filterwarnings("ignore:.*not within the observation space")
def test_the_monitors_of_copies_write_into_one_file(tmp_path):
    """The header stands there once, and each row is whole."""
    env = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"), str(tmp_path / "0"), info_keywords=("worker",))])
    twins = copy_of(env), copy_of(env)
    for one, worker in ((twins[0], 0), (twins[1], 1), (twins[0], 2)):
        monitor = one.envs[0]
        monitor.reset()
        monitor.env.unwrapped.state = np.full(4, 3.0)  # over
        inner_step = monitor.env.step
        monitor.env.step = lambda action, step=inner_step, worker=worker: (*step(action)[:4], {"worker": worker})
        monitor.step(0)
    read = load_results(str(tmp_path))
    assert read["worker"].tolist() == [0, 1, 2]
    assert read["l"].tolist() == [1, 1, 1]


def test_what_cannot_be_sent_is_named():
    lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"^learning_rate=<function .*another process. TypeError: cannot pickle '_thread"
    ):
        require_sendable({"gamma": 0.9, "learning_rate": lambda progress: progress if lock else 0.0})
    require_sendable({"learning_rate": lambda progress: progress})
