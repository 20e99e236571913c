"""Values as JSON, with arrays and tensors apart, and back. Nothing that is read can name code to import or to run.

A value that JSON lacks is an object with the key ``is``: ``tensor``, ``array`` or ``scalar`` (its numbers are in
``tensors.safetensors``, under ``of``), ``class`` (one of the known list), ``made`` (a tuple, path, space, …, from its
arguments), ``record`` (a schedule, statistics, noise, old batches) or ``custom`` (in ``custom.pkl``).
"""

import importlib
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch.nn.modules import activation

from sb3_pgext import algorithms, rollouts
from sb3_pgext.algorithms import policies
from sb3_pgext.rollouts import EpisodeBatch, ReplayedBatch, transitions

__all__ = ["ALGORITHMS", "CLASSES", "NEEDS_TRUST", "RECORDS", "Decoder", "Encoder", "qualified_name"]


NEEDS_TRUST = "is pickled, which runs code of whoever wrote it, and may be opened with trust=True only"


def qualified_name(cls: type) -> str:
    """The module and name of a class, as ``import`` finds it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _named(classes: Any) -> dict[str, type]:
    return {qualified_name(cls): cls for cls in classes}


def _subclasses(base: type, *modules: ModuleType) -> list[Any]:
    values = (value for module in modules for value in vars(module).values())
    return [value for value in values if isinstance(value, type) and issubclass(value, base)]


ALGORITHMS = _named(_subclasses(BaseAlgorithm, algorithms, stable_baselines3))
"""The algorithms that a checkpoint may be of without pickle. No other entry may name them: their constructors make
environments from strings."""

CLASSES = _named(
    [
        *(policy for algorithm in ALGORITHMS.values() for policy in algorithm.policy_aliases.values()),  # type: ignore[attr-defined]
        *_subclasses(BasePolicy, policies),
        *_subclasses(BaseFeaturesExtractor, torch_layers),
        *(getattr(activation, name) for name in activation.__all__),
        *_subclasses(th.optim.Optimizer, th.optim),
        RMSpropTFLike,
        *_subclasses(buffers.BaseBuffer, buffers, rollouts, transitions),
        *(np.float16, np.float32, np.float64),
    ]
)
"""The classes that a checkpoint may name."""


RECORDS: dict[str, tuple[str, ...]] = {
    "stable_baselines3.common.utils.ConstantSchedule": ("val",),
    "stable_baselines3.common.utils.LinearSchedule": ("start", "end", "end_fraction"),
    "stable_baselines3.common.utils.FloatSchedule": ("value_schedule",),
    "stable_baselines3.common.running_mean_std.RunningMeanStd": ("mean", "var", "count"),
    "stable_baselines3.common.noise.NormalActionNoise": ("_mu", "_sigma", "_dtype"),
    "stable_baselines3.common.noise.OrnsteinUhlenbeckActionNoise": (
        *("_theta", "_mu", "_sigma", "_dt", "_dtype", "initial_noise", "noise_prev"),
    ),
    "stable_baselines3.common.noise.VectorizedActionNoise": ("n_envs", "_base_noise", "_noises"),
    "rl_zoo3.utils.SimpleLinearSchedule": ("initial_value",),
    "sb3_pgext.rollouts.buffers.EpisodeBatch": tuple(EpisodeBatch.__dataclass_fields__),
    "sb3_pgext.rollouts.replay.ReplayedBatch": tuple(ReplayedBatch.__dataclass_fields__),
    "sb3_pgext.rollouts.replay.EpisodeReplay": ("n_batches", "batches", "_n_added", "_cache"),
}
"""The classes that a checkpoint may hold objects of, and their attributes, which are all that there is to them."""

_ARGUMENTS: dict[type, Callable[[Any], list[Any]]] = {
    spaces.Box: lambda space: [space.low, space.high, space.shape, str(space.dtype)],
    spaces.Discrete: lambda space: [int(space.n), None, int(space.start)],
    spaces.MultiDiscrete: lambda space: [space.nvec, str(space.dtype), None, space.start],
    spaces.MultiBinary: lambda space: [space.n],
    spaces.Dict: lambda space: [[[key, part] for key, part in space.items()]],  # a mapping would be sorted
    TrainFreq: list,
    TrainFrequencyUnit: lambda unit: [unit.value],
    dict: lambda values: [[[key, value] for key, value in values.items()]],
    tuple: lambda values: [list(values)],
    deque: lambda values: [list(values), values.maxlen],
    type(Path()): lambda path: [str(path)],
}
"""Class → the arguments that make an equal object."""

_MADE = {kind.__name__: kind for kind in _ARGUMENTS} | dict.fromkeys(["PosixPath", "WindowsPath"], Path)

_KIND, _CONTENT = "is", "of"
"""The keys of what is no plain JSON."""


class Encoder:
    """
    Values as JSON.

    The tensors of the values encoded so far lie in ``tensors``, and the values that need pickle in ``custom``, both by
    their entry: the path to them, such as ``"attributes/policy_kwargs/features_extractor_class"``.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, th.Tensor] = {}
        self.custom: dict[str, Any] = {}

    def encode(self, value: Any, entry: str) -> Any:
        """
        Make JSON of a value.

        :param value: any
        :param entry: where it stands
        :return: a value that :mod:`json` takes
        """
        kind: type = dict if type(value) is OrderedDict else type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return [self.encode(item, f"{entry}/{i}") for i, item in enumerate(value)]
        if kind is dict and _KIND not in value and all(type(key) is str for key in value):
            return {key: self.encode(part, f"{entry}/{_escaped(key)}") for key, part in value.items()}
        if kind in _ARGUMENTS:
            return _tagged("made", kind.__name__) | {"arguments": self.encode(_ARGUMENTS[kind](value), entry)}
        if (name := qualified_name(kind)) in RECORDS:
            attributes = {attribute: getattr(value, attribute) for attribute in RECORDS[name]}
            return _tagged("record", name) | {"attributes": self.encode(attributes, entry)}
        if isinstance(value, type) and CLASSES.get(qualified_name(value)) is value:
            return _tagged("class", qualified_name(value))
        if isinstance(value, th.Tensor):
            self.tensors[entry] = value.detach().cpu().clone(memory_format=th.contiguous_format)
            return _tagged("tensor", entry)
        if (kind is np.ndarray or isinstance(value, np.generic)) and _fits_a_tensor(value.dtype):
            self.tensors[entry] = th.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
            return _tagged("array" if kind is np.ndarray else "scalar", entry)
        self.custom[entry] = value
        return _tagged("custom", entry) | {"type": qualified_name(value if isinstance(value, type) else kind)}


