"""Values as JSON, with arrays and tensors apart, and back. Nothing that is read can name code to import or to run."""

import importlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import chain, count
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch.nn.modules import activation

from sb3_pgext import algorithms
from sb3_pgext.rollouts import DictStepBuffer, EpisodeBatch, EpisodeBuffer, ReplayedBatch, StepBuffer

__all__ = ["CLASSES", "RECORDS", "Decoder", "Encoder"]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


_ACTIVATIONS = [getattr(activation, name) for name in activation.__all__]
_OPTIMIZERS = [cls for cls in vars(th.optim).values() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)]
_POLICIES = [ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy]
_EXTRACTORS = [FlattenExtractor, NatureCNN, CombinedExtractor]
_FAMILY = [getattr(algorithms, name) for name in algorithms.__all__]

CLASSES: dict[str, type] = {
    _name(cls): cls
    for cls in [
        *_FAMILY,
        *_POLICIES,
        *_EXTRACTORS,
        *_ACTIVATIONS,
        *_OPTIMIZERS,
        RMSpropTFLike,
        StepBuffer,
        DictStepBuffer,
        EpisodeBuffer,
    ]
}
"""The classes that a checkpoint may name."""

RECORDS: dict[str, tuple[str, ...]] = {
    "stable_baselines3.common.utils.ConstantSchedule": ("val",),
    "stable_baselines3.common.utils.LinearSchedule": ("start", "end", "end_fraction"),
    "stable_baselines3.common.utils.FloatSchedule": ("value_schedule",),
    "stable_baselines3.common.running_mean_std.RunningMeanStd": ("mean", "var", "count"),
    "rl_zoo3.utils.SimpleLinearSchedule": ("initial_value",),
    "sb3_pgext.rollouts.buffers.EpisodeBatch": _field_names(EpisodeBatch),
    "sb3_pgext.rollouts.replay.ReplayedBatch": _field_names(ReplayedBatch),
    "sb3_pgext.rollouts.replay.EpisodeReplay": ("n_batches", "batches", "_n_added", "_cache"),
}
"""The classes that a checkpoint may hold objects of, and their attributes, which are all that there is to them."""

_SPACES: dict[type[spaces.Space], Callable[[Any], dict[str, Any]]] = {
    spaces.Box: lambda space: {"low": space.low, "high": space.high, "dtype": str(space.dtype)},
    spaces.Discrete: lambda space: {"n": int(space.n), "start": int(space.start)},
    spaces.MultiDiscrete: lambda space: {"nvec": space.nvec, "dtype": str(space.dtype), "start": space.start},
    spaces.MultiBinary: lambda space: {"n": space.n},
    spaces.Dict: lambda space: {"spaces": dict(space.spaces)},
}
"""Kind of space → the arguments of its constructor."""

_KIND, _CONTENT = "is", "of"
"""The keys of what is no plain JSON."""


