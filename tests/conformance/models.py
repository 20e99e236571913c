"""
The family and its host, small: an update learns from 20 steps, whichever the algorithm.

SB3's own A2C goes through the same tests: what it does not pass is not asked of the family either. (PPO need not:
ClippedCriticPPO is it, to the bit.) Where A2C is what the family is compared with, only the family goes through.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import A3C, ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO, SearchGradient
from tests.environments import ACTIONS, VECTOR, RewardsAndLimits

FAMILY = {
    REINFORCE: {"n_episodes": 4},
    VPG: {"n_steps": 10, "batch_size": 10},
    NPG: {"n_steps": 10, "batch_size": 10, "n_critic_updates": 2, "cg_max_steps": 3},
    ClippedCriticPPO: {"n_steps": 10, "batch_size": 10, "n_epochs": 2},
    ISPG: {"n_episodes": 4, "gradient_steps": 2, "replay_batches": 1, "min_ess": 0.0},
}
SEARCH = {SearchGradient: {"n_directions": 2}}
WORKERS = {A3C: {"n_steps": 10, "n_workers": 1, "synchronous": True}}
HOSTS = {A2C: {"n_steps": 10}}
UPDATE = 20
"""Steps that an update learns from: 2 sub-environments play 2 episodes of 5 steps each."""


every_algorithm = pytest.mark.parametrize("algorithm", [*FAMILY, *HOSTS], ids=lambda algorithm: algorithm.__name__)
every_learner = pytest.mark.parametrize("algorithm", [*FAMILY, *SEARCH, *WORKERS, *HOSTS], ids=lambda cls: cls.__name__)
"""Also of policies without a critic and a distribution, whose parameters are searched, and of a worker elsewhere."""
every_player = pytest.mark.parametrize("algorithm", [*FAMILY, *SEARCH, *HOSTS], ids=lambda cls: cls.__name__)
"""Those whose environment is this process's, and goes on where it was."""
each_of_ours = pytest.mark.parametrize("algorithm", FAMILY, ids=lambda algorithm: algorithm.__name__)


def in_turn(names, cases):
    """
    Each case with one algorithm of fixed-length rollouts and one of whole episodes, which take turns.

    For what all algorithms have from one place, or from their collector: each case meets both collectors, and each
    algorithm several cases, in a third of the time of all pairs.

    :param names: of the test's arguments, separated by commas
    :param cases: a tuple for each, or values where there is one name
    :return: a parametrization of ``algorithm`` and these arguments
    """
    several = "," in names
    values, ids = [], []
    for i, case in enumerate(cases):
        for algorithm in ((VPG, NPG, ClippedCriticPPO)[i % 3], (REINFORCE, ISPG)[i % 2]):
            values.append((algorithm, *(case if several else [case])))
            ids.append(f"{i if callable(case) else case}-{algorithm.__name__}")
    return pytest.mark.parametrize(("algorithm", *names.split(", ")), values, ids=ids)


def make_env(observation_space=VECTOR, action_space=ACTIONS["discrete"], n_envs=2, **arguments):
    """Sub-environments in Monitors, each with random numbers of its own; every second episode is truncated."""

    def make():
        return RewardsAndLimits(deepcopy(observation_space), deepcopy(action_space))

    return make_vec_env(make, n_envs, **arguments)


def small(algorithm, env=None, policy="MlpPolicy", **arguments):
    """A model that is quick to train."""
    env = make_env() if env is None else env
    return algorithm(
        policy, env, **{"seed": 0, "device": "cpu", **(FAMILY | SEARCH | WORKERS | HOSTS)[algorithm], **arguments}
    )


def sampled(space, n):
    """n observations, as a VecEnv hands them over."""
    space.seed(1)
    rows = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([row[key] for row in rows]) for key in space}
    return np.stack(rows)


def collected(model):
    """The model before an update, its callback as well."""
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def vector_of(model):
    """All parameters."""
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().cpu().clone()


def error_of(action, *names):
    """
    :param action: what fails
    :param names: left out of the message
    :return: type and message of the error, None without one
    """
    try:
        action()
    except Exception as error:
        message = str(error)
        for name in names:
            message = message.replace(name, "…")
        return type(error), message
    return None