class Decoder:
    """
    Values from the JSON of an :class:`Encoder`.

    :param tensors: by entry
    :param custom: the values that needed pickle, by entry; None if they are not to be trusted
    """

    def __init__(self, tensors: Mapping[str, th.Tensor], custom: Mapping[str, Any] | None):
        self._tensors, self._custom = tensors, custom

    def decode(self, encoded: Any, device: th.device | str = "cpu") -> Any:
        """
        Make a value of JSON.

        :param encoded: JSON
        :param device: where tensors are to be
        :return: the value
        :raises LookupError: it is of no known kind
        :raises ValueError: it needs pickle and is not trusted
        """
        if isinstance(encoded, list):
            return [self.decode(item, device) for item in encoded]
        if not isinstance(encoded, dict):
            return encoded
        if _KIND not in encoded:
            return {key: self.decode(value, device) for key, value in encoded.items()}
        kind, content = encoded[_KIND], encoded[_CONTENT]
        decoders: dict[str, Callable[[], Any]] = {
            "made": lambda: _MADE[content](*self.decode(encoded["arguments"], device)),
            "record": lambda: self._record(content, self.decode(encoded["attributes"], device)),
            "class": lambda: CLASSES[content],
            # A copy, at the alignment of torch's own memory: a matrix product may round by where its operands lie.
            "tensor": lambda: self._tensors[content].clone().to(device),
            "array": lambda: self._tensors[content].clone().numpy(),
            "scalar": lambda: self._tensors[content].numpy()[()],
            "custom": lambda: self._custom_value(content, encoded["type"]),
        }
        return decoders[kind]()

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
            raise ValueError(f"{entry} ({type_name}) {NEEDS_TRUST}")
        return self._custom[entry]


def _fits_a_tensor(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def _escaped(key: str) -> str:
    """The key as one step of a path, as JSON pointers have it (RFC 6901): no two paths are spelled alike."""
    return key.replace("~", "~0").replace("/", "~1")


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {_KIND: kind, _CONTENT: content}
