"""Environments in the middle of their episodes, as bytes."""

import copyreg
import inspect
import io
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import SyncVectorEnv, VectorWrapper
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_pgext.rollouts import GymnasiumVecEnv

__all__ = ["adopt", "pickled"]


class _WholeStatePickler(cloudpickle.Pickler):
    """Also saves what the objects' own ``__getstate__`` leaves out."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):  # it would be made anew, from its constructor's arguments
            return copyreg.__newobj__, (type(obj),), dict(vars(obj)), None, None, _fill  # type: ignore[attr-defined]
        if isinstance(obj, VecEnvWrapper):  # VecNormalize leaves out the environment and the returns so far
            state = {name: value for name, value in vars(obj).items() if name != "class_attributes"}
            return copyreg.__newobj__, (type(obj),), state, None, None, _fill_wrapper  # type: ignore[attr-defined]
        if isinstance(obj, ResultsWriter):
            return _ContinuedResults, (obj.file_handler.name, tuple(obj.logger.fieldnames)[3:], *_written(obj))
        return super().reducer_override(obj)


def _fill(obj: Any, state: dict[str, Any]) -> None:
    vars(obj).update(state)


def _fill_wrapper(wrapper: VecEnvWrapper, state: dict[str, Any]) -> None:
    vars(wrapper).update(state)
    wrapper.class_attributes = dict(inspect.getmembers(type(wrapper)))


class _ContinuedResults(ResultsWriter):
    """
    Goes on with a file of episodes as it was at a checkpoint: those written later are cut off before the first new one.

    :param path: the file
    :param extra_keys: what is written of an episode beside return, length and time
    :param head: its first line
    :param size: it had so many bytes. One that is gone, or shorter, is begun anew
    """

    def __init__(self, path: str, extra_keys: tuple[str, ...], head: str, size: int):
        super().__init__(path, extra_keys=extra_keys, override_existing=False)
        self.head = head
        self.size: int | None = size

    def write_row(self, epinfo: dict[str, float]) -> None:
        if self.size is not None:
            there = 0 < self.size <= os.path.getsize(self.file_handler.name)
            self.file_handler.truncate(self.size if there else 0)
            if not there:
                self.file_handler.write(self.head)
                self.logger.writeheader()
            self.size = None
        super().write_row(epinfo)


def _written(writer: ResultsWriter) -> tuple[str, int]:
    """The first line of its file, and how long that is."""
    if isinstance(writer, _ContinuedResults) and writer.size is not None:
        return writer.head, writer.size
    try:
        with open(writer.file_handler.name, newline="\n") as file:
            return file.readline(), os.path.getsize(file.name)
    except OSError:  # somebody has removed it
        return f"#{json.dumps({'t_start': time.time()})}\n", 0


def pickled(env: VecEnv) -> bytes:
    """
    :param env: a vectorised environment
    :return: it and its sub-environments, wherever they are in their episodes
    :raises TypeError: it cannot be pickled; the message says why
    """
    base = list(_layers(env))[-1]
    if not isinstance(base, (DummyVecEnv, GymnasiumVecEnv)):
        raise TypeError(f"{type(base).__name__} keeps the state of its sub-environments to itself")
    content = io.BytesIO()
    try:
        _WholeStatePickler(content).dump(env)
    except Exception as error:  # whatever an environment may raise
        raise TypeError(f"{error}") from error
    return content.getvalue()


def adopt(env: VecEnv, saved: VecEnv) -> bool:
    """
    Give an environment the sub-environments and the state of another one of the same make; its own are closed.

    :param env: a vectorised environment
    :param saved: another one, which is used up
    :return: whether they are surely of the same make; if not, nothing has changed
    """
    layers, saved_layers = list(_layers(env)), list(_layers(saved))
    make = _make(layers)
    if make is None or make != _make(saved_layers):
        return False
    env.close()
    for layer, saved_layer in zip(layers, saved_layers, strict=True):
        vars(layer).update({name: value for name, value in vars(saved_layer).items() if name != "venv"})
    return True


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """From the outermost wrapper to the environment itself."""
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def _make(layers: list[VecEnv]) -> list[Any] | None:
    """What distinguishes environments, apart from their state; None where nobody can tell."""
    *wrappers, base = layers
    inside: list[Any]
    if isinstance(base, GymnasiumVecEnv):
        inside = [base.env, *(base.envs if isinstance(base.env.unwrapped, SyncVectorEnv) else [])]
    else:
        inside = base.envs if isinstance(base, DummyVecEnv) else []
    makes = [_gym_make(env) for env in inside]
    if None in makes:
        return None
    return [base.num_envs, type(base), [(type(wrapper), _arguments(wrapper)) for wrapper in wrappers], *makes]


def _gym_make(env: Any) -> list[Any] | None:
    """
    Of its wrappers, of which some say with what arguments they were made, and of itself: its registration or, where it
    has none, the arguments of its constructor; None if it does not keep them.
    """
    spec = env.spec
    layers: list[Any] = []
    while isinstance(env, gym.Wrapper | VectorWrapper):
        layers.append((type(env), _arguments(env)))
        env = env.env
    if isinstance(env, SyncVectorEnv):  # its sub-environments say the rest
        return [*layers, type(env), env.metadata["autoreset_mode"]]
    if spec is not None:
        wrapped = [(wrapper.name, repr(wrapper.kwargs)) for wrapper in spec.additional_wrappers]
        return [*layers, type(env), spec.id, repr(spec.kwargs), spec.max_episode_steps, wrapped]
    arguments = _arguments(env)
    return (
        None if arguments.keys() != inspect.signature(type(env)).parameters.keys() else [*layers, type(env), arguments]
    )


def _arguments(obj: Any) -> dict[str, str]:
    """Those of its constructor that it keeps under their names, or with an underscore before, spelled out."""
    kept = {}
    for name in inspect.signature(type(obj)).parameters.keys() - {"env", "venv"}:
        for attribute in (name, f"_{name}"):
            if attribute in vars(obj):
                value = vars(obj)[attribute]
                kept[name] = repr(value.tolist() if isinstance(value, np.ndarray) else value)
                break
    return kept
