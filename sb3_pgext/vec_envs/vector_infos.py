"""The infos of a gymnasium vector environment, one dict of arrays, as SB3 has them: a dict for each sub-environment."""

from copy import deepcopy
from typing import Any

import numpy as np

__all__ = ["infos_of_each"]


def infos_of_each(infos: dict[str, Any], n_envs: int) -> list[dict[str, Any]]:
    """
    Give each sub-environment its part of the infos of all, copied.

    :param infos: arrays of one value for each, ``(E, …)``, or dicts of such; under ``_<key>`` who has the key,
        ``(E,)``, bool, or all where that is missing. Anything else is every sub-environment's
    :param n_envs: number of sub-environments, E
    :return: the infos of each, E in number
    """
    of_each: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        if isinstance(values, dict):
            of_key = infos_of_each(values, n_envs)
        elif isinstance(values, np.ndarray):
            of_key = deepcopy(values).tolist() if values.ndim == 1 else list(values.copy())
        else:
            of_key = [values] * n_envs
        for e in np.flatnonzero(infos.get(f"_{key}", np.ones(n_envs))).tolist():
            of_each[e][key] = of_key[e]
    return of_each
