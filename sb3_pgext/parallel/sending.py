"""Objects that go to another process, by pickle: environments in SB3's wrappers, functions and classes of a script."""

import inspect
import io
from collections.abc import Mapping
from typing import Any

import cloudpickle
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnvWrapper

__all__ = ["require_sendable", "sendable"]


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's, which also takes what SB3 puts around environments."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, VecEnvWrapper):
            # The attributes of the class are found again there; VecNormalize's own pickle leaves its environment out.
            state = {name: value for name, value in vars(obj).items() if name != "class_attributes"}
            return _wrapper, (type(obj), state)
        if isinstance(obj, ResultsWriter):
            return _appending, (obj.file_handler.name, tuple(obj.logger.fieldnames))
        return super().reducer_override(obj)


def sendable(thing: Any) -> bytes:
    """
    Pickle an object; tensors and arrays go by value.

    :param thing: any object
    :return: what ``cloudpickle.loads`` makes a copy of
    :raises Exception: whatever pickle raises of an object that it cannot take
    """
    written = io.BytesIO()
    _Pickler(written).dump(thing)
    return written.getvalue()


def require_sendable(parts: Mapping[str, Any]) -> None:
    """
    Require that everything can be sent to another process.

    :param parts: name → object
    :raises ValueError: naming the first one that cannot
    """
    for name, part in parts.items():
        try:
            sendable(part)
        except Exception as error:  # of whatever kind: any object has its own
            allowed = f"allowed is what can be sent to another process. {type(error).__name__}: {error}"
            raise ValueError(f"{name}={part!r}: {allowed}") from error


def _wrapper(kind: type[VecEnvWrapper], state: dict[str, Any]) -> VecEnvWrapper:
    wrapper = kind.__new__(kind)
    vars(wrapper).update(state, class_attributes=dict(inspect.getmembers(kind)))
    return wrapper


def _appending(filename: str, columns: tuple[str, ...]) -> ResultsWriter:
    """The file of a Monitor that writes no more itself: its copies do, each row at the end of the file."""
    return ResultsWriter(filename, extra_keys=columns[3:], override_existing=False)
