"""Statistics of VecNormalize that all ranks share: each adds what it has seen since they last agreed."""

from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pgext.parallel.ranks import Ranks
from sb3_pgext.rollouts.acting import copy_statistics, statistics_of
from sb3_pgext.rollouts.checks import normalizers_of
from sb3_pgext.rollouts.population import seen_since

__all__ = ["agree_on_statistics", "merge_statistics"]

_agreed: "WeakKeyDictionary[VecNormalize, list[RunningMeanStd]]" = WeakKeyDictionary()
"""The statistics that were the same on all ranks; also resets outside of rollouts have been seen since."""


def agree_on_statistics(ranks: Ranks, env: VecEnv) -> None:
    """
    Take the statistics of rank 0.

    :param ranks: of this run
    :param env: the training environment of this rank
    """
    for normalizer in normalizers_of(env):
        own = statistics_of(normalizer)
        _agreed[normalizer] = ranks.from_first([rms.copy() for rms in own])
        copy_statistics(_agreed[normalizer], own)


def merge_statistics(ranks: Ranks, env: VecEnv) -> None:
    """
    Add what all ranks have seen since they last agreed, each once (Chan et al. 1983).

    :param ranks: of this run
    :param env: the training environment of this rank
    """
    for normalizer in normalizers_of(env):
        own, before = statistics_of(normalizer), _agreed[normalizer]
        seen = [seen_since(rms, later) for rms, later in zip(before, own, strict=True)]
        flat = np.concatenate([np.ravel(x) for moments in seen for x in moments])
        for of_rank in ranks.gathered(th.as_tensor(flat)[None]).numpy():
            for rms in before:
                mean, variance, of_rank = *np.split(of_rank[: 2 * rms.mean.size], 2), of_rank[2 * rms.mean.size :]
                count, of_rank = of_rank[0], of_rank[1:]
                if count > 0:
                    rms.update_from_moments(mean.reshape(rms.mean.shape), variance.reshape(rms.mean.shape), count)
        copy_statistics(before, own)
