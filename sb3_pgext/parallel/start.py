"""The start of a training: the ranks agree about what they train, and begin with the same numbers."""

import io
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_pgext.parallel.normalizers import agree_on_statistics
from sb3_pgext.parallel.ranks import Ranks

__all__ = ["begin", "callbacks_of_rank", "require_agreement"]


def begin(ranks: Ranks, model: BaseAlgorithm, arguments: Mapping[str, Any]) -> None:
    """
    Begin to learn together, if there are several ranks: with the networks, optimizers and statistics of rank 0, and
    with a log of rank 0 alone.

    :param ranks: of this run
    :param model: of this rank
    :param arguments: of its constructor, as they are now
    :raises ValueError: the ranks do not train the same; on the first of them alone, the others end silently
    """
    if not ranks.several:
        return
    versions = {f"version of {name}": version(name) for name in ("sb3-pgext", "stable-baselines3", "torch")}
    counts = {name: getattr(model, name) for name in ("n_envs", "num_timesteps", "_n_updates")}
    spaces = {name: getattr(model, name) for name in ("observation_space", "action_space")}
    algorithm = {"algorithm": type(model), "policy": model.policy_class}
    require_agreement(ranks, {**versions, **algorithm, **spaces, **counts, **arguments})
    if ranks.rank:
        model.set_logger(Logger(None, []))
    names, variables = model._get_torch_save_params()
    mine = {name: recursive_getattr(model, name).state_dict() for name in names}
    mine |= {name: recursive_getattr(model, name).data for name in variables}
    content = io.BytesIO()
    th.save(mine, content)
    content = io.BytesIO(ranks.from_first(content.getvalue()))
    of_first = th.load(content, map_location=model.device, weights_only=False)  # which is a rank of this run
    if ranks.rank:
        for name in names:
            recursive_getattr(model, name).load_state_dict(of_first[name])
        for name in variables:
            recursive_getattr(model, name).data.copy_(of_first[name])
    if model.env is not None:
        agree_on_statistics(ranks, model.env)


def require_agreement(ranks: Ranks, described: Mapping[str, Any]) -> None:
    """
    Require that all ranks say the same.

    :param ranks: of this run
    :param described: name → value
    :raises ValueError: on the first rank, naming the first difference
    :raises SystemExit: on the others
    """
    of_ranks = ranks.objects({name: _spelled(value) for name, value in described.items()})
    for name in described:
        values = {rank: of_rank.get(name) for rank, of_rank in enumerate(of_ranks)}
        if len(set(values.values())) > 1:
            if ranks.rank:
                raise SystemExit(1)
            raise ValueError(f"{name}={values} by rank: allowed is the same on all ranks")


def _spelled(value: Any) -> str:
    """A value in words that are the same in each process."""
    text = value.__qualname__ if hasattr(value, "__qualname__") else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def callbacks_of_rank(ranks: Ranks, callback: MaybeCallback) -> MaybeCallback:
    """
    The callbacks that are called on this rank: all of them on rank 0, elsewhere those that have ``on_every_rank=True``,
    as one needs that writes into the rollout.

    :param ranks: of this run
    :param callback: as ``learn`` takes it
    :return: as ``learn`` takes it
    """
    if ranks.rank == 0:
        return callback
    several = callback.callbacks if isinstance(callback, CallbackList) else callback
    if isinstance(several, list):
        of_rank: Any = (callbacks_of_rank(ranks, one) for one in several)
        return CallbackList([one for one in of_rank if one is not None])
    return several if getattr(several, "on_every_rank", False) else None
