"""sb3-pgext: the policy-gradient family that Stable-Baselines3 leaves out."""

from sb3_pgext import envs  # registers the finite environments with gymnasium
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
from sb3_pgext.checkpoints import CheckpointCallback, has_checkpoint, load, resume, save
from sb3_pgext.vec_envs import (
    EnvPoolVecEnv,
    GymnasiumVecEnv,
    HalvesVecEnv,
    TensorVecEnv,
    TensorVecNormalize,
    WorkerVecEnv,
)

__version__ = "0.1.0"

__all__ = [
    "A3C",
    "ISPG",
    "NPG",
    "REINFORCE",
    "VPG",
    "CheckpointCallback",
    "ClippedCriticPPO",
    "DiscreteSAC",
    "EnvPoolVecEnv",
    "ExponentialWeights",
    "GymnasiumVecEnv",
    "HalvesVecEnv",
    "OffPolicyActorCritic",
    "SearchGradient",
    "TensorVecEnv",
    "TensorVecNormalize",
    "WorkerVecEnv",
    "__version__",
    "envs",
    "has_checkpoint",
    "load",
    "resume",
    "save",
]
