"""The one list of our algorithms, and its registration with rl_zoo3."""

from collections.abc import Callable
from typing import Any

from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pgext.algorithms import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.zoo import samplers

_REGISTERED: dict[str, tuple[type[BaseAlgorithm], samplers.Sampler, Callable[..., Any]]] = {
    "reinforce": (REINFORCE, samplers.sampler(samplers.sample_reinforce), samplers.convert_params),
    "vpg": (VPG, samplers.sampler(samplers.sample_vpg), samplers.convert_params),
    "npg": (NPG, samplers.sampler(samplers.sample_npg), samplers.convert_params),
    "ppo_cc": (ClippedCriticPPO, samplers.sample_ppo_cc, convert_onpolicy_params),
    "ispg": (ISPG, samplers.sampler(samplers.sample_ispg), samplers.convert_params),
}
"""Zoo key → class, what optuna samples for it, and what makes constructor arguments of that."""

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {key: algorithm for key, (algorithm, _, _) in _REGISTERED.items()}
"""Zoo key and class of each algorithm of sb3-pgext."""


def register() -> None:
    """Make rl_zoo3 know our algorithms: to train, enjoy and optimise them."""
    for key, (algorithm, sampler, converter) in _REGISTERED.items():
        ALGOS[key] = algorithm
        HYPERPARAMS_SAMPLER[key] = sampler
        HYPERPARAMS_CONVERTER[key] = converter
