"""Returns, advantages and critic targets of a batch of episodes, or of the segments of a rollout.

Every function takes flat tensors: one entry per step, shape ``(M,)``, the steps of an episode next to each other and
in order of time, ``episode`` naming the episode ``0 … N-1`` of each step. Nothing is padded and there is no loop over
steps. The definitions are those of ``docs/mathematics.md`` (sections "Notation", 3 and 4).
"""

import torch as th

__all__ = [
    "critic_advantages",
    "critic_targets",
    "discount_weights",
    "discounted_returns",
    "discounted_sum_to_go",
    "generalized_advantages",
    "lambda_returns",
    "last_steps",
    "monte_carlo_advantages",
    "n_step_advantages",
    "next_values",
    "td_errors",
    "trajectory_returns",
]


def discounted_sum_to_go(x: th.Tensor, episode: th.Tensor, discount: float, n_steps: int | None = None) -> th.Tensor:
    r"""
    The reverse discounted cumulative sum within each episode, :math:`y_t = \sum_{k \ge t} d^{k-t} x_k`, or that of the
    next n steps only.

    Computed by doubling: after pass :math:`j` each entry holds the sum over its next :math:`2^j` steps, so
    :math:`\log_2 M` vectorised passes suffice, without the division by :math:`d^t` that makes
    a plain cumulative sum underflow on long episodes. The sum over n steps is put together from those over the powers
    of two in n, without the difference of two long sums that would cancel.

    :param x: what is summed, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param discount: :math:`d`, in [0, 1]
    :param n_steps: n, at least 1; None for all steps to the end of the episode
    :return: the sums, ``(M,)``
    """
    to_the_end = 1 << (len(x) - 1).bit_length() if discount > 0.0 else 1
    n_steps = to_the_end if n_steps is None else min(n_steps, to_the_end)
    total, summed = x, 0
    doubled, shift = x, 1
    while True:
        if n_steps & shift:
            total = doubled if summed == 0 else total + discount**summed * _later(doubled, episode, summed)
            summed += shift
        if summed == n_steps:
            return total
        doubled, shift = doubled + discount**shift * _later(doubled, episode, shift), 2 * shift


def _later(x: th.Tensor, episode: th.Tensor, n_steps: int) -> th.Tensor:
    """x_{t+n} where the episode still goes on then, else 0, ``(M,)``."""
    same_episode = episode[n_steps:] == episode[:-n_steps]
    return th.cat([th.where(same_episode, x[n_steps:], 0.0), x.new_zeros(n_steps)])


def last_steps(episode: th.Tensor) -> th.Tensor:
    """
    Find the last step of each episode.

    :param episode: episode of each step, ``(M,)``, integer
    :return: boolean, ``(M,)``
    """
    last = th.ones_like(episode, dtype=th.bool)
    last[:-1] = episode[1:] != episode[:-1]
    return last


def next_values(values: th.Tensor, episode: th.Tensor, bootstrap_values: th.Tensor) -> th.Tensor:
    """
    V(s_{t+1}) of each step: the next step's value, and after an episode's last step its bootstrap value.

    :param values: V(s_t), ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    return th.where(last_steps(episode), bootstrap_values[episode], values.roll(-1))


def discounted_returns(
    rewards: th.Tensor, episode: th.Tensor, gamma: float, bootstrap_values: th.Tensor | None = None
) -> th.Tensor:
    r"""
    The return from each step on, :math:`G_t = \sum_{k \ge t} \gamma^{k-t} r_k \; [+ \gamma^{T-t} V(s_T)]`.

    :param rewards: r_t, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    if bootstrap_values is not None:
        rewards = rewards + gamma * th.where(last_steps(episode), bootstrap_values[episode], 0.0)
    return discounted_sum_to_go(rewards, episode, gamma)


def trajectory_returns(returns: th.Tensor, time: th.Tensor) -> th.Tensor:
    r"""
    The return of each whole episode, :math:`R(\tau) = G_0`.

    :param returns: G_t, ``(M,)``
    :param time: time index within the episode, ``(M,)``, integer
    :return: ``(N,)``
    """
    return returns[time == 0]


def discount_weights(time: th.Tensor, gamma: float) -> th.Tensor:
    r"""
    :math:`w_t = \gamma^t`, which makes the sum of scores the gradient of the discounted return (lecture 004).

    :param time: time index within the episode, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :return: ``(M,)``
    """
    return th.pow(gamma, time)


def td_errors(
    rewards: th.Tensor, values: th.Tensor, episode: th.Tensor, gamma: float, bootstrap_values: th.Tensor
) -> th.Tensor:
    r"""
    :math:`\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)` (lecture 002).

    :param rewards: r_t, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    return rewards + gamma * next_values(values, episode, bootstrap_values) - values


def monte_carlo_advantages(
    rewards: th.Tensor, values: th.Tensor, episode: th.Tensor, gamma: float, bootstrap_values: th.Tensor
) -> th.Tensor:
    r"""
    :math:`\Psi_t = G_t - V(s_t)` (lecture 002).

    :param rewards: r_t, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    return discounted_returns(rewards, episode, gamma, bootstrap_values) - values


