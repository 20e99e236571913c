"""SB3's ``VecEnv`` over envpool, whose environments run in C++ threads."""

from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_pgext.arguments import installing, require, require_count
from sb3_pgext.vec_envs.gymnasium_vec_env import GymnasiumVecEnv

__all__ = ["EnvPoolVecEnv", "import_envpool"]

_BOOKKEEPING = ("env_id", "players", "elapsed_step")
"""Infos of envpool about itself, the same in every step or counted by SB3's VecMonitor too."""

_N_SEEDS = 2**31


class EnvPoolVecEnv(GymnasiumVecEnv):
    """
    SB3's ``VecEnv`` over an envpool task: classic control, MuJoCo, Atari and what else envpool has.

    Episodes end, and ``seed`` counts at the next reset, as for :class:`GymnasiumVecEnv`. Sub-environment i gets
    seed + i, modulo 2³¹; as envpool takes seeds only when a pool is made, a reset with new seeds makes a new one.
    An episode whose last permitted step also terminates it counts as truncated: envpool does not tell the two apart.

    :param task_id: envpool's name of the task, e.g. ``"CartPole-v1"``, ``"HalfCheetah-v5"``, ``"Pong-v5"``
    :param num_envs: number of sub-environments, E
    :param seed: of the first sub-environment; None for random ones
    :param config: what else ``envpool.make`` takes: ``max_episode_steps``, ``num_threads``, settings of the task
    :raises ValueError: there is no such task
    :raises ModuleNotFoundError: envpool is not installed
    """

    def __init__(self, task_id: str, num_envs: int, seed: int | None = None, **config: Any):
        super().__init__(EnvPool(task_id, num_envs, config))
        if seed is not None:
            self.seed(seed)

    def _next_seed(self) -> Any:
        return None if self._seeds[0] is None else self._seeds


class EnvPool(VectorEnv):
    """
    An envpool task as a vector environment of the autoreset mode ``SAME_STEP``. The pool is made by the first reset.

    envpool resets a finished sub-environment in the next step, whatever the action. But it also resets those it is told
    to, and when they have just finished this takes the place of its own reset.

    :param task_id: envpool's name of the task
    :param num_envs: number of sub-environments, E
    :param config: what else ``envpool.make`` takes
    :raises ValueError: as :class:`EnvPoolVecEnv`
    """

    def __init__(self, task_id: str, num_envs: int, config: dict[str, Any]):
        envpool = import_envpool()
        require(task_id in envpool.list_all_envs(), "task_id", task_id, "a task of envpool.list_all_envs()")
        require_count("num_envs", num_envs)
        spec = envpool.make_spec(task_id, num_envs=num_envs, **config)
        self._make = lambda seeds: envpool.make_gymnasium(task_id, num_envs=num_envs, seed=seeds, **config)
        self._pool: Any = None
        self._name = f"envpool {task_id}"
        self.num_envs = num_envs
        self.single_observation_space: spaces.Space = spec.gymnasium_observation_space
        self.single_action_space: spaces.Space = spec.gymnasium_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = config.get("render_mode")
        self.metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: a list with one for each sub-environment; None to go on with their random numbers
        :param options: none
        :return: first observations of all sub-environments, and infos
        :raises ValueError: options: envpool takes none
        """
        require(not options, "options", options, "none: envpool takes none at a reset")
        if seed is not None or self._pool is None:
            if seed is None:
                seed = np.random.default_rng().integers(_N_SEEDS, size=self.num_envs).tolist()
            self._pool = self._make([of_one % _N_SEEDS for of_one in seed])
        observations, infos = self._pool.reset()
        return observations, _without_bookkeeping(infos)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Let envpool's threads begin to step all sub-environments.

        :param actions: ``(E, *action shape)``
        """
        self._pool.send(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Wait for the step of all sub-environments, and begin the next episode where one has ended.

        :return: observations, rewards, terminated, truncated, and infos; those of the last step of an episode are in
            ``final_obs`` and ``final_info``
        """
        observations, rewards, terminated, truncated, infos = self._pool.recv()
        infos, ended = _without_bookkeeping(infos), np.flatnonzero(terminated | truncated).astype(np.int32)
        if len(ended):
            final = {"final_obs": observations, "final_info": infos}
            final |= {f"_{key}": terminated | truncated for key in final}
            of_reset, infos_of_reset = self._pool.reset(ended)
            observations = _replaced(observations, ended, of_reset)
            infos = _replaced(infos, ended, infos_of_reset) | final
        return observations, rewards, terminated, truncated, infos

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Step all sub-environments.

        :param actions: ``(E, *action shape)``
        :return: as :meth:`step_wait`
        """
        self.step_async(actions)
        return self.step_wait()

    def render(self) -> tuple[np.ndarray, ...]:
        """
        :return: an image of each sub-environment
        """
        return tuple(self._pool.render(env_ids=np.arange(self.num_envs, dtype=np.int32)))

    def close_extras(self) -> None:
        """Let go of the pool, which ends its threads."""
        self._pool = None

    def __repr__(self) -> str:
        return f"{self._name}(num_envs={self.num_envs})"


def import_envpool() -> ModuleType:
    """
    :return: the package envpool
    :raises ModuleNotFoundError: it is not installed; the message says how it is
    """
    try:
        import envpool
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"EnvPoolVecEnv needs envpool: {installing('envpool')}", name=error.name) from error
    return envpool


def _without_bookkeeping(infos: dict[str, Any]) -> dict[str, Any]:
    return {key: values for key, values in infos.items() if key not in _BOOKKEEPING}


def _replaced(values: Any, which: np.ndarray, others: Any) -> Any:
    """A copy of arrays of all sub-environments, ``(E, …)``, or a dict of them, with other values for some of them."""
    if isinstance(values, dict):
        return {key: _replaced(part, which, others[key]) for key, part in values.items()}
    values = values.copy()
    values[which] = others
    return values
