"""SB3 VecEnvs over gymnasium's vector environments and envpool."""

from sb3_pgext.vec_envs.envpool_vec_env import EnvPoolVecEnv
from sb3_pgext.vec_envs.gymnasium_vec_env import GymnasiumVecEnv

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv"]
