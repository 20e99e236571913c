"""A ``VecEnv`` in a worker process, which steps all its sub-environments there: one message for all of them."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

__all__ = ["WorkerVecEnv", "process_context"]


class WorkerVecEnv(VecEnv):
    """
    SB3's ``VecEnv`` whose sub-environments live together in one other process, where ``SubprocVecEnv`` has a process
    for each. What they raise is raised here.

    :param make: makes the vectorised environment, there
    """

    asynchronous = True
    """It steps while this process does something else."""

    def __init__(self, make: Callable[[], VecEnv]):
        context = process_context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(CloudpickleWrapper(make), theirs), daemon=True)
        self._process.start()
        theirs.close()
        super().__init__(*self._answer())

    def _answer(self) -> Any:
        error, result, reset_infos = self._pipe.recv()
        if error is not None:
            raise error
        if reset_infos is not None:
            self.reset_infos = reset_infos
        return result

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        self._pipe.send((name, arguments, keywords))
        return self._answer()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: of the first sub-environment, from the next reset on; None for a random one
        :return: the seeds of all
        """
        seeds: Sequence[int | None] = self._call("seed", seed)
        return seeds

    def set_options(self, options: Any = None) -> None:
        """
        :param options: of the next reset, for all sub-environments or a list with those of each
        """
        self._call("set_options", options)

    def reset(self) -> VecEnvObs:
        """
        :return: first observations, ``(E, *observation shape)``; a dict of such arrays for a dict space
        """
        observations: VecEnvObs = self._call("reset")
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: with which the worker begins to step, ``(E, *action shape)``
        """
        self._pipe.send(("step", (actions,), {}))

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: what the vectorised environment has returned
        """
        result: VecEnvStepReturn = self._answer()
        return result

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See ``VecEnv.get_attr``."""
        return list(self._call("get_attr", attr_name, indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See ``VecEnv.set_attr``."""
        self._call("set_attr", attr_name, value, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """See ``VecEnv.env_method``."""
        return list(self._call("env_method", method_name, *method_args, indices=indices, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """See ``VecEnv.env_is_wrapped``."""
        return list(self._call("env_is_wrapped", wrapper_class, indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: an image of each sub-environment, ``(height, width, 3)``
        """
        return list(self._call("get_images"))

    def close(self) -> None:
        """End the worker."""
        self._pipe.close()
        self._process.join()


def process_context(method: str | None = None) -> Any:
    """
    Choose how processes are started. One of joblib has its own way, which those it starts would be told and not know;
    it gets this one instead.

    :param method: ``"spawn"`` or another of multiprocessing's; None for SB3's choice
    :return: multiprocessing's context for it
    """
    known = multiprocessing.get_all_start_methods()
    method = method or ("forkserver" if "forkserver" in known else "spawn")
    if multiprocessing.get_start_method(allow_none=True) not in (None, *known):
        multiprocessing.set_start_method(method, force=True)
    return multiprocessing.get_context(method)


def _serve(make: CloudpickleWrapper, pipe: Connection) -> None:
    """The worker's process: call the method that is asked for, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's, which then closes the pipe
    try:
        env = make.var()
    except Exception as error:
        pipe.send((error, None, None))
        return
    pipe.send((None, (env.num_envs, env.observation_space, env.action_space), None))
    with closing(env):
        while True:
            try:
                name, arguments, keywords = pipe.recv()
                failure, result = _result(env, name, arguments, keywords)
                begun = failure is None and (name == "reset" or (name == "step" and result[2].any()))
                pipe.send((failure, result, env.reset_infos if begun else None))
            except (EOFError, OSError):
                return


def _result(env: VecEnv, name: str, arguments: Any, keywords: Any) -> tuple[Exception | None, Any]:
    try:
        return None, getattr(env, name)(*arguments, **keywords)
    except Exception as error:
        return error, None
