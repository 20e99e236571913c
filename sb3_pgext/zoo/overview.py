"""``sb3-pgext zoo``: which configurations we ship, and whether each of them makes a model."""

import warnings
from typing import NamedTuple

import yaml
from gymnasium.error import DependencyNotInstalled
from rich import box
from rich.progress import track
from rich.table import Table

from sb3_pgext.zoo.configs import check_keys, config_path
from sb3_pgext.zoo.console import output_console
from sb3_pgext.zoo.experiments import ATARI, DEFAULT, quiet_model
from sb3_pgext.zoo.registration import ALGORITHMS

__all__ = ["Entry", "check_entry", "check_zoo", "entries", "list_zoo"]

_EXAMPLE_OF_DEFAULT = {"ew": "sb3_pgext/Chain-v0"}


class Entry(NamedTuple):
    """
    Configuration that we ship.

    :param algo: zoo key
    :param name: id of the environment, ``default`` or ``atari``
    """

    algo: str
    name: str


def entries() -> list[Entry]:
    """
    List all configurations that we ship, in the order of the files.

    :return: the configurations
    """
    return [Entry(algo, name) for algo in ALGORITHMS for name in _content(algo)]


def _content(algo: str) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = yaml.safe_load(config_path(algo).read_text())
    return content


def check_entry(entry: Entry) -> None:
    """
    Make the model that a configuration describes. The games of ``atari`` need not be installed: its keys are checked.

    :param entry: the configuration
    :raises Exception: whatever its mistake leads to
    """
    config = _content(entry.algo)[entry.name]
    check_keys(entry.algo, config, entry.name)
    if entry.name != ATARI:
        example = _EXAMPLE_OF_DEFAULT.get(entry.algo, "CartPole-v1")
        environment = example if entry.name == DEFAULT else entry.name
        with quiet_model(entry.algo, environment, config, seed=0):
            pass


def list_zoo() -> None:
    """Print the algorithms, and for which environments each has a configuration."""
    table = Table(box=box.SIMPLE_HEAD, caption="others: the entry of another version, or else default")
    for heading in ("key", "algorithm", "environments"):
        table.add_column(heading)
    for algo, algorithm in ALGORITHMS.items():
        table.add_row(algo, algorithm.__name__, ", ".join(_content(algo)))
    output_console().print(table)


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
