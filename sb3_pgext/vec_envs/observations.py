"""Observations: arrays or tensors, or dicts of them."""

from collections.abc import Callable
from typing import Any

__all__ = ["each"]


def each(function: Callable[..., Any], *observations: Any) -> Any:
    """
    Apply a function to observations, or to the entries of each key where they are dicts.

    :param function: arrays or tensors, one of each of the observations → any
    :param observations: arrays or tensors, or dicts of them with the same keys
    :return: the function's result, or a dict of its results
    """
    if isinstance(observations[0], dict):
        return {key: each(function, *(data[key] for data in observations)) for key in observations[0]}
    return function(*observations)
