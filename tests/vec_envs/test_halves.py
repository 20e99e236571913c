"""Claim: two halves in worker processes are to SB3 what ``DummyVecEnv`` is over the same sub-environments."""

import os

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_pgext import VPG, EnvPoolVecEnv, GymnasiumVecEnv, HalvesVecEnv, WorkerVecEnv

ENV = "CartPole-v1"
SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


def make():
    return Monitor(gym.make(ENV, render_mode="rgb_array"))


def dummy(n_envs):
    return DummyVecEnv([make] * n_envs)


class ByItself(DummyVecEnv):
    asynchronous = True


def played(env, n_steps=40):
    """Everything that an environment returns, with actions at random."""
    rng, results = np.random.default_rng(0), []
    env.seed(5)
    results.append((env.reset(), env.reset_infos))
    for _ in range(n_steps):
        observations, rewards, dones, infos = env.step(rng.integers(0, 2, env.num_envs))
        for info in infos:
            info.pop("episode", None)  # which has times
        results.append((observations, rewards, dones, infos, env.reset_infos))
    return results


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def pools():
    envs = {
        "of processes": HalvesVecEnv(WorkerVecEnv(lambda: dummy(2)), SubprocVecEnv([make] * 2)),
        "of halves": HalvesVecEnv(*(HalvesVecEnv(ByItself([make]), ByItself([make])) for _ in range(2))),
    }
    yield envs
    for env in envs.values():
        env.close()


KINDS = ["of processes", "of halves"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_steps(kind, pools):
    assert_same(played(pools[kind]), played(dummy(4)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_the_interface(kind, pools):
    env = pools[kind]
    env.set_options({"low": 0.01, "high": 0.02})
    assert ((env.reset() >= 0.01) & (env.reset_infos == [{}] * 4)).all()
    assert (env.reset() < 0.01).any()
    assert env.render_mode == "rgb_array"
    env.set_attr("length", [1, 2])
    env.set_attr("length", 7, indices=[1, 3])
    assert env.get_attr("length") == [[1, 2], 7, [1, 2], 7]
    assert env.get_attr("length", indices=3) == [7]
    assert env.env_method("get_wrapper_attr", "length", indices=[3, 0]) == [7, [1, 2]]
    assert env.env_is_wrapped(Monitor) == [True] * 4
    assert [image.shape for image in env.get_images()] == [(400, 600, 3)] * 4
    if kind == "of halves":  # SubprocVecEnv's workers would end
        with pytest.raises(AttributeError, match="nothing"):
            env.get_attr("nothing")


def test_sb3_learns_with_it_as_with_any_other(pools):
    parameters = []
    for env in (pools["of processes"], dummy(4)):
        model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, seed=2, device="cpu").learn(128)
        parameters.append({name: p.numpy() for name, p in model.policy.state_dict().items()})
    assert_same(*parameters)


def test_one_seed_fixes_a_run(pools):
    parameters = []
    for kind in KINDS:
        model = VPG("MlpPolicy", pools[kind], n_steps=16, seed=2, device="cpu").learn(128)
        parameters.append({name: p.numpy() for name, p in model.policy.state_dict().items()})
    assert_same(*parameters)


def test_a_reset_while_both_halves_step(pools):
    env = pools["of processes"]
    expected = played(env)
    env.send(0, np.zeros(2, int))
    env.receive(0)
    env.send(0, np.zeros(2, int))
    env.send(1, np.zeros(2, int))
    assert_same(played(env), expected)


def test_workers_are_as_many_as_the_cores(monkeypatch):
    for n_cores, n_envs, expected in ((1, 4, 2), (2, 4, 2), (5, 8, 4), (16, 4, 4), (16, 12, 4)):
        monkeypatch.setattr(os, "cpu_count", lambda n=n_cores: n)
        made = []

        class Counted(DummyVecEnv):
            asynchronous = True

            def __init__(self, make_vec_env, made=made):
                made.append(self)
                super().__init__(make_vec_env.args[0])

        monkeypatch.setattr("sb3_pgext.vec_envs.halves_vec_env.WorkerVecEnv", Counted)
        make_vec_env(ENV, n_envs, vec_env_cls=HalvesVecEnv.of)
        assert len(made) == expected


def test_what_a_worker_raises_is_raised_here():
    class Broken(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            raise ArithmeticError("my own")

    env = HalvesVecEnv.of([Broken] * 2, 2)
    model = VPG("MlpPolicy", env, n_steps=4, device="cpu")
    with pytest.raises(ArithmeticError, match="my own"):
        model.learn(8)
    assert env.reset().shape == (2, 2)
    env.close()

    def fails():
        raise ArithmeticError("cannot be made")

    with pytest.raises(ArithmeticError, match="cannot be made"):
        WorkerVecEnv(fails)


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_halves_in_the_threads_of_envpool():
    pytest.importorskip("envpool")
    rollouts = []
    for _ in range(2):
        env = HalvesVecEnv(EnvPoolVecEnv(ENV, 2, num_threads=1), EnvPoolVecEnv(ENV, 2, num_threads=1))
        model = VPG("MlpPolicy", env, n_steps=64, seed=1, device="cpu").learn(512)
        rollouts.append(model.rollout_buffer.observations)
        assert model.rollout_buffer.episode_starts[1:].any()
    assert_same(*rollouts)


def test_gymnasiums_asynchronous_environments_step_by_themselves():
    def of(kind):
        return GymnasiumVecEnv(kind([make] * 2, **SAME_STEP))

    env = HalvesVecEnv(of(AsyncVectorEnv), of(AsyncVectorEnv))
    expected = played(dummy(4))
    for one, other in zip(played(env), expected, strict=True):
        assert_same(one[:3], other[:3])
    env.close()


def test_what_cannot_be_halved():
    two = ByItself([make] * 2)
    for wrong in (dummy(2), GymnasiumVecEnv(SyncVectorEnv([make] * 2, **SAME_STEP))):
        with pytest.raises(ValueError, match=r"second=.*: allowed is a VecEnv that steps by itself: SubprocVecEnv"):
            HalvesVecEnv(two, wrong)
    with pytest.raises(
        ValueError, match="sub-environments of the halves='2 and 1': allowed is the same number in both"
    ):
        HalvesVecEnv(two, ByItself([make]))
    with pytest.raises(ValueError, match=r"observation_space of the second half=.*: allowed is that of the first"):
        HalvesVecEnv(two, ByItself([lambda: gym.make("Acrobot-v1")] * 2))
    for n_envs in (0, 3):
        with pytest.raises(ValueError, match=f"number of sub-environments={n_envs}: allowed is an even one"):
            HalvesVecEnv.of([make] * n_envs)
    for n_workers in (3, 8):
        with pytest.raises(ValueError, match=rf"n_workers={n_workers}: allowed is 2, 4, 8, … that divide 4"):
            HalvesVecEnv.of([make] * 4, n_workers)
