"""The infos of a gymnasium vector environment, one dict of arrays, as SB3 has them: a dict for each sub-environment."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

__all__ = ["infos_of_each", "spread_infos"]


def infos_of_each(infos: dict[str, Any], n_envs: int) -> list[dict[str, Any]]:
    """
    :param infos: as for :func:`spread_infos`
    :param n_envs: number of sub-environments, E
    :return: the infos of each, E in number
    """
    of_each: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    spread_infos(infos, of_each)
    return of_each


def spread_infos(infos: dict[str, Any], of_each: list[dict[str, Any]]) -> None:
    """
    Give each sub-environment its part of the infos of all. They share nothing, neither with each other nor with them.

    :param infos: arrays of one value for each, ``(E, …)``; under ``_<key>`` who has the key, ``(E,)``, bool, or all
        where that is missing. A dict holds such infos itself; anything else is every sub-environment's
    :param of_each: a dict for each, E in number; the values are added
    """
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        of_key = _values_of_each(values, len(of_each))
        for e in range(len(of_each)) if mask is None else np.flatnonzero(mask).tolist():
            of_each[e][key] = of_key[e]


def _values_of_each(values: Any, n_envs: int) -> Sequence[Any]:
    if isinstance(values, dict):
        return infos_of_each(values, n_envs)
    if isinstance(values, np.ndarray) and values.shape[:1] == (n_envs,):
        if values.dtype == object:
            return [deepcopy(value) for value in values]
        return values.tolist() if values.ndim == 1 else list(values.copy())
    if isinstance(values, list | tuple) and len(values) == n_envs:
        return [deepcopy(value) for value in values]
    return [deepcopy(values) for _ in range(n_envs)]
