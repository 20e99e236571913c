"""One file per algorithm, each reading like its pseudo-code."""

from sb3_pgext.algorithms.ispg import ISPG
from sb3_pgext.algorithms.ppo_cc import ClippedCriticPPO
from sb3_pgext.algorithms.reinforce import REINFORCE

__all__ = ["ISPG", "REINFORCE", "ClippedCriticPPO"]