def n_step_advantages(
    rewards: th.Tensor,
    values: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    n_step: int,
    bootstrap_values: th.Tensor,
) -> th.Tensor:
    r"""
    :math:`\Psi_t = \sum_{k<n} \gamma^k r_{t+k} + \gamma^n V(s_{t+n}) - V(s_t)`, cut at the end of the episode (lecture
    002). All values but the first and the last cancel in :math:`\sum_{k<n} \gamma^k \delta_{t+k}`, which is the same.

    :param rewards: r_t, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param n_step: n, at least 1: the larger, the less bias and the more variance
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    delta = td_errors(rewards, values, episode, gamma, bootstrap_values)
    return discounted_sum_to_go(delta, episode, gamma, n_step)


def generalized_advantages(
    rewards: th.Tensor,
    values: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: th.Tensor,
) -> th.Tensor:
    r"""
    :math:`\Psi_t = \sum_k (\gamma\lambda)^k \delta_{t+k}` (lecture 002; Schulman et al. 2016, eq. 16).

    :param rewards: r_t, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param gae_lambda: trade-off between bias (0) and variance (1), in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    delta = td_errors(rewards, values, episode, gamma, bootstrap_values)
    return discounted_sum_to_go(delta, episode, gamma * gae_lambda)


def lambda_returns(
    rewards: th.Tensor,
    values: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: th.Tensor,
) -> th.Tensor:
    r"""
    The TD(λ) target of the critic, :math:`y_t = \Psi^{GAE}_t + V(s_t)` (lecture 002).

    λ = 0 is the one-step target :math:`r_t + \gamma V(s_{t+1})`, λ = 1 the Monte-Carlo return :math:`G_t`.

    :param rewards: r_t, ``(M,)``
    :param values: V(s_t) of the critic as it was before this batch is fitted, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param gae_lambda: λ, in [0, 1]
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    return generalized_advantages(rewards, values, episode, gamma, gae_lambda, bootstrap_values) + values


def critic_advantages(
    advantage: str,
    rewards: th.Tensor,
    values: th.Tensor,
    q_values: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    lookahead: int,
    bootstrap_values: th.Tensor,
) -> th.Tensor:
    r"""
    :math:`\Psi_t` with a critic of V (lecture 002) or of Q (lecture 004, "possible estimators").

    A critic of Q continues the rewards by the action that was taken, :math:`\sum_{k<n} \gamma^k r_{t+k} + \gamma^n
    Q(s_{t+n}, a_{t+n}) - E_{a\sim\pi} Q(s_t, a)`; no reward at all is :math:`Q(s_t, a_t) - E_{a\sim\pi} Q(s_t, a)`.

    :param advantage: ``"mc"``, ``"td"``, ``"n_step"``, or ``"q"``: no reward
    :param rewards: r_t, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param q_values: Q(s_t, a_t), ``(M,)``; V(s_t) again of a critic of V
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param lookahead: n of ``"n_step"``
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :return: ``(M,)``
    """
    if advantage == "mc":
        return monte_carlo_advantages(rewards, values, episode, gamma, bootstrap_values)
    if advantage == "q":
        return q_values - values
    n_step = lookahead if advantage == "n_step" else 1
    return n_step_advantages(rewards, q_values, episode, gamma, n_step, bootstrap_values) + (q_values - values)


def critic_targets(
    target: str,
    rewards: th.Tensor,
    values: th.Tensor,
    episode: th.Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: th.Tensor,
    q_values: th.Tensor | None = None,
    lookahead: int = 1,
) -> th.Tensor:
    r"""
    The targets that the critic is fitted to (lectures 000, 002, 004; van Seijen et al. 2009).

    :param target: ``"mc"``: :math:`G_t`; ``"td"``: :math:`r_t + \gamma V(s_{t+1})`, fitted V iteration;
        ``"lambda"``: :math:`\Psi^{GAE}_t + V(s_t)`; of Q also ``"expected_sarsa"``, which is ``"td"`` with
        :math:`V = E_{a\sim\pi} Q`; ``"sarsa"``: :math:`r_t + \gamma Q(s_{t+1}, a_{t+1})`; ``"n_step"``: n rewards,
        then Q
    :param rewards: r_t, ``(M,)``
    :param values: V(s_t) of the critic as it was before this batch is fitted, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param gamma: discount, in [0, 1]
    :param gae_lambda: λ of ``"lambda"``
    :param bootstrap_values: V(s_T) of episodes that were cut and are bootstrapped, 0 for all others, ``(N,)``
    :param q_values: Q(s_t, a_t) of a critic of Q, ``(M,)``
    :param lookahead: n of ``"n_step"``
    :return: y_t, ``(M,)``
    """
    if target == "mc":
        return discounted_returns(rewards, episode, gamma, bootstrap_values)
    if target in ("sarsa", "n_step"):
        assert q_values is not None
        n_step = lookahead if target == "n_step" else 1
        return n_step_advantages(rewards, q_values, episode, gamma, n_step, bootstrap_values) + q_values
    gae_lambda = gae_lambda if target == "lambda" else 0.0
    return lambda_returns(rewards, values, episode, gamma, gae_lambda, bootstrap_values)
