"""Small environments, on which the truth can be computed; registered as ``sb3_pgext/…-v0``."""

import gymnasium as gym

from sb3_pgext.envs.bandit import Bandit, ContinuousBandit
from sb3_pgext.envs.tabular import TabularMDP, chain, gridworld, random_mdp

__all__ = ["Bandit", "ContinuousBandit", "TabularMDP", "chain", "gridworld", "random_mdp"]

gym.register("sb3_pgext/Bandit-v0", entry_point="sb3_pgext.envs.bandit:Bandit")
gym.register("sb3_pgext/ContinuousBandit-v0", entry_point="sb3_pgext.envs.bandit:ContinuousBandit")
gym.register("sb3_pgext/RandomMDP-v0", entry_point="sb3_pgext.envs.tabular:random_mdp")
gym.register("sb3_pgext/Chain-v0", entry_point="sb3_pgext.envs.tabular:chain")
gym.register("sb3_pgext/Gridworld-v0", entry_point="sb3_pgext.envs.tabular:gridworld")
