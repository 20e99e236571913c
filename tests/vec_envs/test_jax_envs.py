"""Claim: gymnasium's environments in JAX and Brax's hand over tensors, with episodes that end as SB3 needs it."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_pgext import ClippedCriticPPO, TensorVecEnv, TensorVecNormalize
from sb3_pgext.rollouts import TensorCollector
from sb3_pgext.vec_envs.cart_pole import SameStepCartPole
from sb3_pgext.vec_envs.jax_envs import BraxEnv, GymnasiumTensorEnv, imported


def test_what_is_converted_by_gymnasiums_wrappers():
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers.vector import NumpyToTorch

    def cart_pole():
        return SameStepCartPole(gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point"))

    env, original = TensorVecEnv(GymnasiumTensorEnv(NumpyToTorch(cart_pole()))), cart_pole()
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), original.reset(seed=1)[0])
    for t in range(60):
        actions = np.arange(t, t + 4) % 3 // 2
        observations, rewards, dones, infos = env.step(actions)
        expected, _, terminated, truncated, expected_infos = original.step(actions)
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert (rewards == 1).all()
        for e in np.flatnonzero(dones):
            np.testing.assert_array_equal(infos[e]["terminal_observation"], expected_infos["final_obs"][e])
    env.close()


def test_other_modes_are_refused():
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"autoreset_mode of .*: allowed is AutoresetMode.SAME_STEP"):
        GymnasiumTensorEnv(env)
    with pytest.raises(ValueError, match=r"env='CartPole-v1': allowed is a gymnasium.vector.VectorEnv"):
        GymnasiumTensorEnv("CartPole-v1")


def phys2d(n_envs, **arguments):
    pytest.importorskip("jax")
    return TensorVecEnv(GymnasiumTensorEnv(gym.make_vec("phys2d/CartPole-v1", n_envs, **arguments)))


def test_cart_pole_in_jax():
    env = phys2d(8, max_episode_steps=12)
    env.seed(0)
    observations = env.reset()
    assert (observations.shape, observations.dtype) == ((8, 4), np.float32)
    function, n_cut, times = env.env.env.unwrapped.func_env, 0, np.zeros(8, int)
    for t in range(40):
        actions = (np.arange(8) + t // 2) % 2
        expected = np.asarray(function.transition(observations, actions, None))
        observations, rewards, dones, infos = env.step(actions)
        times += 1
        for e, info in enumerate(infos):
            final = info.get("terminal_observation", observations[e])
            np.testing.assert_allclose(final, expected[e], rtol=1e-5, atol=1e-6)
            assert info["TimeLimit.truncated"] == (dones[e] and times[e] == 12)
            n_cut += info["TimeLimit.truncated"]
            if dones[e]:
                assert np.abs(observations[e]).max() <= 0.05
                times[e] = 0
        assert (rewards == 1).all()
    assert n_cut > 3
    env.seed(0)
    again = phys2d(8)
    again.seed(0)
    np.testing.assert_array_equal(env.reset(), again.reset())


def test_it_trains():
    model = ClippedCriticPPO("MlpPolicy", phys2d(8), n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(512)
    assert type(model.collector) is TensorCollector
    assert model.ep_info_buffer


@pytest.fixture(scope="module")
def ant():
    pytest.importorskip("brax")
    return BraxEnv("inverted_pendulum", 4, episode_length=5, backend="generalized")


def test_brax(ant):
    env = TensorVecEnv(ant)
    env.seed(0)
    first = env.reset()
    assert (first.shape, first.dtype) == ((4, *ant.observation_space.shape), np.float32)
    for t in range(1, 11):
        observations, rewards, dones, infos = env.step(np.full((4, 1), 0.01, np.float32))
        assert dones.all() == (t % 5 == 0) == dones.any()
        assert rewards.shape == (4,)
        for info, observation, of_first in zip(infos, observations, first, strict=True):
            assert info["TimeLimit.truncated"] == (t % 5 == 0)
            if info["TimeLimit.truncated"]:
                np.testing.assert_array_equal(observation, of_first)
                assert not np.array_equal(info["terminal_observation"], of_first)
                assert info["episode"]["l"] == 5


def test_brax_trains(ant):
    env = TensorVecNormalize(TensorVecEnv(ant))
    model = ClippedCriticPPO("MlpPolicy", env, n_steps=10, batch_size=20, n_epochs=1, seed=0, device="cpu").learn(80)
    assert type(model.collector) is TensorCollector
    assert len(model.ep_info_buffer) >= 16
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


@pytest.mark.parametrize("missing", ["jax", "brax"])
def test_what_is_missing_is_said(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "brax.envs" if missing == "brax" else "jax", None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed: pip install .*\[{missing}\]"):
        imported(missing)
