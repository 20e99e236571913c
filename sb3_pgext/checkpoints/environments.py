"""Environments in the middle of their episodes, as bytes."""

import contextlib
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
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_pgext.vec_envs import GymnasiumVecEnv

__all__ = ["adopt", "pickled"]


class _WholeStatePickler(cloudpickle.Pickler):
    """Also saves what the objects' own ``__getstate__`` leaves out."""

    def reducer_override(self, obj: Any) -> Any:
        # Of EzPickle only the constructor's arguments would be saved; VecNormalize leaves out its environment.
        if isinstance(obj, (EzPickle, VecEnvWrapper)):
            state = {name: value for name, value in vars(obj).items() if name != "class_attributes"}
            return copyreg.__newobj__, (type(obj),), state, None, None, _fill  # type: ignore[attr-defined]
        if isinstance(obj, ResultsWriter):
            return _ContinuedResults, _written(obj)
        return super().reducer_override(obj)


def _fill(obj: Any, state: dict[str, Any]) -> None:
    vars(obj).update(state)
    if isinstance(obj, VecEnvWrapper):
        obj.class_attributes = dict(inspect.getmembers(type(obj)))


class _ContinuedResults(ResultsWriter):
    """
    A writer that goes on with a file of episodes as it was at a checkpoint.

    The episodes written later are cut off before the first new one; until then no file is touched.

    :param path: the file
    :param extra_keys: what is written of an episode beside return, length and time
    :param head: its first line
    :param size: it had so many bytes. One that is gone, or shorter, is begun anew
    """

    def __init__(self, path: str, extra_keys: tuple[str, ...], head: str, size: int):
        self.untouched: tuple[str, tuple[str, ...], str, int] | None = (path, extra_keys, head, size)

    def write_row(self, epinfo: dict[str, float]) -> None:
        if self.untouched is not None:
            path, extra_keys, head, size = self.untouched
            super().__init__(path, extra_keys=extra_keys, override_existing=False)
            there = 0 < size <= os.path.getsize(path)
            self.file_handler.truncate(size if there else 0)
            if not there:
                self.file_handler.write(head)
                self.logger.writeheader()
            self.untouched = None
        super().write_row(epinfo)

    def close(self) -> None:
        if self.untouched is None:
            super().close()


def _written(writer: ResultsWriter) -> tuple[str, tuple[str, ...], str, int]:
    """The arguments with which :class:`_ContinuedResults` goes on from here."""
    if isinstance(writer, _ContinuedResults) and writer.untouched is not None:
        return writer.untouched
    path, head, size = writer.file_handler.name, "", 0
    with contextlib.suppress(OSError), open(path, newline="\n") as file:  # somebody may have removed it
        head, size = file.readline(), os.path.getsize(path)
    head = head or f"#{json.dumps({'t_start': time.time()})}\n"
    return path, tuple(writer.logger.fieldnames)[3:], head, size


def pickled(env: VecEnv) -> bytes:
    """
    An environment and its sub-environments, wherever they are in their episodes.

    :param env: a vectorised environment
    :return: its pickle
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
    Give an environment the sub-environments and the state of another one of the same make; its own are closed. Its
    files of episodes stay its own, and go on where those of the other one were.

    :param env: a vectorised environment
    :param saved: another one, which is used up
    :return: whether they are surely of the same make; if not, nothing has changed
    """
    layers, saved_layers = list(_layers(env)), list(_layers(saved))
    make = _make(layers)
    if make is None or make != _make(saved_layers):
        return False
    env.close()
    for monitor, saved_monitor in zip(_monitors(layers), _monitors(saved_layers), strict=True):
        saved_monitor.results_writer = _in_the_file_of(monitor.results_writer, saved_monitor.results_writer)
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
    for env in _sub_environments(layers[-1]):
        while isinstance(env, gym.Wrapper):
            if isinstance(env, Monitor):
                yield env
            env = env.env


def _in_the_file_of(writer: ResultsWriter | None, saved: ResultsWriter | None) -> ResultsWriter | None:
    """
    The writer that goes on with the file of a given environment.

    It goes on where the saved one was if that is the same file, or a copy of it, or if nothing is there yet.

    :param writer: of the given environment
    :param saved: of the saved one
    :return: the writer; None where the given environment writes none
    """
    if writer is None:
        return None
    path, extra_keys, head, size = _written(writer)
    if saved is not None:
        _, _, saved_head, saved_size = _written(saved)
        if size == 0 or head == saved_head:
            head, size = saved_head, saved_size
    return _ContinuedResults(path, extra_keys, head, size)


def _sub_environments(base: VecEnv) -> list[gym.Env]:
    """The sub-environments in this process."""
    return getattr(base, "envs", []) if isinstance(base, (DummyVecEnv, GymnasiumVecEnv)) else []


def _make(layers: list[VecEnv]) -> list[Any] | None:
    """Everything that distinguishes environments apart from their state; None where nobody can tell."""
    *wrappers, base = layers
    inside = [*([base.env] if isinstance(base, GymnasiumVecEnv) else []), *_sub_environments(base)]
    makes = [_gym_make(env) for env in inside]
    if None in makes:
        return None
    return [base.num_envs, type(base), [(type(wrapper), _arguments(wrapper)) for wrapper in wrappers], *makes]


def _gym_make(env: Any) -> list[Any] | None:
    """
    The wrappers of an environment, and its registration or, where it has none, the arguments of its constructor.

    None if it does not keep them.
    """
    spec, make = env.spec, []
    while isinstance(env, gym.Wrapper | VectorWrapper):
        make.append((type(env), _arguments(env)))
        env = env.env
    if isinstance(env, SyncVectorEnv):  # its sub-environments say the rest
        return [*make, type(env)]
    if spec is not None:
        registration = spec.id, repr(spec.kwargs), spec.max_episode_steps, repr(spec.additional_wrappers)
        return [*make, type(env), registration]
    arguments = _arguments(env)
    complete = arguments.keys() == inspect.signature(type(env)).parameters.keys()
    return [*make, type(env), arguments] if complete else None


def _arguments(obj: Any) -> dict[str, str]:
    """The constructor's arguments that an object keeps under their names, or with an underscore before, spelled out."""
    kept = {}
    for name in inspect.signature(type(obj)).parameters.keys() - {"env", "venv"}:
        attribute = name if name in vars(obj) else f"_{name}"
        if attribute in vars(obj):
            value = vars(obj)[attribute]
            kept[name] = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return kept