class Encoder:
    """
    Makes JSON of values.

    The tensors of the values encoded so far lie in ``tensors``, and the values that need pickle in ``custom``, both by
    their entry: the path to them, such as ``"attributes/policy_kwargs/features_extractor_class"``, and a number where
    two keys are spelled alike.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, th.Tensor] = {}
        self.custom: dict[str, Any] = {}

    def encode(self, value: Any, entry: str) -> Any:
        """
        :param value: any
        :param entry: where it stands
        :return: what :mod:`json` takes
        """
        kind = type(value)
        if kind is float and not math.isfinite(value):
            return _tagged("float", str(value))
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return self._items(value, entry)
        if kind is tuple:
            return _tagged("tuple", self._items(value, entry))
        if kind is deque:
            return _tagged("deque", self._items(value, entry)) | {"maxlen": value.maxlen}
        if kind in (dict, OrderedDict):
            return self._mapping(value, entry)
        if isinstance(value, th.Tensor):
            return self._tensor("tensor", value, entry)
        if (kind is np.ndarray or isinstance(value, np.generic)) and _fits_a_tensor(value.dtype):
            name = "array" if kind is np.ndarray else "scalar"
            native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
            return self._tensor(name, th.as_tensor(native), entry)
        if isinstance(value, type) and CLASSES.get(_name(value)) is value:
            return _tagged("class", _name(value))
        if kind in _SPACES:
            arguments = self._mapping(_SPACES[kind](value), entry)
            return _tagged("space", kind.__name__) | {"arguments": arguments}
        if _name(kind) in RECORDS:
            attributes = {name: getattr(value, name) for name in RECORDS[_name(kind)]}
            return _tagged("record", _name(kind)) | {"attributes": self._mapping(attributes, entry)}
        entry = self._free(entry)
        self.custom[entry] = value
        return _tagged("custom", entry) | {"type": _name(value if isinstance(value, type) else kind)}

    def _free(self, entry: str) -> str:
        """The entry, numbered if there is one of this name: that of another key that is spelled like this one."""
        numbered = (f"{entry} ({n})" for n in count(2))
        return next(name for name in chain([entry], numbered) if name not in self.tensors and name not in self.custom)

    def _items(self, values: Any, entry: str) -> list[Any]:
        return [self.encode(value, f"{entry}/{i}") for i, value in enumerate(values)]

    def _mapping(self, values: Mapping[Any, Any], entry: str) -> Any:
        if all(type(key) is str for key in values) and _KIND not in values:
            return {key: self.encode(value, f"{entry}/{key}") for key, value in values.items()}
        return _tagged("dict", [self._items(pair, f"{entry}/{pair[0]}") for pair in values.items()])

    def _tensor(self, kind: str, tensor: th.Tensor, entry: str) -> dict[str, Any]:
        entry = self._free(entry)
        self.tensors[entry] = tensor.detach().cpu().clone(memory_format=th.contiguous_format)
        return _tagged(kind, entry)


class Decoder:
    """
    Makes values of what an :class:`Encoder` has made.

    :param tensors: by entry
    :param custom: the values that needed pickle, by entry; None if they are not to be trusted
    """

    def __init__(self, tensors: Mapping[str, th.Tensor], custom: Mapping[str, Any] | None):
        self._tensors, self._custom = tensors, custom

    def decode(self, encoded: Any, device: th.device | str = "cpu") -> Any:
        """
        :param encoded: JSON
        :param device: where tensors are to be
        :return: the value
        :raises ValueError: it is of no known kind, or needs pickle and is not trusted
        """
        if isinstance(encoded, list):
            return [self.decode(item, device) for item in encoded]
        if not isinstance(encoded, dict):
            return encoded
        if _KIND not in encoded:
            return {key: self.decode(value, device) for key, value in encoded.items()}
        kind, content = encoded[_KIND], encoded[_CONTENT]
        if kind == "float":
            return float(content)
        if kind == "tuple":
            return tuple(self.decode(content, device))
        if kind == "deque":
            return deque(self.decode(content, device), maxlen=encoded["maxlen"])
        if kind == "dict":
            return dict(self.decode(pair, device) for pair in content)
        if kind == "tensor":
            # A copy, at the alignment of torch's own memory: a matrix product may round by where its operands lie.
            return self._tensors[content].clone().to(device)
        if kind == "array":
            return self._tensors[content].clone().numpy()
        if kind == "scalar":
            return self._tensors[content].numpy()[()]
        if kind == "class" and content in CLASSES:
            return CLASSES[content]
        if kind == "space":
            return self._space(content, self.decode(encoded["arguments"]))
        if kind == "record" and content in RECORDS:
            return self._record(content, self.decode(encoded["attributes"], device))
        if kind == "custom":
            return self._custom_value(content, encoded["type"])
        raise ValueError(f"unknown {kind} {content!r}")

    def _space(self, name: str, arguments: dict[str, Any]) -> spaces.Space:
        kinds = {kind.__name__: kind for kind in _SPACES}
        if name not in kinds:
            raise ValueError(f"unknown space {name!r}")
        if kinds[name] is spaces.Dict:
            arguments = {"spaces": OrderedDict(arguments["spaces"])}  # a plain dict would be sorted
        return kinds[name](**arguments)

    def _record(self, name: str, attributes: dict[str, Any]) -> Any:
        if attributes.keys() != set(RECORDS[name]):
            raise ValueError(f"attributes {sorted(attributes)} of {name}: allowed are {sorted(RECORDS[name])}")
        module, _, class_name = name.rpartition(".")
        cls = getattr(importlib.import_module(module), class_name)  # a name of our own list
        record = cls.__new__(cls)
        vars(record).update(attributes)
        return record

    def _custom_value(self, entry: str, type_name: str) -> Any:
        if self._custom is None:
            raise ValueError(
                f"{entry} ({type_name}) is pickled, which runs code of whoever wrote it, and may be opened with "
                "trust=True only"
            )
        return self._custom[entry]


def _fits_a_tensor(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {_KIND: kind, _CONTENT: content}
