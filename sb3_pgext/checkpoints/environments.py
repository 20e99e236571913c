"""Environments in the middle of their episodes, as bytes."""

import copyreg
import inspect
import io
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.utils import EzPickle
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
            return _append_to, (obj.file_handler.name, tuple(obj.logger.fieldnames)[3:])
        return super().reducer_override(obj)


def _fill(obj: Any, state: dict[str, Any]) -> None:
    vars(obj).update(state)


def _fill_wrapper(wrapper: VecEnvWrapper, state: dict[str, Any]) -> None:
    vars(wrapper).update(state)
    wrapper.class_attributes = dict(inspect.getmembers(type(wrapper)))


def _append_to(path: str, extra_keys: tuple[str, ...]) -> ResultsWriter:
    return ResultsWriter(path, extra_keys=extra_keys, override_existing=False)


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
    :return: whether they are of the same make; if not, nothing has changed
    """
    layers, saved_layers = list(_layers(env)), list(_layers(saved))
    if _make(layers) != _make(saved_layers):
        return False
    layers[-1].close()
    for layer, saved_layer in zip(layers, saved_layers, strict=True):
        vars(layer).update({name: value for name, value in vars(saved_layer).items() if name != "venv"})
    return True


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """From the outermost wrapper to the environment itself."""
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def _make(layers: list[VecEnv]) -> list[Any]:
    """What distinguishes environments, apart from their state."""
    sub_envs = getattr(layers[-1], "envs", [])
    return [*map(type, layers), *([*_gym_layers(env), str(env.spec and env.spec.kwargs)] for env in sub_envs)]


def _gym_layers(env: gym.Env) -> Iterator[Any]:
    yield type(env), env.spec and env.spec.id
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield type(env)
