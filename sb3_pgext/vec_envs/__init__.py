"""SB3 VecEnvs over gymnasium's vector environments, envpool, environments that speak tensors, workers and halves."""

from sb3_pgext.vec_envs.envpool_vec_env import EnvPoolVecEnv
from sb3_pgext.vec_envs.gymnasium_vec_env import GymnasiumVecEnv
from sb3_pgext.vec_envs.halves_vec_env import HalvesVecEnv
from sb3_pgext.vec_envs.jax_envs import BraxEnv, GymnasiumTensorEnv
from sb3_pgext.vec_envs.tensor_normalize import TensorVecNormalize
from sb3_pgext.vec_envs.tensors import TensorEnv, TensorStep, TensorVecEnv
from sb3_pgext.vec_envs.torch_envs import TorchCartPole, TorchEnv, TorchMDP
from sb3_pgext.vec_envs.worker_vec_env import WorkerVecEnv

__all__ = [
    "BraxEnv",
    "EnvPoolVecEnv",
    "GymnasiumTensorEnv",
    "GymnasiumVecEnv",
    "HalvesVecEnv",
    "TensorEnv",
    "TensorStep",
    "TensorVecEnv",
    "TensorVecNormalize",
    "TorchCartPole",
    "TorchEnv",
    "TorchMDP",
    "WorkerVecEnv",
]
