"""Configurations: where they are, what is in them, what may be in them."""

import contextlib
import inspect
import io
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from gymnasium import spaces
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pgext.arguments import require, require_count, require_one_of
from sb3_pgext.zoo import shipped
from sb3_pgext.zoo.experiments import ATARI, DEFAULT, WRAPPERS, Experiment, entry_for, fitting_policy, spaces_of
from sb3_pgext.zoo.names import nearest
from sb3_pgext.zoo.registration import ALGORITHMS
from sb3_pgext.zoo.vec_envs import VEC_ENVS

_ZOO_KEYS = {"n_timesteps", "n_envs", "frame_stack", "normalize", "env_kwargs", "monitor_kwargs", "vec_env"}
_ZOO_KEYS |= {"env_wrapper", "vec_env_wrapper", "callback"}
"""Keys that rl_zoo3's and our experiments take out of a configuration."""

_NOISE_KEYS = {"noise_type", "noise_std"}
"""Keys that rl_zoo3 takes too, for algorithms that add noise to their actions."""

_SET_BY_ZOO = {"self", "env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"}
"""Constructor arguments that rl_zoo3 passes itself, from its flags."""

_EVALUATED = {"policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs"}
"""Constructor arguments whose strings rl_zoo3 evaluates."""

_REQUIRED = ("n_timesteps", "policy")

_SCHEDULES = {"learning_rate", "clip_range", "clip_range_vf", "action_std"}
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


def config_path(algo: str) -> Path:
    """
    Find the default configuration file of an algorithm.

    :param algo: zoo key of an algorithm of ours, of SB3 or of sb3-contrib
    :return: ``zoo_configs/<algo>.yml`` for ours, rl_zoo3's own file for theirs
    """
    folder = shipped.configs_folder() if algo in ALGORITHMS else Path(rl_zoo3.__file__).parent / "hyperparams"
    return folder / f"{algo}.yml"


def allowed_keys(algorithm: type[BaseAlgorithm]) -> set[str]:
    """
    Collect the keys that a configuration may have: the constructor's parameters, and what rl_zoo3 takes out itself.

    :param algorithm: an algorithm's class
    :return: the keys
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
    allowed = sorted(allowed_keys(ALGOS[algo]))
    for key in keys:
        if key not in allowed:
            hint = f"{nearest(str(key), allowed)} (allowed for {algo}: {', '.join(allowed)})"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")


def check_complete(algo: str, env_id: str, config: Mapping[str, Any], where: str) -> None:
    """
    Refuse a configuration that a training would refuse, or stumble over, later, or that lacks what every one needs.

    :param algo: zoo key of the algorithm; the constructor's arguments are looked at of ours only
    :param env_id: a registered environment
    :param config: the configuration
    :param where: where it stands, for the message
    :raises ValueError: naming the key, its value and what is allowed
    """
    check_keys(algo, config, where)
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"{where}: the key {key!r} is missing")
    try:
        steps, policy = config["n_timesteps"], config["policy"]
        require(is_whole(steps, 1, MAX_TIMESTEPS), "n_timesteps", steps, f"a whole number from 1 to {MAX_TIMESTEPS}")
        require(isinstance(policy, str), "policy", policy, "a name")
        require_count("n_envs", config.get("n_envs", 1))
        require_one_of("vec_env", config.get("vec_env", VEC_ENVS[0]), VEC_ENVS)
        starts = {key: _start(key, config[key]) for key in _SCHEDULES.intersection(config)}
        if not WRAPPERS & config.keys():  # wrappers may change the observations
            fitting = fitting_policy(policy, spaces_of(env_id)[0])
            require(policy == fitting, "policy", policy, f"{fitting!r} with the observations of {env_id}")
        if algo in ALGORITHMS:
            _check_arguments(ALGORITHMS[algo], env_id, {**config, **starts})
    except (ValueError, AssertionError) as error:  # SB3's own checks assert
        raise ValueError(f"{where}: {error}") from error


def _start(key: str, value: Any) -> Any:
    """Return the number that a schedule starts with: rl_zoo3 reads ``lin_0.001`` as one that decreases linearly."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"lin_(\d+\.?\d*(e-?\d+)?)", value)
    if match is None:
        raise ValueError(f"{key}={value!r}: allowed is a number, or one that decreases linearly, such as lin_0.001")
    return float(match[1])


def _check_arguments(algorithm: type[BaseAlgorithm], env_id: str, config: Mapping[str, Any]) -> None:
    """Refuse what the constructor refuses, without a network."""
    arguments = {key: value for key, value in config.items() if key not in _ZOO_KEYS | _NOISE_KEYS}
    if "." in arguments["policy"]:  # a class, which rl_zoo3 imports
        arguments["policy"] = "MlpPolicy"
    for key in _EVALUATED.intersection(arguments):
        if isinstance(arguments[key], str):
            del arguments[key]
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    constructor: Any = algorithm
    model = constructor(env=None, **arguments, _init_setup_model=False)
    model.n_envs = config.get("n_envs", 1)
    model.observation_space, model.action_space = spaces_of(env_id)
    if model.action_space is None and issubclass(algorithm, OffPolicyAlgorithm):
        return  # most of what these check depends on the actions
    kinds = getattr(algorithm, "action_spaces", (spaces.Space,))
    allowed = ", ".join(kind.__name__ for kind in kinds)
    require(isinstance(model.action_space, (*kinds, type(None))), "action_space", model.action_space, allowed)
    model.check_arguments()


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
    manager = Experiment(Namespace(), algo, env_id, log_folder="logs", config=conf_file)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config = dict(manager.read_hyperparameters()[0])
        except (FileNotFoundError, ModuleNotFoundError) as error:
            raise ValueError(f"there is no configuration file {conf_file!r}: {error}") from error
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"{conf_file}: not a configuration by environment: {error}") from error
    check_complete(algo, env_id, config, f"{conf_file}: {entry_for(env_id, conf_file)}")
    return config


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
    check_complete(algo, env_id, {**config, **(params or {})}, "-params")


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
    :return: a note for each
    """
    notes = []
    for label, algo, env_id in dict.fromkeys(trained):
        entry = entry_for(env_id, conf_file or str(config_path(algo)))
        if entry not in (env_id, ATARI):
            origin = "the default" if entry == DEFAULT else f"that of {entry}"
            notes.append(f"{label} on {env_id}: no tuned configuration; using {origin}")
    return tuple(notes)
