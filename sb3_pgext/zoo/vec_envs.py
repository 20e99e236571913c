"""The kinds of vectorised environment that a configuration can ask for: ``vec_env``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from sb3_pgext.vec_envs import EnvPoolVecEnv, GymnasiumVecEnv

__all__ = ["VEC_ENVS", "VecEnvFactory", "vec_env_class"]

EnvMaker = Callable[[], gym.Env]


@dataclass(frozen=True)
class VecEnvFactory:
    """
    What takes the place of SB3's ``DummyVecEnv`` class, for one environment of an experiment.

    :param env_id: id of the environment
    :param env_kwargs: its settings
    :param env_wrapper: wrapper of each sub-environment
    :param monitor_kwargs: settings of SB3's ``Monitor``
    :param log_folder: where the episodes are written to; None for nowhere
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    env_wrapper: Callable[[gym.Env], gym.Env] | None
    monitor_kwargs: Mapping[str, Any]
    log_folder: Path | None

    def gymnasium(self, makers: list[EnvMaker]) -> VecEnv:
        """
        gymnasium's own vectorised environment where there is one and no wrapper has to go into it.

        :param makers: each makes a sub-environment, monitored and wrapped
        :return: the environment, monitored
        """
        spec = gym.spec(self.env_id)
        if self.env_wrapper is not None or spec.vector_entry_point is None or spec.additional_wrappers:
            return GymnasiumVecEnv(SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
        env = gym.make_vec(self.env_id, len(makers), vectorization_mode="vector_entry_point", **self.env_kwargs)
        return self._monitored(GymnasiumVecEnv(env))

    def envpool(self, makers: list[EnvMaker]) -> VecEnv:
        """
        :param makers: as many as there are to be sub-environments
        :return: the environment, monitored
        :raises ValueError: a wrapper, which could not be inside of envpool, or a task that envpool does not have
        """
        if self.env_wrapper is not None:
            raise ValueError(
                "env_wrapper: allowed is none with vec_env='envpool', whose environments are not Python's; what "
                "envpool can do itself stands in env_kwargs"
            )
        env = EnvPoolVecEnv(self.env_id.removeprefix("ALE/"), len(makers), **self.env_kwargs)
        return self._monitored(env)

    def _monitored(self, env: VecEnv) -> VecMonitor:
        """In the place of the Monitor of each sub-environment."""
        unknown = self.monitor_kwargs.keys() - {"info_keywords", "override_existing"}
        if unknown:
            raise ValueError(
                f"monitor_kwargs: {', '.join(sorted(unknown))}: allowed are info_keywords and override_existing where "
                f"all sub-environments are stepped at once, as {env.unwrapped} does"
            )
        keywords = tuple(self.monitor_kwargs.get("info_keywords", ()))
        file = None if self.log_folder is None else self.log_folder / "0.monitor.csv"
        if file is None or self.monitor_kwargs.get("override_existing", True) or not file.exists():
            return VecMonitor(env, None if file is None else str(file), keywords)
        monitor = VecMonitor(env, info_keywords=keywords)  # a file of its own it would begin anew
        monitor.results_writer = ResultsWriter(str(file), extra_keys=keywords, override_existing=False)
        return monitor


VEC_ENVS = ("dummy", "subproc", "gymnasium", "envpool")
"""What ``vec_env`` may be."""


def vec_env_class(name: str, factory: VecEnvFactory) -> Callable[[list[EnvMaker]], VecEnv]:
    """
    :param name: one of :data:`VEC_ENVS`
    :param factory: makes those that are not made by a class
    :return: what makes the environment from functions that make its sub-environments
    """
    kinds: dict[str, Callable[[list[EnvMaker]], VecEnv]] = {
        "dummy": DummyVecEnv,
        "subproc": SubprocVecEnv,
        "gymnasium": factory.gymnasium,
        "envpool": factory.envpool,
    }
    return kinds[name]
