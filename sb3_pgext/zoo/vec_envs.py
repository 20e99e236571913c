"""The kinds of vectorised environment that a configuration can ask for: ``vec_env``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from sb3_pgext.arguments import require
from sb3_pgext.vec_envs import EnvPoolVecEnv, GymnasiumVecEnv, HalvesVecEnv
from sb3_pgext.vec_envs.worker_vec_env import process_context

VEC_ENVS = ("dummy", "subproc", "halves", "gymnasium", "envpool", "envpool_halves")
"""The values of ``vec_env``."""

WHOLE = {"halves": "dummy", "envpool_halves": "envpool"}
"""Kinds in two halves → the kind of the same sub-environments in one."""

EnvMaker = Callable[[], gym.Env]


def make_vec_env(
    kind: str,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    env_wrapper: Callable[[gym.Env], gym.Env] | None,
    monitor_kwargs: Mapping[str, Any],
    log_folder: Path | None,
    makers: list[EnvMaker],
) -> VecEnv:
    """
    Make an experiment's vectorised environment, monitored.

    :param kind: one of :data:`VEC_ENVS`
    :param env_id: id of the environment
    :param env_kwargs: its settings
    :param env_wrapper: wrapper of each sub-environment
    :param monitor_kwargs: settings of SB3's ``Monitor``
    :param log_folder: where the episodes are written to; None for nowhere
    :param makers: each makes a sub-environment, monitored and wrapped
    :return: the environment
    :raises ValueError: the kind cannot do what is asked for
    """
    of_makers: dict[str, Callable[[list[EnvMaker]], VecEnv]]
    of_makers = {"dummy": DummyVecEnv, "subproc": _in_processes, "halves": HalvesVecEnv.of}
    if kind in of_makers:
        return of_makers[kind](makers)
    env: VecEnv
    if kind == "gymnasium":
        spec = gym.spec(env_id)
        if env_wrapper is not None or spec.vector_entry_point is None or spec.additional_wrappers:
            return GymnasiumVecEnv(SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
        # Gymnasium's own vectorised environment, where there is one and no wrapper has to go into it.
        env = GymnasiumVecEnv(gym.make_vec(env_id, len(makers), vectorization_mode="vector_entry_point", **env_kwargs))
    else:
        if env_wrapper is not None:
            raise ValueError(f"env_wrapper: allowed is none with vec_env={kind!r}, but what env_kwargs can ask it for")
        n_envs, pool = len(makers), lambda n: EnvPoolVecEnv(env_id.removeprefix("ALE/"), n, **env_kwargs)
        in_halves = kind == "envpool_halves"
        require(n_envs % 2 == 0 or not in_halves, "n_envs", n_envs, f"an even number with vec_env={kind!r}")
        env = HalvesVecEnv(pool(n_envs // 2), pool(n_envs // 2)) if in_halves else pool(n_envs)
    return _monitored(env, monitor_kwargs, log_folder)


def _in_processes(makers: list[EnvMaker]) -> SubprocVecEnv:
    """SubprocVecEnv, also in one of a study's processes."""
    process_context()
    return SubprocVecEnv(makers)


def _monitored(env: VecEnv, monitor_kwargs: Mapping[str, Any], log_folder: Path | None) -> VecMonitor:
    """Record the episodes, in the place of the Monitor of each sub-environment."""
    if unknown := monitor_kwargs.keys() - {"info_keywords", "override_existing"}:
        allowed = "info_keywords and override_existing where all sub-environments are stepped at once"
        raise ValueError(f"monitor_kwargs: {', '.join(sorted(unknown))}: allowed are {allowed}")
    keywords = tuple(monitor_kwargs.get("info_keywords", ()))
    file = None if log_folder is None else log_folder / "0.monitor.csv"
    if file is None or monitor_kwargs.get("override_existing", True) or not file.exists():
        return VecMonitor(env, None if file is None else str(file), keywords)
    monitor = VecMonitor(env, info_keywords=keywords)  # a file of its own it would begin anew
    monitor.results_writer = ResultsWriter(str(file), extra_keys=keywords, override_existing=False)
    return monitor
