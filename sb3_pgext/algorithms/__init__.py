"""One file per algorithm, each reading like its pseudo-code."""

from sb3_pgext.algorithms.a3c import A3C
from sb3_pgext.algorithms.es import SearchGradient
from sb3_pgext.algorithms.ew import ExponentialWeights
from sb3_pgext.algorithms.ispg import ISPG
from sb3_pgext.algorithms.npg import NPG
from sb3_pgext.algorithms.opac import OffPolicyActorCritic
from sb3_pgext.algorithms.ppo_cc import ClippedCriticPPO
from sb3_pgext.algorithms.reinforce import REINFORCE
from sb3_pgext.algorithms.sacd import DiscreteSAC
from sb3_pgext.algorithms.vpg import VPG

__all__ = [
    "A3C",
    "ISPG",
    "NPG",
    "REINFORCE",
    "VPG",
    "ClippedCriticPPO",
    "DiscreteSAC",
    "ExponentialWeights",
    "OffPolicyActorCritic",
    "SearchGradient",
]
