"""Configurations: where they are, what is in them, what may be in them."""

import contextlib
import importlib
import inspect
import io
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_pgext
from sb3_pgext.arguments import MAX_COUNT, require
from sb3_pgext.zoo.experiments import Experiment, entry_for
from sb3_pgext.zoo.names import nearest
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.vec_envs import VEC_ENVS

_ZOO_KEYS = {
    "n_envs",
    "n_timesteps",
    "normalize",
    "env_wrapper",
    "vec_env_wrapper",
    "callback",
    "frame_stack",
    "monitor_kwargs",
    "env_kwargs",
    "vec_env",
}
"""What rl_zoo3's ExperimentManager itself takes out of a configuration, and the kind of vectorised environment."""

_NOISE_KEYS = {"noise_type", "noise_std"}
"""The same, for algorithms that add noise to their actions."""

_SET_BY_ZOO = {"self", "env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"}
"""Constructor arguments that rl_zoo3 passes itself, from its flags."""

_REQUIRED = ("n_timesteps", "policy")

_SCHEDULES = {"learning_rate", "clip_range", "clip_range_vf"}
"""Numbers that may depend on the progress."""

MAX_TIMESTEPS = 10**15
"""In floating point, whole numbers are exact up to here, and nobody gets further."""


def is_whole(value: object, at_least: int, at_most: int) -> bool:
    """
    :param value: what the user wrote
    :param at_least: limit
    :param at_most: limit
    :return: whether it is a whole number within the limits; 1e6, which is a float, is one
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and at_least <= value <= at_most and value % 1 == 0  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_whole(value, 1, MAX_COUNT)


def _is_wrapper(value: object) -> bool:
    """One, or a list of them: a class, or a mapping of one class to its arguments."""
    one_of_list = isinstance(value, list) and not any(isinstance(entry, list) for entry in value)
    each = value if isinstance(value, list) else [value]
    return (one_of_list or not isinstance(value, list)) and all(
        (isinstance(entry, str) and "." in entry)
        or (isinstance(entry, dict) and len(entry) == 1 and all(isinstance(name, str) for name in entry))
        for entry in each
    )


_NAMED = "a mapping from names"
_ZOO_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "policy": (lambda x: isinstance(x, str), "a name"),
    "n_timesteps": (lambda x: is_whole(x, 1, MAX_TIMESTEPS), f"a whole number from 1 to {MAX_TIMESTEPS}"),
    "n_envs": (_is_count, "a whole number >= 1"),
    "frame_stack": (lambda x: x is None or _is_count(x), "a whole number >= 1"),
    "normalize": (lambda x: isinstance(x, (bool, str)) or _is_named(x), f"true, false or {_NAMED}"),
    "env_kwargs": (lambda x: x is None or _is_named(x), _NAMED),
    "monitor_kwargs": (lambda x: isinstance(x, str) or _is_named(x), _NAMED),
    "vec_env": (lambda x: isinstance(x, str) and x in VEC_ENVS, f"one of {', '.join(VEC_ENVS)}"),
    "env_wrapper": (lambda x: x is None or _is_wrapper(x), "a class, such as package.module.Class, or a list of them"),
    "vec_env_wrapper": (lambda x: x is None or _is_wrapper(x), "as of env_wrapper"),
    "callback": (lambda x: x is None or _is_wrapper(x), "as of env_wrapper"),
}
"""Key → whether a value of it is allowed, and what is, in words."""


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def configs_folder() -> Path:
    """
    :return: the folder ``zoo_configs``: inside an installed package, or beside the package in a checkout
    """
    package = Path(sb3_pgext.__file__).parent
    installed = package / "zoo_configs"
    return installed if installed.is_dir() else package.parent / "zoo_configs"


def config_path(algo: str) -> Path:
    """
    The default configuration file of an algorithm.

    :param algo: zoo key of an algorithm of ours, of SB3 or of sb3-contrib
    :return: ``zoo_configs/<algo>.yml`` for ours, rl_zoo3's own file for theirs
    """
    folder = configs_folder() if algo in ALGORITHMS else Path(rl_zoo3.__file__).parent / "hyperparams"
    return folder / f"{algo}.yml"


def allowed_keys(algorithm: type[BaseAlgorithm]) -> set[str]:
    """
    :param algorithm: an algorithm's class
    :return: the keys that its configuration may have: its constructor's parameters and those of rl_zoo3
    """
    parameters = set(inspect.signature(algorithm.__init__).parameters) - _SET_BY_ZOO
    return parameters | _ZOO_KEYS | (_NOISE_KEYS if "action_noise" in parameters else set())


def check_keys(algo: str, keys: Mapping[str, Any], where: str) -> None:
    """
    Refuse keys that neither the algorithm nor rl_zoo3 understands.

    :param algo: zoo key of the algorithm
    :param keys: a configuration, or parameters that are laid over one
    :param where: where they stand, for the message
    :raises ValueError: a key is unknown; the message suggests the nearest and lists all
    """
    allowed = allowed_keys(ALGOS[algo])
    for key in keys:
        if key not in allowed:
            raise ValueError(
                f"{where}: unknown key {key!r}{nearest(str(key), allowed)} "
                f"(allowed for {algo}: {', '.join(sorted(allowed))})"
            )


def check_values(algo: str, config: Mapping[str, Any], where: str) -> None:
    """
    Refuse values of a configuration that a training would refuse, or stumble over, later.

    :param algo: zoo key of the algorithm; the constructor's arguments are looked at of ours only. What rl_zoo3
        evaluates as Python (strings as ``policy_kwargs``, ``normalize`` and ``monitor_kwargs``) is not looked into
    :param config: a configuration with known keys
    :param where: where it stands, for the message
    :raises ValueError: naming the key, its value and what is allowed
    """
    try:
        for key, (suits, allowed) in _ZOO_VALUES.items():
            if key in config:
                require(suits(config[key]), key, config[key], allowed)
        for key in _SCHEDULES.intersection(config):
            _check_schedule(key, config[key])
        if algo in ALGORITHMS:
            _check_arguments(ALGORITHMS[algo], config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_schedule(key: str, value: Any) -> None:
    """As rl_zoo3 reads it: a number, or ``lin_`` and a number."""
    suitable = isinstance(value, (int, float))
    if isinstance(value, str):
        name, _, start = value.partition("_")
        with contextlib.suppress(ValueError):
            suitable = name == "lin" and 0 <= float(start) < math.inf
    require(suitable, key, value, "a number, or one that decreases linearly, such as lin_0.001")


def _check_arguments(algorithm: type[BaseAlgorithm], config: Mapping[str, Any]) -> None:
    """Those of the constructor, without an environment and a network."""
    arguments = {key: value for key, value in config.items() if key not in _ZOO_KEYS}
    for key in _SCHEDULES.intersection(arguments):
        if isinstance(arguments[key], str):
            arguments[key] = float(arguments[key].partition("_")[2])
    if "." in arguments["policy"]:  # a class, which rl_zoo3 imports
        arguments["policy"] = "MlpPolicy"
    if isinstance(arguments.get("policy_kwargs"), str):
        del arguments["policy_kwargs"]
    constructor: Any = algorithm
    model = constructor(env=None, **arguments, _init_setup_model=False)
    model.n_envs = config.get("n_envs", 1)
    model._check_arguments()


def read_config(algo: str, env_id: str, conf_file: str | None = None) -> dict[str, Any]:
    """
    Read the hyperparameters of an algorithm for an environment, as rl_zoo3 reads them, or of another version of it: see
    :func:`~sb3_pgext.zoo.experiments.entry_for`.

    :param algo: zoo key of the algorithm
    :param env_id: a registered environment
    :param conf_file: a YAML or Python file or an importable module; default: :func:`config_path`
    :return: the hyperparameters, unprocessed, each key known
    :raises ValueError: the file is missing or malformed, has no entry for the environment and no ``default``,
        or the entry has an unknown key, lacks a needed one, or has a value that is not allowed
    """
    conf_file = conf_file or str(config_path(algo))
    _check_readable(conf_file)
    manager = Experiment(Namespace(), algo, env_id, log_folder="logs", config=conf_file)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config = dict(manager.read_hyperparameters()[0])
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"{conf_file}: not a configuration by environment: {error}") from error
    where = f"{conf_file}: {entry_for(env_id, conf_file)}"
    check_keys(algo, config, where)
    check_required(config, where)
    check_values(algo, config, where)
    return config


def check_required(config: Mapping[str, Any], where: str) -> None:
    """
    Refuse a configuration that lacks what every training needs.

    :param config: the configuration
    :param where: where it stands, for the message
    :raises ValueError: naming the key
    """
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"{where}: the key {key!r} is missing")


def check_config(algo: str, env_id: str, conf_file: str | None = None, params: Mapping[str, Any] | None = None) -> None:
    """
    Refuse a configuration, or parameters of the command line, that the algorithm does not understand.

    :param algo: zoo key of the algorithm
    :param env_id: a registered environment
    :param conf_file: as for :func:`read_config`
    :param params: parameters that overwrite the configuration's
    :raises ValueError: as :func:`read_config`, and for ``params`` the same
    """
    config = read_config(algo, env_id, conf_file)
    if params:
        check_keys(algo, params, "-params")
        check_values(algo, config | dict(params), "-params")


def _check_readable(conf_file: str) -> None:
    """Refuse a configuration file, or module, that is not there."""
    if Path(conf_file).suffix in {".yml", ".yaml", ".py"}:
        if not Path(conf_file).is_file():
            raise ValueError(f"there is no configuration file {conf_file!r}")
        return
    try:
        importlib.import_module(conf_file)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no configuration {conf_file!r}: neither a .yml or .py file nor a module") from error
