"""Rollouts of all ranks: each plays its own, and afterwards all know how many steps and episodes there were."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import RolloutReturn

from sb3_pgext.parallel.group import present
from sb3_pgext.parallel.normalizers import merge_statistics
from sb3_pgext.parallel.ranks import Ranks

__all__ = ["of_all_ranks"]

Collect = TypeVar("Collect", bound=Callable[..., Any])


def of_all_ranks(collect: Collect) -> Collect:
    """
    Count the steps of all ranks after a rollout, learn from all statistics, and stop where a callback of any rank says.

    :param collect: ``collect_rollouts`` of an SB3 algorithm
    :return: the same method
    """

    @wraps(collect)
    def collect_on_all(model: Any, *arguments: Any, **options: Any) -> Any:
        ranks = present()
        if not ranks.several:
            return collect(model, *arguments, **options)
        before, episodes = model.num_timesteps, [*model.ep_info_buffer]
        result = collect(model, *arguments, **options)
        merge_statistics(ranks, model.env)
        return _merged(ranks, model, result, before, episodes)

    return collect_on_all  # type: ignore[return-value]


def _merged(ranks: Ranks, model: Any, result: Any, before: int, episodes: list[Any]) -> Any:
    """The result of ``collect_rollouts`` for all ranks; the model counts the steps of all."""
    of_replay = isinstance(result, RolloutReturn)
    *collected, goes_on = result if of_replay else (0, 0, result)
    known = set(map(id, episodes))
    new = [info for info in model.ep_info_buffer if id(info) not in known]
    numbers = [*collected, not goes_on, model.num_timesteps - before, len(new)]  # of an off-policy method at each step
    *collected, n_stopped, n_steps, n_new = ranks.sum(th.tensor(numbers)).tolist()
    if n_new:
        _merge_episodes(ranks, model, episodes, new)
    model.num_timesteps = before + n_steps
    model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
    goes_on = n_stopped == 0
    return result._replace(**dict(zip(result._fields, (*collected, goes_on), strict=True))) if of_replay else goes_on


def _merge_episodes(ranks: Ranks, model: Any, before: list[Any], new: list[Any]) -> None:
    """Log the episodes of all ranks: those of the buffers before, and then the new ones of each."""
    infos, successes = model.ep_info_buffer, model.ep_success_buffer
    new_successes = [*successes][len(successes) - len(new) :] if successes else []  # one of each episode, or none
    of_ranks = ranks.objects((new, new_successes))
    older = [*successes][: len(successes) - len(new_successes)]
    for k, (buffer, old) in enumerate(((infos, before), (successes, older))):
        buffer.clear()
        buffer.extend([*old, *(x for of_rank in of_ranks for x in of_rank[k])])
