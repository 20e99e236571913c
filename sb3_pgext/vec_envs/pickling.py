"""Pickling of environments in SB3's wrappers."""

import copyreg
import inspect
from typing import Any

import cloudpickle
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnvWrapper

__all__ = ["EnvironmentPickler", "appending", "whole_state"]


class EnvironmentPickler(cloudpickle.Pickler):
    """A cloudpickle pickler that also takes wrappers of vectorised environments, with what they wrap."""

    def reducer_override(self, obj: Any) -> Any:
        """See ``pickle.Pickler.reducer_override``."""
        return whole_state(obj) if isinstance(obj, VecEnvWrapper) else super().reducer_override(obj)


def whole_state(obj: Any) -> Any:
    """
    All attributes of an object, also those that its own ``__getstate__`` leaves out: VecNormalize's its environment.

    :param obj: any object; of a VecEnvWrapper the attributes of its class are found again there
    :return: what ``reducer_override`` returns
    """
    state = {name: value for name, value in vars(obj).items() if name != "class_attributes"}
    return copyreg.__newobj__, (type(obj),), state, None, None, _fill  # type: ignore[attr-defined]


def appending(path: str, extra_keys: tuple[str, ...]) -> ResultsWriter:
    """
    A writer for a copy of a Monitor that writes no more itself.

    :param path: its file, which other copies write to as well
    :param extra_keys: what is written of an episode beside return, length and time
    :return: one that writes each row at the end of the file
    """
    return ResultsWriter(path, extra_keys=extra_keys, override_existing=False)


def _fill(obj: Any, state: dict[str, Any]) -> None:
    vars(obj).update(state)
    if isinstance(obj, VecEnvWrapper):
        obj.class_attributes = dict(inspect.getmembers(type(obj)))
