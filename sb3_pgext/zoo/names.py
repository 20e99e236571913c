"""Names that a user may misspell: algorithms, environments, keys of a configuration."""

import difflib
import importlib
import re
import sys
from collections.abc import Collection, Iterable
from types import ModuleType

import gymnasium as gym

from sb3_pgext.zoo.envpool_tasks import register_envpool_task

_MAX_SLUG = 150
"""Bytes; file systems allow 255 for a name."""


def slug(text: str) -> str:
    """
    Turn a text into a part of a file's name.

    :param text: any text
    :return: the text without the characters that mean something to a shell or file system, not too long
    """
    return re.sub(r"[^\w.+-]+", "-", text).strip("-").encode()[:_MAX_SLUG].decode(errors="ignore")


def nearest(name: str, known: Iterable[str]) -> str:
    """
    Suggest the known name closest to a misspelt one.

    :param name: what the user wrote
    :param known: the names that exist
    :return: ``", did you mean 'reinforce'?"``, or an empty string where nothing is close
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[matches[0]]!r}?" if matches else ""


def check_name(kind: str, name: object, known: Collection[str]) -> str:
    """
    Refuse a name that does not exist.

    :param kind: what the name stands for, as the message calls it, e.g. ``"algorithm"``
    :param name: what the user wrote
    :param known: the names that exist
    :return: the name
    :raises ValueError: the name is unknown; the message suggests the nearest and lists all
    """
    if isinstance(name, str) and name in known:
        return name
    raise ValueError(f"unknown {kind} {name!r}{nearest(str(name), known)} (known: {', '.join(sorted(known))})")


def check_environment(env_id: object) -> str:
    """
    Refuse an environment id that neither gymnasium nor, where it is installed, envpool knows.

    :param env_id: what the user wrote
    :return: the id, registered with gymnasium
    :raises ValueError: the id is not registered; the message suggests the nearest
    """
    if isinstance(env_id, str) and (env_id in gym.registry or register_envpool_task(env_id)):
        return env_id
    raise ValueError(
        f"unknown environment {env_id!r}{nearest(str(env_id), gym.registry)} "
        "(an environment of another package: --gym-packages MODULE, or gym_packages in a study)"
    )


def import_environments(packages: Iterable[str]) -> dict[str, ModuleType]:
    """
    Import the modules that register a user's environments with gymnasium, also from the current folder.

    :param packages: names of importable modules
    :return: name → module
    :raises ValueError: there is no such module
    """
    modules = {}
    for package in packages:
        if "" not in sys.path:  # as under python -m
            sys.path.append("")
        try:
            modules[package] = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package.split(".")[0] and error.name != package:
                raise
            raise ValueError(f"gym_packages: unknown package of environments {package!r}: {error}") from error
    return modules
