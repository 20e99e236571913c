"""Checks of arguments: each raises a ValueError that names the argument, its value and what is allowed."""

import json
import math
from collections.abc import Collection, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

__all__ = [
    "installing",
    "python_number",
    "require",
    "require_bool",
    "require_count",
    "require_effective",
    "require_fraction",
    "require_number",
    "require_one_of",
    "require_positive",
    "require_schedule",
]

MAX_COUNT = 2**31 - 1
"""Largest count of steps, episodes, passes, …"""

MAX_NUMBER = 1e38
"""Largest number in the single precision in which networks compute."""


def require(condition: bool, argument: str, value: Any, allowed: str) -> None:
    """
    Raise a ValueError unless the condition holds.

    :param condition: whether the argument's value is allowed
    :param argument: its name
    :param value: its value
    :param allowed: what is allowed, in words
    :raises ValueError: naming all three
    """
    if not condition:
        raise ValueError(f"{argument}={value!r}: allowed is {allowed}")


def require_one_of(argument: str, value: Any, allowed: Collection[str | bool | None]) -> None:
    """Require one of several choices. 1 is not True, and an array is none of its entries."""
    require(any(_same(value, choice) for choice in allowed), argument, value, "one of " + ", ".join(map(repr, allowed)))


def require_bool(argument: str, value: Any) -> None:
    """Require True or False."""
    require(isinstance(value, bool), argument, value, "True or False")


def require_number(
    argument: str, value: Any, allowed: str, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Require a finite number within limits; ``allowed`` describes them in the message."""
    require(_is_number(value) and at_least <= python_number(value) <= at_most, argument, value, allowed)


def require_fraction(argument: str, value: Any) -> None:
    """Require a number in [0, 1], such as γ and λ."""
    require_number(argument, value, "a number in [0, 1]", 0.0, 1.0)


def require_count(argument: str, value: Any, at_least: int = 1, at_most: int = MAX_COUNT) -> None:
    """Require a whole number within limits."""
    allowed = f"a whole number >= {at_least}" + (f" and <= {at_most}" if _is_whole(value) and value > at_most else "")
    require(_is_whole(value) and at_least <= value <= at_most, argument, value, allowed)


def require_positive(argument: str, value: Any) -> None:
    """Require a finite number above 0."""
    require_number(argument, value, "a finite number > 0", at_least=math.ulp(0.0))


def require_schedule(argument: str, value: Any, above_0: bool = False) -> None:
    """
    Require a number that is not negative, or a function of the remaining progress that starts with one.

    :param argument: its name
    :param value: its value
    :param above_0: whether a number must be above 0. A function may start with 0 all the same: rl_zoo3 puts such a one
        in the place of every schedule of an agent that is only to act
    :raises ValueError: naming the argument, its value and what is allowed
    """
    allowed = f"a finite number {'>' if above_0 else '>='} 0, or a schedule of them"
    try:
        start = value(1.0) if callable(value) else value
    except Exception as error:  # whatever a function may raise that is no schedule
        raise ValueError(f"{argument}={value!r}: allowed is {allowed}; for 1.0 it raises {error!r}") from error
    enough = _is_number(start) and (start > 0.0 if above_0 and not callable(value) else start >= 0.0)
    require(enough, argument, value, allowed)


def require_effective(owner: Any, arguments: Mapping[str, tuple[Any, str]]) -> None:
    """
    Require the only value of each argument that would otherwise be ignored.

    :param owner: has the arguments as attributes
    :param arguments: name → the only value that is accepted, and the reason
    :raises ValueError: one of them has another value
    """
    for argument, (only, reason) in arguments.items():
        value = getattr(owner, argument)
        require(_same(_constant(value), only), argument, value, f"{only!r} {reason}")


def python_number(value: Any) -> Any:
    """
    A number as SB3, gymnasium and torch take it: Python's instead of numpy's, a float instead of an int of more than 64
    bits; anything else as it is.
    """
    value = value.item() if isinstance(value, (np.integer, np.floating)) else value
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 and abs(value) <= MAX_NUMBER else value


def _is_number(value: Any) -> bool:
    """True for a finite number, no more than a float can hold; numpy's too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    # Of numpy's, a small type would round the limits to its own.
    return bool(-MAX_NUMBER <= python_number(value) <= MAX_NUMBER)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _same(value: Any, other: Any) -> bool:
    """True if both are equal, and of one kind: a comparison with an array is an array, and 1 equals True."""
    if _is_number(value) and _is_number(other):
        return bool(value == other)
    return isinstance(value, type(other)) and bool(value == other)


def _constant(value: Any) -> Any:
    """The number that a constant schedule of SB3's has; anything else as it is."""
    return getattr(getattr(value, "value_schedule", value), "val", value)


def installing(extra: str) -> str:
    """
    Say which command adds an extra to this installation, from an index, a checkout, a file or a repository.

    :param extra: its name in ``pyproject.toml``
    :return: the command
    """
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f'pip install -e "{checkout}[{extra}]"'
    origin = json.loads(distribution("sb3-pgext").read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f'pip install "sb3-pgext[{extra}] @ {origin["vcs_info"]["vcs"]}+{origin["url"]}"'
    file = url2pathname(urlsplit(origin.get("url", "")).path)
    return f'pip install "{file if Path(file).is_file() else "sb3-pgext"}[{extra}]"'
