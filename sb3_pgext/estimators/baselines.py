"""Baselines: what is subtracted from the return to reduce the variance of the score-function estimator.

With ``leave_one_out`` the baseline of an episode is computed from the other episodes only. It is then independent of
the episode's own actions, so that the estimator stays exactly unbiased; otherwise the episode's own return correlates
with its score. Flat tensors as in :mod:`sb3_pgext.estimators.returns`; definitions in ``docs/mathematics.md``
(section 2; lectures 000 and 003; Peters & Schaal 2008).

``group`` names episodes that are left out together: those with the same number.
"""

from collections.abc import Callable

import torch as th

from sb3_pgext.estimators.returns import discounted_sum_to_go, next_values

__all__ = ["constant_baseline", "leave_one_out_sum", "optimal_baseline", "time_baseline"]


def leave_one_out_sum(x: th.Tensor, group: th.Tensor | None = None) -> th.Tensor:
    r"""
    For each row the sum over all other rows, :math:`y_i = \sum_{j \ne i} x_j`.

    The sums before and after the row are added, rather than the row subtracted from the total: nothing is lost to
    rounding when one row dominates.

    :param x: ``(N, …)``
    :param group: of each row: the sum is over the rows of the other groups, ``(N,)``, integer; None for one row each
    :return: ``(N, …)``
    """
    if group is not None:
        return leave_one_out_sum(_sums(x, group))[group]
    before, after = th.zeros_like(x), th.zeros_like(x)
    before[1:] = x.cumsum(0)[:-1]
    after[:-1] = x.flip(0).cumsum(0).flip(0)[1:]
    return before + after


def _sums(x: th.Tensor, group: th.Tensor) -> th.Tensor:
    """The sum over the rows of each group 0, 1, …"""
    return x.new_zeros(int(group.max()) + 1, *x.shape[1:]).index_add(0, group, x)


def constant_baseline(
    returns: th.Tensor, episode: th.Tensor, leave_one_out: bool, group: th.Tensor | None = None
) -> th.Tensor:
    r"""
    The mean return, one constant for all steps: :math:`b = \mathrm{mean}\, G_t`.

    For ``credit="trajectory"`` pass one entry per episode: ``returns`` = R(τ_i) and ``episode`` = 0 … N-1.

    :param returns: ``(K,)``
    :param episode: episode of each entry, ``(K,)``, integer, the entries of an episode next to each other
    :param leave_one_out: take the mean over the entries of the *other* episodes
    :param group: of each episode, ``(N,)``, integer; None for one episode each
    :return: ``(K,)``
    """
    if not leave_one_out:
        return returns.mean().expand_as(returns)
    first = th.ones_like(episode, dtype=th.bool)
    first[1:] = episode[1:] != episode[:-1]
    totals = discounted_sum_to_go(returns, episode, 1.0)[first]
    counts = discounted_sum_to_go(th.ones_like(returns), episode, 1.0)[first]
    return (leave_one_out_sum(totals, group) / leave_one_out_sum(counts, group))[episode]


def time_baseline(
    returns: th.Tensor, time: th.Tensor, leave_one_out: bool, group: th.Tensor | None = None
) -> th.Tensor:
    r"""
    The mean return at each time, :math:`b_t` = mean of :math:`G_t` over the episodes that are still alive at t.

    With ``leave_one_out`` it is 0 where no other episode is alive.

    :param returns: G_t, ``(M,)``
    :param time: time index within the episode, ``(M,)``, integer
    :param leave_one_out: take the mean over the *other* episodes
    :param group: of each step's episode, ``(M,)``, integer; None for one episode each
    :return: ``(M,)``
    """
    if leave_one_out and group is not None:
        n_groups = int(group.max()) + 1
        numbers, cell = th.unique(time * n_groups + group, return_inverse=True)
        at_time = numbers // n_groups
        others, n_others = (_sum_of_others(_sums(x, cell), at_time) for x in (returns, th.ones_like(returns)))
        return (others / n_others.clamp(min=1))[cell]
    order = time.argsort(stable=True)
    at_time, own = time[order], returns[order]
    others, n_others = _sum_of_others(own, at_time), _sum_of_others(th.ones_like(own), at_time)
    means = others / n_others.clamp(min=1) if leave_one_out else (others + own) / (n_others + 1)
    return th.empty_like(means).scatter(0, order, means)


def _sum_of_others(x: th.Tensor, group: th.Tensor) -> th.Tensor:
    """
    :func:`leave_one_out_sum` within each group.

    :param x: ``(M,)``
    :param group: of each entry, ``(M,)``, integer, the entries of a group next to each other
    :return: ``(M,)``
    """

    def after(x: th.Tensor, group: th.Tensor) -> th.Tensor:
        no_value = x.new_zeros(len(x))
        return next_values(discounted_sum_to_go(x, group, 1.0), group, no_value)

    return after(x, group) + after(x.flip(0), group.flip(0)).flip(0)


def optimal_baseline(
    scores: th.Tensor,
    credited_scores: th.Tensor,
    leave_one_out: bool,
    group: th.Tensor | None = None,
    elsewhere: Callable[[th.Tensor], th.Tensor] = th.zeros_like,
) -> th.Tensor:
    r"""
    The minimum-variance constant of each coordinate of the gradient, :math:`b_k = E[A_k S_k] / E[S_k^2]`.

    :math:`S` is an episode's score and :math:`A` the same sum with each term multiplied by its return; for trajectory
    credit this is :math:`E[g^2 R] / E[g^2]` of lecture 003. A coordinate whose scores are all 0 gets 0.

    :param scores: :math:`S_i = \sum_t w_t \nabla\log\pi_t`, ``(N, P)``
    :param credited_scores: :math:`A_i = \sum_t w_t \nabla\log\pi_t \, G_t`, ``(N, P)``
    :param leave_one_out: estimate the expectations from the *other* episodes
    :param group: of each episode, ``(N,)``, integer; None for one episode each
    :param elsewhere: a sum over these episodes, ``(P,)`` → that over the episodes of other processes, ``(P,)``
    :return: ``(N, P)``
    """

    def expectation(x: th.Tensor) -> th.Tensor:
        total = x.sum(0)
        return (leave_one_out_sum(x, group) if leave_one_out else total.expand_as(x)) + elsewhere(total)

    products, squares = expectation(credited_scores * scores), expectation(scores.square())
    return th.where(squares > 0, products / squares, 0.0)
