"""Claim: EnvPoolVecEnv plays what envpool plays, with episodes that end as in SB3 and seeds that count as in SB3."""

import gc
import sys

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from sb3_pgext import REINFORCE, EnvPoolVecEnv

envpool = pytest.importorskip("envpool")

# envpool gives Box bounds as doubles.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")


@pytest.fixture(autouse=True, scope="module")
def _no_pool_is_left():
    """The workers of AsyncVectorEnv in later tests are forks, which crash when they collect a pool of their parent."""
    yield
    gc.collect()


class Single:
    """One environment of envpool as it is: the step after the last of an episode resets it."""

    def __init__(self, task_id, seed, **config):
        self.pool = envpool.make_gymnasium(task_id, num_envs=1, seed=[seed], **config)

    def reset(self):
        return self.pool.reset()[0][0]

    def step(self, action):
        observation, reward, terminated, truncated, _ = self.pool.step(action[None])
        last, ended = observation[0], bool(terminated[0] or truncated[0])
        if ended:
            observation = self.pool.step(action[None])[0]
        return observation[0], reward[0], ended, last, bool(truncated[0])


@pytest.mark.parametrize(
    ("task_id", "config", "n_steps"),
    [
        ("CartPole-v1", {}, 120),
        ("CartPole-v1", {"max_episode_steps": 12}, 60),
        ("FrozenLake-v1", {}, 60),
        ("Pendulum-v1", {"max_episode_steps": 10}, 25),
        ("Hopper-v5", {}, 100),
        ("Pong-v5", {"max_episode_steps": 10, "noop_max": 5}, 25),
    ],
)
def test_each_sub_environment_plays_as_it_would_alone(task_id, config, n_steps):
    """The same seeds and actions: observations, rewards, ends, last observations, and why it ended."""
    env = EnvPoolVecEnv(task_id, 3, seed=5, **config)
    alone = [Single(task_id, 5 + e, **config) for e in range(3)]
    np.testing.assert_array_equal(env.reset(), [single.reset() for single in alone])
    env.action_space.seed(0)
    ended = 0
    for _ in range(n_steps):
        actions = np.array([env.action_space.sample() for _ in range(3)])
        observations, rewards, dones, infos = env.step(actions)
        assert observations.shape == (3, *env.observation_space.shape)
        assert observations.dtype == env.observation_space.dtype
        for e, single in enumerate(alone):
            expected, reward, done, last, truncated = single.step(actions[e])
            np.testing.assert_array_equal(observations[e], expected)
            assert (rewards[e], dones[e], infos[e]["TimeLimit.truncated"]) == (reward, done, truncated)
            assert ("terminal_observation" in infos[e]) == done
            if done:
                np.testing.assert_array_equal(infos[e]["terminal_observation"], last)
        ended += dones.sum()
    assert ended >= 3


def test_observations_that_are_dicts():
    env = EnvPoolVecEnv("CheetahRun-v1", 2, max_episode_steps=3)
    assert {key: values.shape for key, values in env.reset().items()} == {"position": (2, 8), "velocity": (2, 9)}
    for _ in range(3):
        observations, _, dones, infos = env.step(np.zeros((2, 6)))
    assert dones.all()
    assert infos[0]["terminal_observation"]["position"].shape == (8,)
    assert (infos[0]["terminal_observation"]["position"] != observations["position"][0]).any()


def first_observations(env, seed=None):
    if seed is not None:
        env.seed(seed)
    return env.reset()


def test_seeds_count_at_the_next_reset_once():
    env = EnvPoolVecEnv("CartPole-v1", 2, seed=7)
    first = env.reset()
    second = env.reset()
    assert (first != second).any()
    np.testing.assert_array_equal(first_observations(env, 7), first)
    np.testing.assert_array_equal(env.reset(), second)
    np.testing.assert_array_equal(first_observations(env, 8)[0], first[1])
    unseeded = [EnvPoolVecEnv("CartPole-v1", 2).reset() for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).any()
    assert (unseeded[0][0] != unseeded[0][1]).any()


def test_a_seed_that_envpool_could_not_take():
    """SB3 draws from 0 to 2³² where it is given none."""
    env = EnvPoolVecEnv("CartPole-v1", 2)
    np.testing.assert_array_equal(first_observations(env, 2**32 - 2), first_observations(env, 2**31 - 2))


def test_infos_are_those_of_the_task():
    env = EnvPoolVecEnv("HalfCheetah-v5", 2, max_episode_steps=2)
    env.reset()
    keys = {"reward_run", "reward_ctrl", "x_position", "x_velocity"}
    assert all(info.keys() == keys for info in env.reset_infos)
    _, rewards, _, infos = env.step(np.full((2, 6), 0.5))
    assert all(info.keys() == keys | {"TimeLimit.truncated"} for info in infos)
    assert [info["reward_run"] + info["reward_ctrl"] for info in infos] == pytest.approx(rewards.tolist())
    _, _, _, infos = env.step(np.zeros((2, 6)))
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert all(info.keys() == keys for info in env.reset_infos)


@pytest.mark.parametrize(("algorithm", "parameters"), [(PPO, {"n_steps": 64}), (REINFORCE, {"n_episodes": 4})])
def test_an_algorithm_learns_reproducibly(algorithm, parameters):
    def learnt():
        env = VecMonitor(EnvPoolVecEnv("CartPole-v1", 2))
        model = algorithm("MlpPolicy", env, seed=1, device="cpu", **parameters).learn(200)
        assert len(model.ep_info_buffer) > 2
        assert all(info["r"] == info["l"] for info in model.ep_info_buffer)
        return model.policy.state_dict()

    one, other = learnt(), learnt()
    for name, parameter in one.items():
        np.testing.assert_array_equal(parameter, other[name])


def test_images():
    env = EnvPoolVecEnv("CartPole-v1", 2, render_mode="rgb_array")
    env.reset()
    assert [image.shape for image in env.get_images()] == [(400, 600, 3)] * 2
    assert env.render().shape == (400 * 2, 600, 3)


def test_it_has_no_sub_environments_to_ask():
    env = EnvPoolVecEnv("CartPole-v1", 2)
    assert env.get_attr("render_mode") == [None, None]
    with pytest.raises(AttributeError, match=r"envpool CartPole-v1\(num_envs=2\), the attribute env, has no sub-env"):
        env.env_method("render")
    env.close()
    assert env.env.closed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_id": "CartPol-v1"}, r"task_id='CartPol-v1': allowed is a task of envpool"),
        ({"num_envs": 0}, "num_envs=0: allowed is a whole number >= 1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnvPoolVecEnv(**{"task_id": "CartPole-v1", "num_envs": 2} | arguments)


def test_options_are_refused_at_the_reset():
    env = EnvPoolVecEnv("CartPole-v1", 2)
    env.set_options({"low": 0})
    with pytest.raises(ValueError, match=r"options=\{'low': 0\}: allowed is none"):
        env.reset()


def test_without_envpool(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install .*\[envpool\]"') as error:
        EnvPoolVecEnv("CartPole-v1", 2)
    assert error.value.name == "envpool"
