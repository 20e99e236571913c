"""Arguments of constructors: which are SB3's, and the checks that SB3 leaves out."""

import functools
import inspect
import math
import os
from collections.abc import Hashable, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_pgext.arguments import python_number, require, require_bool, require_count

__all__ = ["argument_names", "arguments_of", "check_sb3_arguments", "given", "graph_key", "sb3_class"]


def given(variables: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments of a constructor.

    :param variables: its ``locals()``, before it has any others
    :return: name → value
    """
    return {name: value for name, value in variables.items() if name not in ("self", "__class__")}


@functools.cache
def argument_names(algorithm: type) -> list[str]:
    """The names of the arguments of all constructors that an algorithm inherits, sorted."""
    constructors = [vars(c)["__init__"] for c in algorithm.__mro__[:-1] if "__init__" in vars(c)]
    return sorted({name for constructor in constructors for name in inspect.signature(constructor).parameters})


def arguments_of(model: Any) -> dict[str, Any]:
    """The arguments of an algorithm as they are now, without those that may differ where the training does not."""
    elsewhere = ("env", "policy", "device", "verbose", "tensorboard_log", "_init_setup_model")
    algorithm: Any = type(model)
    return {name: getattr(model, name, None) for name in argument_names(algorithm) if name not in elsewhere}


def graph_key(model: Any) -> Hashable:
    """
    The numbers and choices among an algorithm's arguments as they are now, for the keys of graphs.

    :param model: of those ``passed_to_losses`` it counts only whether there are any
    :return: its class, and name and value of each
    """
    algorithm: Any = type(model)
    key: list[Hashable] = [algorithm]
    for name in argument_names(algorithm):
        value = python_number(getattr(model, name, None))
        if name in model.passed_to_losses:
            key.append((name, value is None))
        elif isinstance(value, (bool, int, float, str)):
            key.append((name, value))
    return tuple(key)


def sb3_class(algorithm: type) -> type:
    """The class of SB3's whose constructor comes next."""
    package = BaseAlgorithm.__module__.partition(".")[0]
    return next(c for c in algorithm.__mro__ if c.__module__.partition(".")[0] == package and "__init__" in vars(c))


def check_sb3_arguments(arguments: Mapping[str, Any]) -> None:
    """
    Check the arguments that SB3's constructors use, or keep, without looking at them.

    :param arguments: name → value
    :raises ValueError: naming the argument, its value and what is allowed
    """
    device, seed, log = arguments.get("device", "auto"), arguments.get("seed"), arguments.get("tensorboard_log")
    try:
        suitable = isinstance(device, (str, th.device)) and math.isfinite(th.zeros(1, device=get_device(device)).item())
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device={device!r}: allowed is one that torch finds here, or 'auto'. {error}") from error
    require(suitable, "device", device, "one of torch's, or 'auto'")
    if seed is not None:
        require_count("seed", seed, at_least=0, at_most=2**32 - 1)
    require(log is None or isinstance(log, (str, os.PathLike)), "tensorboard_log", log, "None or a folder")
    require_count("verbose", arguments.get("verbose", 0), at_least=0)
    require_count("stats_window_size", arguments.get("stats_window_size", 100))
    require_bool("use_sde", arguments.get("use_sde", False))
    for argument in ("policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs"):
        value = arguments.get(argument)
        named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        require(value is None or named, argument, value, "None or a dict of arguments by name")
