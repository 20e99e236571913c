"""The one list of our algorithms, and its registration with rl_zoo3."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pgext.algorithms import (
    A3C,
    ISPG,
    NPG,
    REINFORCE,
    VPG,
    ClippedCriticPPO,
    DiscreteSAC,
    ExponentialWeights,
    OffPolicyActorCritic,
    SearchGradient,
)
from sb3_pgext.zoo import samplers

_REGISTERED: dict[str, tuple[type[BaseAlgorithm], Callable[[Mapping[str, Any]], samplers.Space]]] = {
    "reinforce": (REINFORCE, samplers.reinforce_space),
    "vpg": (VPG, samplers.vpg_space),
    "npg": (NPG, samplers.npg_space),
    "ppo_cc": (ClippedCriticPPO, samplers.ppo_cc_space),
    "ispg": (ISPG, samplers.ispg_space),
    "opac": (OffPolicyActorCritic, samplers.opac_space),
    "sacd": (DiscreteSAC, samplers.sacd_space),
    "es": (SearchGradient, samplers.es_space),
    "ew": (ExponentialWeights, samplers.ew_space),
    "a3c": (A3C, samplers.a3c_space),
}
"""Zoo key → class, and its search space."""

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {key: algorithm for key, (algorithm, _) in _REGISTERED.items()}
"""Zoo key and class of each algorithm of sb3-pgext."""


def register() -> None:
    """Make rl_zoo3 know our algorithms: to train, enjoy and optimise them."""
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    for key, (algorithm, space) in _REGISTERED.items():
        critic = "qf" if issubclass(algorithm, OffPolicyAlgorithm) else "vf"
        convert = partial(samplers.convert_params, critic=critic)
        ALGOS[key] = algorithm
        HYPERPARAMS_SAMPLER[key] = samplers.sampler(space, convert)
        HYPERPARAMS_CONVERTER[key] = convert
