"""Claim: ``learning_rate_kl_target`` changes the next learning rate by how far an update moved the policy."""

import copy

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from sb3_pgext import ISPG, REINFORCE, VPG, ClippedCriticPPO
from sb3_pgext.estimators.surrogates import approximate_kl

SMALL = {
    REINFORCE: {"n_episodes": 4},
    ISPG: {"n_episodes": 4, "gradient_steps": 3, "min_ess": 0.0},
    VPG: {"n_steps": 32},
    ClippedCriticPPO: {"n_steps": 32, "n_epochs": 2, "batch_size": 16},
}
algorithms = pytest.mark.parametrize("algorithm", SMALL, ids=lambda x: x.__name__)


def model_on(algorithm, **options):
    arguments = {"learning_rate": 3e-3, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **arguments | SMALL[algorithm] | options)


def three_updates(model):
    """:return: the learning rates that were used"""
    used, train = [], model.train

    def recording():
        train()
        used.append(model.policy.optimizer.param_groups[0]["lr"])
        assert model.logger.name_to_value["train/learning_rate"] == used[-1]
        if len(used) == 3:
            model.num_timesteps = model._total_timesteps

    model.train = recording
    model.learn(10**6)
    return used


@algorithms
@pytest.mark.parametrize(("kl_target", "factor"), [(1e6, 1.5), (1e-12, 1 / 1.5)], ids=["too_short", "too_long"])
def test_the_learning_rate_adapts(algorithm, kl_target, factor):
    model = model_on(algorithm, learning_rate_kl_target=kl_target)
    assert three_updates(model) == pytest.approx([3e-3, 3e-3 * factor, 3e-3 * factor**2])
    assert model.learning_rate_factor == pytest.approx(factor**3)


@algorithms
def test_it_stays_where_the_divergence_is_as_wanted(algorithm):
    """The divergence is that between the policy that acted and the one after the update, on what was played."""
    model = model_on(algorithm, learning_rate_kl_target=1e-3)
    before = copy.deepcopy(model.policy)
    three = model.train

    def once():
        three()
        model.num_timesteps = model._total_timesteps

    model.train = once
    model.learn(10**6)
    kl = model.logger.name_to_value["train/kl"]
    batch = model.episodes if hasattr(model, "episodes") else model.rollout
    with th.no_grad():
        new, old = (p.evaluate_actions(batch.observations, batch.actions)[1] for p in (model.policy, before))
    if algorithm is not ClippedCriticPPO:  # whose estimate is of the minibatches of the last epoch, as SB3's is
        assert kl == pytest.approx(approximate_kl(new - old).mean().item(), rel=1e-3)
    assert kl > 0
    other = model_on(algorithm, learning_rate_kl_target=1.9 * kl)
    assert three_updates(other)[:2] == [3e-3, 3e-3]


def test_it_is_a_factor_of_the_schedule():
    model = model_on(VPG, learning_rate=LinearSchedule(1e-2, 4e-3, 1.0), learning_rate_kl_target=1e6)
    model.learn(4 * 64)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1.5**3 * 4e-3)


def test_an_update_that_fails_leaves_it_alone(monkeypatch):
    model = model_on(VPG, learning_rate_kl_target=1e6).learn(64)
    assert model.learning_rate_factor == 1.5
    monkeypatch.setattr(model, "_fit_critic", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.learn(64, reset_num_timesteps=False)
    assert model.learning_rate_factor == 1.5


@algorithms
def test_wrong_targets(algorithm):
    with pytest.raises(ValueError, match=r"learning_rate_kl_target=0.*> 0"):
        model_on(algorithm, learning_rate_kl_target=0)
