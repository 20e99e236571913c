"""
Claim: programs around SB3's algorithms run with ours, without a change, and with ClippedCriticPPO as with PPO.

Here is what the environment of the tests has; ``benchmarks/clients.py`` has those that must be installed beside it.
"""

import optuna
import pytest
import torch as th
from rl_zoo3.callbacks import TrialEvalCallback
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_pgext import ISPG, NPG, REINFORCE, VPG, ClippedCriticPPO

BY_STEPS = {"n_steps": 50, "batch_size": 50}
SMALL = {
    PPO: BY_STEPS | {"n_epochs": 2},
    REINFORCE: {"n_episodes": 2},
    VPG: BY_STEPS,
    NPG: BY_STEPS,
    ClippedCriticPPO: BY_STEPS | {"n_epochs": 2},
    ISPG: {"n_episodes": 2, "gradient_steps": 2},
}
family = pytest.mark.parametrize("algorithm", list(SMALL)[1:], ids=lambda algorithm: algorithm.__name__)


def model_of(algorithm, env, **options):
    kwargs = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    return algorithm("MlpPolicy", env, **kwargs | SMALL[algorithm] | options)


def vector_of(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def with_time_feature(algorithm):
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, wrapper_class=TimeFeatureWrapper)
    model = model_of(algorithm, env)
    start = vector_of(model)
    found = vector_of(model.learn(200))
    assert model.observation_space.shape == (4,)
    assert found.isfinite().all()
    assert not th.equal(found, start)
    return found


@family
def test_contribs_time_feature(algorithm):
    found = with_time_feature(algorithm)
    if algorithm is ClippedCriticPPO:
        assert th.equal(found, with_time_feature(PPO))


def pruned_study(algorithm):
    """Three trials of rl_zoo3's callback, whose pruner goes on with the better half."""
    lengths = []

    def objective(trial):
        learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        model = model_of(algorithm, make_vec_env("Pendulum-v1", n_envs=2, seed=0), learning_rate=learning_rate)
        eval_env = make_vec_env("Pendulum-v1", seed=1)
        callback = TrialEvalCallback(eval_env, trial, n_eval_episodes=1, eval_freq=200)
        model.learn(800, callback=callback)
        lengths.append(model.num_timesteps)
        assert callback.is_pruned or model.num_timesteps == 800
        if callback.is_pruned:
            raise optuna.TrialPruned
        return callback.last_mean_reward

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner, direction="maximize")
    study.optimize(objective, n_trials=3)
    assert optuna.trial.TrialState.PRUNED in {trial.state for trial in study.trials}
    return lengths, [trial.intermediate_values for trial in study.trials]


@family
def test_optunas_pruning(algorithm):
    """The trial stops where its pruner says so, and reports what it reports with PPO."""
    found = pruned_study(algorithm)
    if algorithm is ClippedCriticPPO:
        assert found == pruned_study(PPO)
