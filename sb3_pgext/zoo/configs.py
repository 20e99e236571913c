"""Configurations: where they are, what is in them, what may be in them."""

import contextlib
import importlib
import inspect
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_pgext
from sb3_pgext.zoo.names import nearest
from sb3_pgext.zoo.registration import ALGORITHMS

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


def read_config(algo: str, env_id: str, conf_file: str | None = None) -> dict[str, Any]:
    """
    Read the hyperparameters of an algorithm for an environment, as rl_zoo3 reads them.

    :param algo: zoo key of the algorithm
    :param env_id: a registered environment
    :param conf_file: a YAML or Python file or an importable module; default: :func:`config_path`
    :return: the hyperparameters, unprocessed, each key known
    :raises ValueError: the file is missing or malformed, has no entry for the environment and no ``default``,
        or the entry has an unknown key or lacks a needed one
    """
    conf_file = conf_file or str(config_path(algo))
    _check_readable(conf_file)
    manager = ExperimentManager(Namespace(), algo, env_id, log_folder="logs", config=conf_file)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config = dict(manager.read_hyperparameters()[0])
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"{conf_file}: not a configuration by environment: {error}") from error
    where = f"{conf_file}: {env_id}"
    check_keys(algo, config, where)
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"{where}: the key {key!r} is missing")
    return config


def check_config(algo: str, env_id: str, conf_file: str | None = None, params: Mapping[str, Any] | None = None) -> None:
    """
    Refuse a configuration, or parameters of the command line, that the algorithm does not understand.

    :param algo: zoo key of the algorithm
    :param env_id: a registered environment
    :param conf_file: as for :func:`read_config`
    :param params: parameters that overwrite the configuration's
    :raises ValueError: as :func:`read_config`, and for an unknown key of ``params``
    """
    read_config(algo, env_id, conf_file)
    check_keys(algo, params or {}, "-params")


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
