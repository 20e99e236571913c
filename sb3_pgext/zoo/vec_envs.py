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

VEC_ENVS = ("dummy", "subproc", "gymnasium", "envpool")
"""The values of ``vec_env``."""

EnvMaker = Callable[[], gym.Env]


@dataclass(frozen=True)
class VecEnvFactory:
    """
    Maker of an experiment's vectorised environment, in the place of SB3's ``DummyVecEnv`` class.

    :param kind: one of :data:`VEC_ENVS`
    :param env_id: id of the environment
    :param env_kwargs: its settings
    :param env_wrapper: wrapper of each sub-environment
    :param monitor_kwargs: settings of SB3's ``Monitor``
    :param log_folder: where the episodes are written to; None for nowhere
    """

    kind: str
    env_id: str
    env_kwargs: Mapping[str, Any]
    env_wrapper: Callable[[gym.Env], gym.Env] | None
    monitor_kwargs: Mapping[str, Any]
    log_folder: Path | None

    def __call__(self, makers: list[EnvMaker]) -> VecEnv:
        """
        Make the environment.

        :param makers: each makes a sub-environment, monitored and wrapped
        :return: the environment, monitored
        :raises ValueError: the kind cannot do what is asked for
        """
        kinds: dict[str, Callable[[list[EnvMaker]], VecEnv]] = {
            "dummy": DummyVecEnv,
            "subproc": SubprocVecEnv,
            "gymnasium": self._gymnasium,
            "envpool": self._envpool,
        }
        return kinds[self.kind](makers)

    def _gymnasium(self, makers: list[EnvMaker]) -> VecEnv:
        """Take gymnasium's own vectorised environment where there is one and no wrapper has to go into it."""
        spec = gym.spec(self.env_id)
        if self.env_wrapper is not None or spec.vector_entry_point is None or spec.additional_wrappers:
            return GymnasiumVecEnv(SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
        env = gym.make_vec(self.env_id, len(makers), vectorization_mode="vector_entry_point", **self.env_kwargs)
        return self._monitored(GymnasiumVecEnv(env))

    def _envpool(self, makers: list[EnvMaker]) -> VecEnv:
        """Take as many of envpool's environments, which have no place for a wrapper inside."""
        if self.env_wrapper is not None:
            raise ValueError(
                "env_wrapper: allowed is none with vec_env='envpool', whose environments are not Python's; what "
                "envpool can do itself stands in env_kwargs"
            )
        env = EnvPoolVecEnv(self.env_id.removeprefix("ALE/"), len(makers), **self.env_kwargs)
        return self._monitored(env)

    def _monitored(self, env: VecEnv) -> VecMonitor:
        """Record the episodes, in the place of the Monitor of each sub-environment."""
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
