"""What a policy would have earned, from episodes that others played (``docs/mathematics.md``, section 5)."""

from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext.diagnostics.statistics import Interval
from sb3_pgext.estimators.importance import (
    effective_sample_size,
    importance_weights,
    log_weights,
    per_decision_returns,
)
from sb3_pgext.estimators.returns import discounted_returns
from sb3_pgext.rollouts.dataset import EpisodeDataset, require_suitable

__all__ = ["OffPolicyEvaluation", "evaluate_off_policy"]


@dataclass(frozen=True)
class OffPolicyEvaluation:
    r"""
    Estimates of :math:`J = E[\sum_t \gamma^t r_t]`, each with its 95 % interval.

    The sum is over the steps that were recorded: where an episode was cut by a limit, J is the return up to there.

    :param ordinary: mean of :math:`W_{0:T-1} G_0`; unbiased
    :param per_decision: mean of :math:`\sum_t \gamma^t r_t W_{0:t}`; unbiased
    :param weighted: :math:`\sum W_{0:T-1} G_0 / \sum W_{0:T-1}`; biased by the size of the batch, of less variance
    :param ess: effective sample size of the weights :math:`W_{0:T-1}`, between 1 and ``n_episodes``
    :param n_episodes: N
    """

    ordinary: Interval
    per_decision: Interval
    weighted: Interval
    ess: float
    n_episodes: int


def evaluate_off_policy(
    model: OnPolicyAlgorithm, dataset: EpisodeDataset, n_resamples: int = 1000, seed: int = 0
) -> OffPolicyEvaluation:
    """
    Estimate the return of a model's policy from episodes of another policy.

    The intervals are percentiles of the bootstrap over episodes. They know only what is in the data: where the ESS is a
    small part of N, what the policy would do has hardly been seen, and the intervals are too narrow.

    :param model: whose policy and γ
    :param dataset: episodes and the log-probabilities of the policy that played them
    :param n_resamples: resamples of the bootstrap
    :param seed: of the bootstrap
    :return: the estimates
    :raises ValueError: the dataset does not fit the model
    """
    dataset = require_suitable(dataset, model)
    episodes = dataset.episodes
    model.policy.set_training_mode(False)
    with th.no_grad():
        log_prob = model.policy.get_distribution(episodes.observations).log_prob(episodes.actions)
    first, log_ratio = episodes.time == 0, (log_prob - dataset.log_prob).double()
    log_w = log_weights("trajectory", log_ratio, episodes.episode)[first]
    weights = importance_weights(log_w)
    so_far = importance_weights(log_weights("per_decision", log_ratio, episodes.episode))
    # No V(s_T): that of the behaviour's critic would be a guess about another policy, and count as if it were earned.
    arguments = episodes.episode, model.gamma
    returns = discounted_returns(episodes.rewards, *arguments)[first]
    per_decision = per_decision_returns(episodes.rewards, so_far, *arguments)[first]
    # Weights of which one is e^1000 times the other have a ratio all the same.
    relative = (log_w - log_w.max()).exp()

    numerators = th.stack([weights * returns, per_decision, relative * returns], dim=1).numpy(force=True)
    ones = th.ones_like(relative)
    denominators = th.stack([ones, ones, relative], dim=1).numpy(force=True)
    n_episodes = len(numerators)
    generator = np.random.default_rng(seed)
    # How often each episode is in each resample, by counting indices: several times as fast as multinomial draws.
    indices = generator.integers(n_episodes, size=(n_resamples, n_episodes))
    rows = n_episodes * np.arange(n_resamples)[:, None]
    drawn = np.bincount((indices + rows).ravel(), minlength=n_resamples * n_episodes)
    drawn = drawn.reshape(n_resamples, n_episodes).astype(float)
    values = numerators.sum(0) / denominators.sum(0)
    # A resample without any weight at all counts as 0.
    of_resamples = (drawn @ numerators) / np.maximum(drawn @ denominators, np.finfo(float).tiny)
    low, high = np.quantile(of_resamples, [0.025, 0.975], axis=0)
    ordinary, by_decision, weighted = (
        Interval(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)
    )
    return OffPolicyEvaluation(ordinary, by_decision, weighted, effective_sample_size(log_w).item(), n_episodes)
