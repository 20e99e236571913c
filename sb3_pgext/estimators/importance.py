r"""Importance weights of whole episodes (lectures 000 and 003; Precup et al. 2000; Veach & Guibas 1995).

Episodes come from a behaviour policy μ, the gradient is for :math:`\pi_\theta`. With
:math:`\ell_t = \log\pi_\theta(a_t|s_t) - \log\mu(a_t|s_t)` the likelihood ratio of an episode's first steps is
:math:`W_{0:t} = \exp \sum_{k \le t} \ell_k`. Weights are constants: a gradient flows through the scores only.

Flat tensors as in :mod:`sb3_pgext.estimators.returns`; definitions in ``docs/mathematics.md`` (section 5). Everything
is done with log-weights, until :func:`importance_weights` makes weights of them.
"""

import math

import torch as th

from sb3_pgext.estimators.returns import discount_weights, discounted_returns, discounted_sum_to_go, last_steps

__all__ = [
    "WEIGHTS",
    "effective_sample_size",
    "effective_share",
    "importance_weights",
    "log_mixture",
    "log_weights",
    "per_decision_credit",
    "per_decision_returns",
    "self_normalized",
]

WEIGHTS = ("trajectory", "per_decision", "causal", "per_step")

MAX_LOG_WEIGHT = 30.0
"""Larger weights saturate: their products with returns and scores, squared, must stay finite in float32."""


def log_weights(weights: str, log_ratio: th.Tensor, episode: th.Tensor) -> th.Tensor:
    r"""
    The log-weight of each step.

    :param weights: ``"trajectory"``: :math:`\log W_{0:T-1}` of the whole episode at each of its steps;
        ``"per_decision"`` and ``"causal"``: :math:`\log W_{0:t}`; ``"per_step"``: :math:`\log\rho_t = \ell_t`
    :param log_ratio: :math:`\ell_t`, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :return: ``(M,)``
    """
    if weights == "per_step":
        return log_ratio
    so_far = discounted_sum_to_go(log_ratio.flip(0), episode.flip(0), 1.0).flip(0)
    return so_far[last_steps(episode)][episode] if weights == "trajectory" else so_far


def log_mixture(log_weights: th.Tensor, shares: th.Tensor) -> th.Tensor:
    r"""
    How much more likely a mixture of K policies makes each step's past than the policy that acted.

    The balance heuristic divides by :math:`\sum_k \frac{n_k}{n} \prod_{j \le t} \pi_k` instead of the likelihood under
    the own policy (Veach & Guibas 1995): subtract this from the log-weight. With ``"per_step"`` it is the mixture of
    the probabilities of the single action, which ignores, as these weights do, how a state is reached.

    :param log_weights: :func:`log_weights` of each of the K policies, ``(K, M)``
    :param shares: the policies' shares of the episodes, :math:`n_k / n`, ``(K,)`` or ``(K, 1)``
    :return: :math:`\log \sum_k \frac{n_k}{n} W^{(k)}`, ``(M,)``
    """
    return th.logsumexp(log_weights + shares.log().view(-1, 1), dim=0)


def self_normalized(weights: str, log_weights: th.Tensor, time: th.Tensor) -> th.Tensor:
    r"""
    Weights divided by their mean over the episodes that are still alive at the time; by that over all episodes for
    ``"trajectory"``.

    Where a single episode is left, its weight becomes 1.

    :param weights: which, see :func:`log_weights`
    :param log_weights: of each step, ``(M,)``
    :param time: time index within the episode, ``(M,)``, integer
    :return: logarithms of the normalised weights, ``(M,)``
    """
    # At time 0 every episode is alive, and its trajectory weight is that of all its steps.
    group = th.zeros_like(time) if weights == "trajectory" else time
    largest = log_weights.new_full(time.shape, -math.inf).scatter_reduce(0, time, log_weights, "amax")
    shifted = (log_weights - largest[time]).exp()
    sums = th.zeros_like(shifted).scatter_add(0, time, shifted)
    counts = th.zeros_like(shifted).scatter_add(0, time, th.ones_like(shifted))
    # The largest goes first: beside a sum of 1e7 the logarithm of the mean would be lost to rounding.
    return log_weights - largest[group] - (sums / counts).log()[group]


def importance_weights(log_weights: th.Tensor) -> th.Tensor:
    """
    The weights themselves. Above e^30 they saturate: there, one episode stands against all others anyway.

    :param log_weights: ``(M,)``
    :return: finite, ``(M,)``
    """
    return log_weights.clamp(max=MAX_LOG_WEIGHT).exp()


def per_decision_returns(
    rewards: th.Tensor,
    weights: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    bootstrap_values: th.Tensor | None = None,
) -> th.Tensor:
    r"""
    The return in which each reward has the weight of the actions that led to it,
    :math:`\sum_{k \ge t} \gamma^{k-t} r_k W_{0:k}` (Precup et al. 2000).

    The value of the state in which an episode was cut, :math:`\gamma^{T-t} V(s_T)`, comes after the last action, and
    has its weight :math:`W_{0:T-1}`.

    :param rewards: r_t, ``(M,)``
    :param weights: :math:`W_{0:t}`, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    if bootstrap_values is not None:
        bootstrap_values = bootstrap_values * weights[last_steps(episode)]
    return discounted_returns(rewards * weights, episode, gamma, bootstrap_values)


def per_decision_credit(
    credit: str,
    rewards: th.Tensor,
    weights: th.Tensor,
    episode: th.Tensor,
    time: th.Tensor,
    gamma: float,
    bootstrap_values: th.Tensor | None = None,
) -> th.Tensor:
    r"""
    The factor of each log-probability's gradient under per-decision weights, before the baseline.

    :param credit: ``"reward_to_go"``: :func:`per_decision_returns`; ``"trajectory"``: the rewards before t too, each
        with the weight of the actions so far, :math:`W_{0:t}`, to keep the score's mean at 0
    :param rewards: r_t, ``(M,)``
    :param weights: :math:`W_{0:t}`, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param time: time index within the episode, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    returns = per_decision_returns(rewards, weights, episode, gamma, bootstrap_values)
    if credit == "reward_to_go":
        return returns
    discounts = discount_weights(time, gamma)
    so_far = discounted_sum_to_go((discounts * rewards).flip(0), episode.flip(0), 1.0).flip(0)
    earlier = th.where(time > 0, so_far.roll(1), 0.0)
    return weights * earlier + discounts * returns


def effective_share(weights: str, log_weights_: th.Tensor, episode: th.Tensor) -> float:
    """
    ESS/N of the episodes' likelihood ratios, whichever weights are used.

    Those of single steps look alive where the policy has become deterministic: most are 1 then.

    :param weights: which, see :func:`log_weights`
    :param log_weights_: of each step, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :return: in [1/N, 1]
    """
    whole = log_weights("trajectory", log_weights_, episode) if weights == "per_step" else log_weights_
    of_episodes = whole[last_steps(episode)]
    return effective_sample_size(of_episodes).item() / len(of_episodes)


def effective_sample_size(log_weights: th.Tensor) -> th.Tensor:
    r"""
    :math:`(\sum W)^2 / \sum W^2`: how many equal weights would have the same variance.

    :param log_weights: one for each episode, or one for each step, ``(K,)``
    :return: scalar, between 1 and K
    """
    relative = (log_weights - log_weights.max()).exp()
    return relative.sum().square() / relative.square().sum()
