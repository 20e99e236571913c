"""SB3 VecEnvs over gymnasium's vector environments and envpool, in a worker process, and in two halves."""

from sb3_pgext.vec_envs.envpool_vec_env import EnvPoolVecEnv
from sb3_pgext.vec_envs.gymnasium_vec_env import GymnasiumVecEnv
from sb3_pgext.vec_envs.halves_vec_env import HalvesVecEnv
from sb3_pgext.vec_envs.worker_vec_env import WorkerVecEnv

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv", "HalvesVecEnv", "WorkerVecEnv"]
