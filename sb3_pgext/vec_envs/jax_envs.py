"""Environments in JAX, whose arrays become tensors without a copy, by dlpack."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from sb3_pgext.arguments import installing, require, require_count
from sb3_pgext.vec_envs.tensors import TensorStep

__all__ = ["BraxEnv", "GymnasiumTensorEnv", "imported"]

_N_SEEDS = 2**31


class GymnasiumTensorEnv:
    """
    A gymnasium vector environment whose steps return tensors, or JAX's arrays, as a
    :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`.

    :param env: one of gymnasium's environments in JAX, such as ``gymnasium.make_vec("phys2d/CartPole-v1", 256)``; or
        any of the autoreset mode ``SAME_STEP`` with whole batches in ``final_obs``, maybe in gymnasium's
        ``NumpyToTorch``, ``JaxToTorch`` or ``ArrayConversion``
    :raises ValueError: ``env`` is no vector environment, or of another autoreset mode
    """

    def __init__(self, env: VectorEnv):
        require(isinstance(env, VectorEnv), "env", env, "a gymnasium.vector.VectorEnv, as gymnasium.make_vec makes it")
        self.in_jax = hasattr(env.unwrapped, "func_env")
        if self.in_jax:
            env = _SameStep(env)
        mode = env.metadata.get("autoreset_mode")
        require(mode is AutoresetMode.SAME_STEP, f"autoreset_mode of {env}", mode, "AutoresetMode.SAME_STEP")
        self.env, self.num_envs = env, env.num_envs
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.render_mode = env.render_mode
        self.device = _tensor(env.reset()[0]).device

    def reset(self, seed: int | None = None) -> Any:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        return _tensor(self.env.reset(seed=seed)[0])

    def step(self, actions: th.Tensor) -> TensorStep:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        *returned, infos = self.env.step(_array(actions) if self.in_jax else actions)
        observations, rewards, terminated, truncated = map(_tensor, returned)
        final_observations = _tensor(infos["final_obs"]) if "final_obs" in infos else observations
        return TensorStep(observations, rewards, terminated, truncated, final_observations)

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()


class _SameStep(VectorWrapper):
    """An environment in JAX, which has the autoreset mode ``NEXT_STEP``, in the mode ``SAME_STEP``."""

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all, and begin the next episode where one has ended."""
        jax: Any = imported("jax")
        base: Any = self.unwrapped
        final, rewards, terminated, truncated, infos = self.env.step(actions)
        ended, (base.rng, *keys) = terminated | truncated, jax.random.split(base.rng, 1 + self.num_envs)
        keys = jax.numpy.stack(keys)
        base.state = _where(ended, base.func_env.initial(keys), base.state)
        base.steps, base.prev_done = base.steps * ~ended, ended & False
        observations = _where(ended, base.func_env.observation(base.state, keys), final)
        return observations, rewards, terminated, truncated, {**infos, "final_obs": final}


class BraxEnv:
    """
    A Brax environment as a :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`. Each sub-environment begins every episode in
    its first state of the last reset, as in Brax's own training.

    :param env: name of the environment, such as ``"ant"``; or one that has been made, without wrappers
    :param num_envs: number of sub-environments, E
    :param episode_length: an episode is truncated after so many steps
    :param options: of Brax's environment, such as ``backend``
    :raises ModuleNotFoundError: brax is not installed
    """

    def __init__(self, env: Any, num_envs: int, episode_length: int = 1000, **options: Any):
        brax, jax = imported("brax.envs"), imported("jax")
        training = imported("brax.envs.wrappers.training")
        require_count("num_envs", num_envs)
        require_count("episode_length", episode_length)
        env = brax.get_environment(env, **options) if isinstance(env, str) else env
        size = env.observation_size
        require(isinstance(size, int), "env.observation_size", size, "a whole number: observations of one array")
        self.env = training.VmapWrapper(training.EpisodeWrapper(env, episode_length, 1), num_envs)
        self.num_envs = num_envs
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(-1, 1, (env.action_size,), np.float32)

        def step(state: Any, first: Any, actions: Any) -> tuple[Any, tuple[Any, ...]]:
            state = self.env.step(state, actions)
            ended, truncated = state.done > 0, state.info["truncation"] > 0
            following = _where(ended, first, state)
            return following, (following.obs, state.reward, ended & ~truncated, truncated, state.obs)

        self._reset, self._step = jax.jit(self.env.reset), jax.jit(step)
        self.device = self.reset().device

    def reset(self, seed: int | None = None) -> th.Tensor:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        seed = int(np.random.default_rng().integers(_N_SEEDS)) if seed is None else seed
        self.state = self.first = self._reset(imported("jax").random.PRNGKey(seed))
        return _tensor(self.state.obs)

    def step(self, actions: th.Tensor) -> TensorStep:
        """See :class:`~sb3_pgext.vec_envs.tensors.TensorEnv`."""
        self.state, step = self._step(self.state, self.first, _array(actions))
        return TensorStep(*map(_tensor, step))


def imported(name: str) -> ModuleType:
    """
    :param name: of a module of JAX or Brax
    :return: the module
    :raises ModuleNotFoundError: it is not installed; the message says how it is
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = name.partition(".")[0]
        raise ModuleNotFoundError(f"{extra} is not installed: {installing(extra)}", name=error.name) from error


def _where(ended: Any, first: Any, state: Any) -> Any:
    """The first state where an episode has ended, of every array that has a row for each sub-environment."""
    jax = imported("jax")

    def where(one: Any, other: Any) -> Any:
        if one.shape[:1] != ended.shape:
            return other
        return jax.numpy.where(ended.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(where, first, state)


def _tensor(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _tensor(part) for key, part in x.items()}
    return x if isinstance(x, th.Tensor) else th.from_dlpack(x)


def _array(x: th.Tensor) -> Any:
    """JAX's array of a tensor; of whole numbers it has 32 bits."""
    return imported("jax").numpy.from_dlpack(x.int() if x.dtype == th.int64 else x)
