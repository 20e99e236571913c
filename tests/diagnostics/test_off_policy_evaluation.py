"""
Claim: a policy's return is estimated from another's episodes as the three definitions say, and the 95 % intervals cover
the true one in 93 to 97 % of 1,000 repetitions.
"""

import numpy as np
import pytest
import torch as th

from sb3_pgext import ISPG
from sb3_pgext.diagnostics import evaluate_off_policy, exact_return
from sb3_pgext.envs import random_mdp
from sb3_pgext.rollouts import EpisodeDataset
from tests.diagnostics.sampler import Behaviour, ispg_on, sample_episodes

GAMMA = 0.9


def dataset_of(mdp, mu, n_episodes, rng):
    episodes = sample_episodes(mdp, mu.probabilities.numpy(), n_episodes, rng)
    return EpisodeDataset(episodes, mu.probabilities.log()[episodes.observations, episodes.actions].float())


def laboratory(kl):
    mdp = random_mdp(2, end_probability=0.1, horizon=5)
    model = ispg_on(mdp, gamma=GAMMA)
    return mdp, model, Behaviour(model, mdp, kl, 2)


def test_the_estimates_are_those_of_the_definitions():
    mdp, model, mu = laboratory(0.3)
    dataset = dataset_of(mdp, mu, 40, np.random.default_rng(0))
    dataset.episodes.bootstrap_values[7] = 3.0  # which nobody has earned
    e = dataset.episodes
    with th.no_grad():
        pi = model.policy.get_distribution(e.observations).log_prob(e.actions).double().exp().tolist()
    acted = dataset.log_prob.double().exp().tolist()
    W, G, per_decision, step = [], [], [], 0
    for length in e.lengths.tolist():
        weight, total, weighted_total = 1.0, 0.0, 0.0
        for t in range(length):
            weight *= pi[step] / acted[step]
            total += GAMMA**t * e.rewards[step].item()
            weighted_total += GAMMA**t * e.rewards[step].item() * weight
            step += 1
        W.append(weight)
        G.append(total)
        per_decision.append(weighted_total)
    W, G = np.array(W), np.array(G)
    result = evaluate_off_policy(model, dataset)
    assert result.ordinary.value == pytest.approx((W * G).mean(), rel=1e-5)
    assert result.per_decision.value == pytest.approx(np.mean(per_decision), rel=1e-5)
    assert result.weighted.value == pytest.approx((W * G).sum() / W.sum(), rel=1e-5)
    assert result.ess == pytest.approx(W.sum() ** 2 / (W**2).sum(), rel=1e-5)
    assert result.n_episodes == 40
    assert result.ordinary.high - result.ordinary.value == pytest.approx(1.96 * (W * G).std(ddof=1) / 40**0.5, rel=1e-4)
    # The jackknife's error of a ratio is nearly that of the delta method.
    without_one = ((W * G).sum() - W * G) / (W.sum() - W)
    error = (39 * without_one.var()) ** 0.5
    assert result.weighted.value - result.weighted.low == pytest.approx(1.96 * error, rel=0.1)


def test_a_single_episode_is_refused():
    mdp, model, mu = laboratory(0.3)
    with pytest.raises(ValueError, match="number of episodes=1: allowed is at least 2"):
        evaluate_off_policy(model, dataset_of(mdp, mu, 1, np.random.default_rng(0)))


def test_the_intervals_cover_the_true_return():
    """1,000 times 400 episodes."""
    mdp, model, mu = laboratory(0.05)
    truth = exact_return(model.policy, mdp, GAMMA)
    rng, covered = np.random.default_rng(0), []
    for _ in range(1000):
        result = evaluate_off_policy(model, dataset_of(mdp, mu, 400, rng))
        assert result.ess > 100
        intervals = (result.ordinary, result.per_decision, result.weighted)
        covered.append([interval.low <= truth <= interval.high for interval in intervals])
    coverage = np.mean(covered, axis=0)
    assert ((coverage >= 0.93) & (coverage <= 0.97)).all(), coverage


def test_more_data_is_needed_where_the_weights_have_died():
    """And nothing is NaN: log-ratios of ±1e4."""
    mdp, model, mu = laboratory(0.05)
    dataset = dataset_of(mdp, mu, 50, np.random.default_rng(0))
    noise = 1e4 * th.randn(len(dataset.log_prob), generator=th.Generator().manual_seed(0))
    for log_prob in (dataset.log_prob + noise, dataset.log_prob - noise):
        result = evaluate_off_policy(model, EpisodeDataset(dataset.episodes, log_prob))
        for interval in (result.ordinary, result.per_decision, result.weighted):
            assert np.isfinite([interval.low, interval.value, interval.high]).all()
        assert 1 <= result.ess < 2


def test_noise_that_steps_share_is_refused():
    model = ISPG("MlpPolicy", "Pendulum-v1", n_episodes=2, use_sde=True, device="cpu").learn(1)
    with pytest.raises(ValueError, match="sde_sample_freq=-1: allowed is 1"):
        evaluate_off_policy(model, model.dataset())


def test_the_policy_keeps_its_mode():
    """The estimates are those without dropout all the same."""
    mdp, model, mu = laboratory(0.05)
    dataset = dataset_of(mdp, mu, 10, np.random.default_rng(0))
    before = evaluate_off_policy(model, dataset)
    model.policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))
    model.policy.set_training_mode(True)
    assert evaluate_off_policy(model, dataset) == before
    assert all(module.training for module in model.policy.modules())
