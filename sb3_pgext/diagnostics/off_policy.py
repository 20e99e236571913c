"""Estimates of a policy's return from episodes that others played (``docs/mathematics.md``, section 5)."""

from dataclasses import dataclass

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext.diagnostics.statistics import Interval
from sb3_pgext.engine import evaluation_mode
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


def evaluate_off_policy(model: OnPolicyAlgorithm, dataset: EpisodeDataset) -> OffPolicyEvaluation:
    """
    Estimate the return of a model's policy from episodes of another policy.

    The intervals are 1.96 standard errors over episodes wide to each side; that of the weighted estimate is the delta
    method's (Owen 2013, Monte Carlo theory, methods and examples, section 9.2). They know only what is in the
    data: where the ESS is a small part of N, what the policy would do has hardly been seen, and they are too narrow.

    :param model: whose policy and γ
    :param dataset: episodes and the log-probabilities of the policy that played them
    :return: the estimates
    :raises ValueError: the dataset does not fit the model, or has a single episode, which tells of no error, or the
        model has gSDE whose noise several steps share
    """
    dataset = require_suitable(dataset, model)
    episodes = dataset.episodes
    if episodes.n_episodes < 2:
        raise ValueError(f"number of episodes={episodes.n_episodes}: allowed is at least 2")
    if model.use_sde and model.sde_sample_freq != 1:
        # Noise that several steps share makes the likelihood of an episode another than the product of its steps'.
        raise ValueError(f"sde_sample_freq={model.sde_sample_freq}: allowed is 1 with use_sde=True")
    with evaluation_mode(model.policy), th.no_grad():
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

    ones = th.ones_like(relative)
    numerators = th.stack([weights * returns, per_decision, relative * returns], dim=1)
    denominators = th.stack([ones, ones, relative], dim=1)
    values = numerators.sum(0) / denominators.sum(0)
    n_episodes = len(numerators)
    # A ratio of means moves with an episode as a mean of these does: the delta method.
    influences = (numerators - values * denominators) / denominators.mean(0)
    errors = 1.96 * influences.std(0) / n_episodes**0.5
    ordinary, by_decision, weighted = (
        Interval(v, v - e, v + e) for v, e in zip(values.tolist(), errors.tolist(), strict=True)
    )
    return OffPolicyEvaluation(ordinary, by_decision, weighted, effective_sample_size(log_w).item(), n_episodes)
