"""``sb3-pgext zoo check``: whether each configuration that we ship makes a model."""

import warnings

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled
from rich.progress import track

from sb3_pgext.zoo.configs import check_keys, config_path
from sb3_pgext.zoo.console import output_console
from sb3_pgext.zoo.experiments import ATARI, DEFAULT, quiet_model
from sb3_pgext.zoo.shipped import Entry, entries, shipped_configs

__all__ = ["check_entry", "check_zoo"]

_EXAMPLE_OF_DEFAULT = {"ew": "sb3_pgext/Chain-v0"}


def check_entry(entry: Entry) -> None:
    """
    Make the model that a configuration describes. Atari's games need not be installed: of theirs the keys are checked.

    :param entry: the configuration
    :raises Exception: whatever its mistake leads to
    """
    config = shipped_configs(entry.algo)[entry.name]
    check_keys(entry.algo, config, entry.name)
    if entry.name != ATARI and (entry.name in gym.registry or not entry.name.startswith("ALE/")):
        example = _EXAMPLE_OF_DEFAULT.get(entry.algo, "CartPole-v1")
        environment = example if entry.name == DEFAULT else entry.name
        with quiet_model(entry.algo, environment, config, seed=0):
            pass


def check_zoo() -> bool:
    """
    Make the model of each configuration, and print which fail and why.

    :return: whether all could be made whose environment is installed
    """
    console = output_console()
    n, failures, missing = len(entries()), 0, {}
    for entry in track(entries(), "configurations", console=console, transient=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_entry(entry)
        except DependencyNotInstalled as error:
            n -= 1
            missing[entry.name] = error
        except Exception as error:  # of whatever kind: it is what is reported
            failures += 1
            text = f"{config_path(entry.algo).name}: {entry.name}: {type(error).__name__}: {error}"
            console.print(text, style="red", markup=False, soft_wrap=True)
    for name, why in missing.items():
        console.print(f"{name}: not installed, not checked: {why}", markup=False, soft_wrap=True)
    console.print(f"{n - failures} of {n} configurations are valid")
    return not failures
