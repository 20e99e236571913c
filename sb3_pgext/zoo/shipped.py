"""``sb3-pgext zoo list``: the configurations that we ship. Nothing here needs the extra ``zoo``."""

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import sb3_pgext
from sb3_pgext.zoo.registration import ALGORITHMS

__all__ = ["Entry", "configs_folder", "entries", "list_zoo", "shipped_configs"]


class Entry(NamedTuple):
    """
    Configuration that we ship.

    :param algo: zoo key
    :param name: id of the environment, ``default`` or ``atari``
    """

    algo: str
    name: str


def configs_folder() -> Path:
    """
    Find the folder ``zoo_configs``: inside an installed package, or beside the package in a checkout.

    :return: the folder
    """
    package = Path(sb3_pgext.__file__).parent
    installed = package / "zoo_configs"
    return installed if installed.is_dir() else package.parent / "zoo_configs"


def shipped_configs(algo: str) -> dict[str, dict[str, Any]]:
    """
    Read the configuration file of one of our algorithms.

    :param algo: zoo key
    :return: name of each entry → its configuration
    """
    content: dict[str, dict[str, Any]] = yaml.safe_load((configs_folder() / f"{algo}.yml").read_text())
    return content


def entries() -> list[Entry]:
    """
    List all configurations that we ship, in the order of the files.

    :return: the configurations
    """
    return [Entry(algo, name) for algo in ALGORITHMS for name in shipped_configs(algo)]


def list_zoo() -> None:
    """Print the algorithms, and for which environments each has a configuration."""
    print("key: class, and the environments that it has a configuration for")
    for algo, algorithm in ALGORITHMS.items():
        print(f"\n{algo}: {algorithm.__name__}")
        environments = ", ".join(shipped_configs(algo))
        print(textwrap.fill(environments, 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    print("\nOther environments use the entry of another version, or else default.")
