"""The one list of our algorithms, and its registration with rl_zoo3."""

from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pgext.algorithms import ISPG, REINFORCE, ClippedCriticPPO
from sb3_pgext.zoo.samplers import (
    convert_params,
    sample_ispg_params,
    sample_ppo_cc_params,
    sample_reinforce_params,
)

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"reinforce": REINFORCE, "ppo_cc": ClippedCriticPPO, "ispg": ISPG}
"""Zoo key and class of each algorithm of sb3-pgext."""

_SAMPLERS = {"reinforce": sample_reinforce_params, "ppo_cc": sample_ppo_cc_params, "ispg": sample_ispg_params}
_CONVERTERS = {"reinforce": convert_params, "ppo_cc": convert_onpolicy_params, "ispg": convert_params}


def register() -> None:
    """Make rl_zoo3 know our algorithms: to train, enjoy and optimise them."""
    ALGOS.update(ALGORITHMS)
    HYPERPARAMS_SAMPLER.update(_SAMPLERS)
    HYPERPARAMS_CONVERTER.update(_CONVERTERS)
