"""Configurations: where they are, what is in them, what may be in them."""

import contextlib
import importlib
import inspect
import io
import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_pgext
from sb3_pgext.arguments import MAX_COUNT, require
from sb3_pgext.zoo.experiments import ATARI, DEFAULT, Experiment, entry_for
from sb3_pgext.zoo.names import nearest
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.vec_envs import VEC_ENVS

_NOISE_KEYS = {"noise_type", "noise_std"}
"""Keys that rl_zoo3 takes too, for algorithms that add noise to their actions."""

_SET_BY_ZOO = {"self", "env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"}
"""Constructor arguments that rl_zoo3 passes itself, from its flags."""

_REQUIRED = ("n_timesteps", "policy")

_SCHEDULES = {"learning_rate", "clip_range", "clip_range_vf"}
"""Numbers that may depend on the progress."""

MAX_TIMESTEPS = 10**15
"""In floating point, whole numbers are exact up to here, and nobody gets further."""


def is_whole(value: object, at_least: int, at_most: int) -> bool:
    """
    Test for a whole number within limits; 1e6, which is a float, is one.

    :param value: anything
    :param at_least: limit
    :param at_most: limit
    :return: whether it is one
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and at_least <= value <= at_most and value % 1 == 0  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_whole(value, 1, MAX_COUNT)


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_wrapper(value: Any) -> bool:
    """Accept nothing, a wrapper or a list of wrappers: each a class, or a mapping of one class to its arguments."""
    wrappers = value if isinstance(value, list) else [] if value is None else [value]
    return all((isinstance(w, str) and "." in w) or (_is_named(w) and len(w) == 1) for w in wrappers)


_NAMED = "a mapping from names"
_WRAPPER = "a class, such as package.module.Class, or a list of them"
_ZOO_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_timesteps": (lambda x: is_whole(x, 1, MAX_TIMESTEPS), f"a whole number from 1 to {MAX_TIMESTEPS}"),
    "n_envs": (_is_count, "a whole number >= 1"),
    "frame_stack": (lambda x: x is None or _is_count(x), "a whole number >= 1"),
    "normalize": (lambda x: isinstance(x, (bool, str)) or _is_named(x), f"true, false or {_NAMED}"),
    "env_kwargs": (lambda x: x is None or _is_named(x), _NAMED),
    "monitor_kwargs": (lambda x: isinstance(x, str) or _is_named(x), _NAMED),
    "vec_env": (lambda x: isinstance(x, str) and x in VEC_ENVS, f"one of {', '.join(VEC_ENVS)}"),
    "env_wrapper": (_is_wrapper, _WRAPPER),
    "vec_env_wrapper": (_is_wrapper, _WRAPPER),
    "callback": (_is_wrapper, _WRAPPER),
}
"""Keys that rl_zoo3's and our experiments take out of a configuration → a test of the value, and what is allowed."""


def configs_folder() -> Path:
    """
    Find the folder ``zoo_configs``: inside an installed package, or beside the package in a checkout.

    :return: the folder
    """
    package = Path(sb3_pgext.__file__).parent
    installed = package / "zoo_configs"
    return installed if installed.is_dir() else package.parent / "zoo_configs"


def config_path(algo: str) -> Path:
    """
    Find the default configuration file of an algorithm.

    :param algo: zoo key of an algorithm of ours, of SB3 or of sb3-contrib
    :return: ``zoo_configs/<algo>.yml`` for ours, rl_zoo3's own file for theirs
    """
    folder = configs_folder() if algo in ALGORITHMS else Path(rl_zoo3.__file__).parent / "hyperparams"
    return folder / f"{algo}.yml"


def allowed_keys(algorithm: type[BaseAlgorithm]) -> set[str]:
    """
    Collect the keys that a configuration may have: the constructor's parameters, and what rl_zoo3 takes out itself.

    :param algorithm: an algorithm's class
    :return: the keys
    """
    parameters = set(inspect.signature(algorithm.__init__).parameters) - _SET_BY_ZOO
    return parameters | _ZOO_VALUES.keys() | (_NOISE_KEYS if "action_noise" in parameters else set())


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
        require(isinstance(config.get("policy", ""), str), "policy", config.get("policy"), "a name")
        for key in _SCHEDULES.intersection(config):
            _check_schedule(key, config[key])
        if algo in ALGORITHMS:
            _check_arguments(ALGORITHMS[algo], config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_schedule(key: str, value: Any) -> None:
    """Refuse a schedule that rl_zoo3 cannot read: it is a number, or ``lin_`` and a number."""
    suitable = isinstance(value, (int, float))
    if isinstance(value, str):
        name, _, start = value.partition("_")
        with contextlib.suppress(ValueError):
            suitable = name == "lin" and 0 <= float(start) < math.inf
    require(suitable, key, value, "a number, or one that decreases linearly, such as lin_0.001")


def _check_arguments(algorithm: type[BaseAlgorithm], config: Mapping[str, Any]) -> None:
    """Refuse what the constructor refuses, without an environment and a network."""
    arguments = {key: value for key, value in config.items() if key not in _ZOO_VALUES}
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
    check_complete(algo, config, f"{conf_file}: {entry_for(env_id, conf_file)}")
    return config


def check_complete(algo: str, config: Mapping[str, Any], where: str) -> None:
    """
    Refuse a configuration that a training would refuse, or that lacks what every training needs.

    :param algo: zoo key of the algorithm
    :param config: the configuration
    :param where: where it stands, for the message
    :raises ValueError: naming the key
    """
    check_keys(algo, config, where)
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"{where}: the key {key!r} is missing")
    check_values(algo, config, where)


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


def merge(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """
    Lay a run's parameters over its configuration.

    :param config: the configuration
    :param params: what the run sets; a parameter set to ``None`` (YAML: ``null`` or ``~``) is taken out of the
        configuration, so that the constructor's default holds
    :return: the run's configuration
    """
    return {key: value for key, value in {**config, **params}.items() if params.get(key, "") is not None}


def configuration_notes(trained: Iterable[tuple[str, str, str]], conf_file: str | None = None) -> tuple[str, ...]:
    """
    Name those that are trained with a configuration of another version of their environment, or of none.

    :param trained: label, zoo key of the algorithm and environment of each
    :param conf_file: the configuration file; None for those of the algorithms
    :return: a note for each label
    """
    origins: dict[str, list[str]] = {}
    for label, algo, env_id in dict.fromkeys(trained):
        entry = entry_for(env_id, conf_file or str(config_path(algo)))
        if entry not in (env_id, ATARI):
            origin = f"{algo}'s default, untuned" if entry == DEFAULT else f"that of {entry}"
            origins.setdefault(label, []).append(f"for {env_id} {origin}")
    return tuple(f"the configuration of {label} is {', '.join(each)}" for label, each in origins.items())
