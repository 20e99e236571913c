"""The one list of our algorithms, and its registration with rl_zoo3."""

from collections.abc import Callable
from typing import Any

from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pgext.algorithms import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.zoo import samplers

_REGISTERED: dict[str, tuple[type[BaseAlgorithm], Callable[..., dict[str, Any]]]] = {
    "reinforce": (REINFORCE, samplers.sample_reinforce),
    "vpg": (VPG, samplers.sample_vpg),
    "npg": (NPG, samplers.sample_npg),
    "ppo_cc": (ClippedCriticPPO, samplers.sample_ppo_cc),
    "ispg": (ISPG, samplers.sample_ispg),
}
"""Zoo key → class, and what optuna samples for it."""

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {key: algorithm for key, (algorithm, _) in _REGISTERED.items()}
"""Zoo key and class of each algorithm of sb3-pgext."""


def register() -> None:
    """Make rl_zoo3 know our algorithms: to train, enjoy and optimise them."""
    for key, (algorithm, sample) in _REGISTERED.items():
        ALGOS[key] = algorithm
        HYPERPARAMS_SAMPLER[key] = samplers.sampler(sample)
        HYPERPARAMS_CONVERTER[key] = samplers.convert_params
