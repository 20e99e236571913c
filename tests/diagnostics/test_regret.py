"""Claim: regret is what its definition says, and that of exponential weights is below its bound."""

import numpy as np
import pytest
import torch as th

from benchmarks import regret as study
from sb3_pgext import ExponentialWeights
from sb3_pgext.diagnostics import RegretCallback, exact_return, regret
from sb3_pgext.envs import Bandit, chain, random_mdp


def test_regret_by_hand():
    per_round, cumulative = regret(th.tensor([[1.0, 0.0], [2.0, 3.0]]), th.tensor([2.0, 4.0]))
    assert per_round.tolist() == [[1.0, 4.0], [0.0, 1.0]]
    assert cumulative.tolist() == [[1.0, 4.0], [1.0, 5.0]]


def test_the_value_of_each_rounds_policy():
    mdp, values = random_mdp(), []
    found = RegretCallback(mdp, 0.9)
    model = ExponentialWeights("MlpPolicy", random_mdp(), 0.1, n_steps=20, gamma=0.9, seed=0, device="cpu")
    for _ in range(4):
        values.append(exact_return(model.policy, mdp, 0.9))
        model.learn(20, found, reset_num_timesteps=False)
    assert found.values.shape == (4, 4)
    np.testing.assert_allclose(found.values.numpy() @ mdp.initial, values)
    best = float(found.tables.initial @ found.tables.best_values())
    np.testing.assert_allclose(found.regret[1].numpy() @ mdp.initial, np.cumsum(best - np.array(values)))


def test_the_best_arm_has_no_regret():
    found = RegretCallback(Bandit([0.2, 0.7, 0.5]))
    model = ExponentialWeights("MlpPolicy", Bandit([0.2, 0.7, 0.5]), 0.1, device="cpu")
    model.policy.logits.copy_(th.tensor([[0.0, 200.0, 0.0]]))
    model.learn(3, found)
    assert found.regret[1].abs().max() < 1e-12


def test_bandits_side_by_side_are_independent_runs():
    """Each has the policies that EXP3 has alone on its actions and rewards."""
    seen = []
    model = ExponentialWeights("MlpPolicy", study.numbered_bandits((0.6, 0.4), 3), 0.3, seed=0, device="cpu")

    def note(local, _):
        seen.append((local["actions"].copy(), local["rewards"].copy()))
        return True

    model.learn(30, note)
    for e in range(3):
        policy = np.full(2, 0.5)
        for actions, rewards in seen:
            estimate = np.zeros(2)
            estimate[actions[e]] = rewards[e] / policy[actions[e]]
            policy = policy * np.exp(0.3 * estimate)
            policy /= policy.sum()
        np.testing.assert_allclose(model.policy.logits[e].softmax(0), policy, rtol=1e-4)


@pytest.mark.parametrize("factor", study.FACTORS)
def test_a_few_rounds_are_below_the_bounds(factor):
    results = [study.hedge((0.6, 0.4), factor, 30), study.exp3((0.6, 0.4), factor, 30, 20)]
    results.append(study.exact(chain(3), factor, 30))
    for result in results:
        assert 0 < study.upper_limit(result.cumulative[-1]) < result.bound


@pytest.mark.prove
@pytest.mark.parametrize("factor", study.FACTORS)
@pytest.mark.parametrize("bandit", study.BANDITS)
def test_hedge_and_exp3_are_below_their_bounds(bandit, factor):
    means = study.BANDITS[bandit]
    hedge, exp3 = study.hedge(means, factor, 1000), study.exp3(means, factor, 1000, 100)
    assert (hedge.cumulative[-1] < hedge.bound).all()
    assert study.upper_limit(exp3.cumulative[-1]) < exp3.bound


@pytest.mark.prove
@pytest.mark.parametrize("factor", study.FACTORS)
@pytest.mark.parametrize("mdp", study.MDPS)
def test_exponential_weights_are_below_their_bound_on_finite_mdps(mdp, factor):
    """From each state."""
    result = study.exact(study.MDPS[mdp](), factor, 500)
    assert (result.cumulative[-1] > 0).any()
    assert (result.cumulative[-1] < result.bound).all()
