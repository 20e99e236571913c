"""Environments in the middle of their episodes, as bytes."""

import io
import os
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_pgext.vec_envs import GymnasiumVecEnv, TensorVecEnv
from sb3_pgext.vec_envs.pickling import EnvironmentPickler, appending, whole_state

__all__ = ["adopt", "pickled"]


class _WholeStatePickler(EnvironmentPickler):
    """Also saves where an environment is in its episode, and how far a file of episodes was written."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):  # whose own pickle has the constructor's arguments alone
            return whole_state(obj)
        if isinstance(obj, ResultsWriter):
            return _ContinuedResults, _written(obj)
        return super().reducer_override(obj)


class _ContinuedResults(ResultsWriter):
    """
    A writer that goes on with a file of episodes as it was at a checkpoint.

    The episodes written later are cut off before the first new one; until then no file is touched. One that is gone, or
    shorter, is begun anew; one with another first line has other episodes, after which the new ones are written.

    :param path: the file
    :param extra_keys: what is written of an episode beside return, length and time
    :param head: its first line
    :param size: it had so many bytes
    """

    def __init__(self, path: str, extra_keys: tuple[str, ...], head: str, size: int):
        self.untouched: tuple[str, tuple[str, ...], str, int] | None = (path, extra_keys, head, size)

    def write_row(self, epinfo: dict[str, float]) -> None:
        if self.untouched is not None:
            path, extra_keys, head, size = self.untouched
            super().__init__(path, extra_keys=extra_keys, override_existing=False)
            head_there, size_there = _head_and_size(path)
            if size_there == 0 or (head_there == head and size_there < size):
                self.file_handler.truncate(0)
                self.file_handler.write(head)
                self.logger.writeheader()
            elif head_there == head:
                self.file_handler.truncate(size)
            self.untouched = None
        super().write_row(epinfo)

    def close(self) -> None:
        if self.untouched is None:
            super().close()

    def __reduce__(self) -> Any:
        """Pickle for another process: the copy cuts nothing off, as there may be several."""
        path, extra_keys, *_ = _written(self)
        return appending, (path, extra_keys)


def _written(writer: ResultsWriter) -> tuple[str, tuple[str, ...], str, int]:
    """The arguments with which :class:`_ContinuedResults` goes on from here."""
    if isinstance(writer, _ContinuedResults) and writer.untouched is not None:
        return writer.untouched
    path = writer.file_handler.name
    return path, tuple(writer.logger.fieldnames)[3:], *_head_and_size(path)


def _head_and_size(path: str) -> tuple[str, int]:
    with open(path, newline="\n") as file:
        return file.readline(), os.path.getsize(path)


def pickled(env: VecEnv) -> bytes:
    """
    An environment and its sub-environments, wherever they are in their episodes.

    :param env: a vectorised environment
    :return: its pickle
    :raises TypeError: it cannot be pickled; the message says why
    """
    base = list(_layers(env))[-1]
    if not isinstance(base, (DummyVecEnv, GymnasiumVecEnv, TensorVecEnv)):
        raise TypeError(f"{type(base).__name__} keeps the state of its sub-environments to itself")
    content = io.BytesIO()
    try:
        _WholeStatePickler(content).dump(env)
    except Exception as error:  # whatever an environment may raise
        raise TypeError(f"{error}") from error
    return content.getvalue()


def adopt(env: VecEnv, saved: VecEnv) -> bool:
    """
    Give an environment the sub-environments and the state of another one of the same make; its own are closed. Its
    files of episodes stay its own, and go on where those of the other one were.

    :param env: a vectorised environment
    :param saved: another one, which is used up
    :return: whether they are of the same make; if not, nothing has changed
    """
    layers, saved_layers = list(_layers(env)), list(_layers(saved))
    if _make(layers) != _make(saved_layers):
        return False
    env.close()
    for monitor, saved_monitor in zip(_monitors(layers), _monitors(saved_layers), strict=True):
        writer, saved_writer = monitor.results_writer, saved_monitor.results_writer
        if writer is not None:
            (path, extra_keys, *_), (*_, head, size) = _written(writer), _written(saved_writer or writer)
            writer = _ContinuedResults(path, extra_keys, head, size)
        saved_monitor.results_writer = writer
    for layer, saved_layer in zip(layers, saved_layers, strict=True):
        vars(layer).update({name: value for name, value in vars(saved_layer).items() if name != "venv"})
    return True


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """From the outermost wrapper to the environment itself."""
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def _monitors(layers: list[VecEnv]) -> Iterator[Monitor | VecMonitor]:
    """The wrappers that write files of episodes, of the vectorised environment and of its sub-environments."""
    yield from (layer for layer in layers if isinstance(layer, VecMonitor))
    for env in getattr(layers[-1], "envs", []):
        while isinstance(env, gym.Wrapper):
            if isinstance(env, Monitor):
                yield env
            env = env.env


def _make(layers: list[VecEnv]) -> list[Any]:
    """Kinds and wrappers of environments, and the arguments that gymnasium's registration knows."""
    base = layers[-1]
    envs: list[Any] = [*([base.env] if isinstance(base, GymnasiumVecEnv) else []), *getattr(base, "envs", [])]
    specs = [env.spec for env in envs]
    arguments = [spec and (spec.kwargs, spec.max_episode_steps, spec.additional_wrappers) for spec in specs]
    of_tensors = [type(base.env), base.observation_space, base.device] if isinstance(base, TensorVecEnv) else []
    return [base.num_envs, *map(type, layers), *map(str, envs), repr(arguments), *of_tensors]
