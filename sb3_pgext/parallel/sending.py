"""Objects that go to another process, by pickle: environments in SB3's wrappers, functions and classes of a script."""

import io
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.monitor import ResultsWriter

from sb3_pgext.vec_envs.pickling import EnvironmentPickler, appending

__all__ = ["require_sendable", "sendable"]


class _Pickler(EnvironmentPickler):
    """Also takes a Monitor that writes a file: its copies append to that."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is ResultsWriter:
            return appending, (obj.file_handler.name, tuple(obj.logger.fieldnames)[3:])
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
