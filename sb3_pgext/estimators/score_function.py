"""The score-function (REINFORCE) estimator of the policy gradient (lectures 000, 001, 003, 004; Williams 1992)."""

from collections.abc import Callable

import torch as th

from sb3_pgext.estimators.baselines import optimal_baseline

__all__ = ["episode_scores", "optimal_baseline_gradient", "score_function_surrogate"]

# Rows of a batched backward pass times steps: bounds its memory, and is small enough to stay in the processor's cache.
_MAX_BACKWARD_ENTRIES = 2**16


def score_function_surrogate(
    log_prob: th.Tensor, advantages: th.Tensor, n_episodes: int, weights: th.Tensor | None = None
) -> th.Tensor:
    r"""
    The scalar whose gradient is :math:`\hat g = \frac1N \sum_i \sum_t w_t \nabla\log\pi(a_t|s_t) \, \Psi_t`.

    The average is over episodes, not steps: a mean over steps has a random denominator and is biased.

    :param log_prob: log π(a_t|s_t), ``(M,)``, differentiable
    :param advantages: Ψ_t = (return − baseline), ``(M,)``, constant
    :param n_episodes: N
    :param weights: w_t, ``(M,)``; None means 1
    :return: scalar
    """
    weighted = advantages if weights is None else weights * advantages
    return (weighted * log_prob).sum() / n_episodes


def episode_scores(
    log_prob: th.Tensor, coefficients: th.Tensor, episode: th.Tensor, n_episodes: int, parameters: list[th.nn.Parameter]
) -> th.Tensor:
    r"""
    Each episode's own gradient :math:`\sum_t c_t \nabla\log\pi(a_t|s_t)`, by batched backward passes.

    :param log_prob: log π(a_t|s_t), ``(M,)``, differentiable
    :param coefficients: c_t, ``(M,)``, constant
    :param episode: episode of each step, ``(M,)``, integer
    :param n_episodes: N
    :param parameters: what to differentiate for, P numbers in all
    :return: ``(N, P)``
    """
    chunks = []
    rows = max(1, _MAX_BACKWARD_ENTRIES // len(log_prob))
    for ids in th.arange(n_episodes, device=log_prob.device).split(rows):
        selected = (episode == ids.unsqueeze(1)) * coefficients  # (rows, M)
        gradients = th.autograd.grad(log_prob, parameters, selected, retain_graph=True, is_grads_batched=True)
        chunks.append(th.cat([g.flatten(1) for g in gradients], dim=1))
    return th.cat(chunks)


def optimal_baseline_gradient(
    log_prob: th.Tensor,
    returns: th.Tensor,
    episode: th.Tensor,
    n_episodes: int,
    parameters: list[th.nn.Parameter],
    leave_one_out: bool,
    weights: th.Tensor | None = None,
    importance: th.Tensor | None = None,
    group: th.Tensor | None = None,
    elsewhere: Callable[[th.Tensor], th.Tensor] = th.zeros_like,
) -> th.Tensor:
    r"""
    :math:`\hat g_k = \frac1N \sum_i (A_{ik} - b_{ik} S_{ik})` with the optimal baseline of each coordinate k.

    No scalar surrogate has this gradient, since the baseline differs from coordinate to coordinate.

    :param log_prob: log π(a_t|s_t), ``(M,)``, differentiable
    :param returns: G_t, or R(τ) at each step, ``(M,)``
    :param episode: episode of each step, ``(M,)``, integer
    :param n_episodes: N
    :param parameters: what to differentiate for, P numbers in all
    :param leave_one_out: see :func:`~sb3_pgext.estimators.baselines.optimal_baseline`
    :param weights: w_t, ``(M,)``; None means 1
    :param importance: weight that the returns carry already and the baseline is yet to get, ``(M,)``; None means 1
    :param group: of each episode: which are left out together, ``(N,)``, integer; None for one each
    :param elsewhere: see :func:`~sb3_pgext.estimators.baselines.optimal_baseline`
    :return: ``(P,)``
    """
    weights = th.ones_like(returns) if weights is None else weights
    of_baseline = weights if importance is None else weights * importance
    scores = episode_scores(log_prob, of_baseline, episode, n_episodes, parameters)
    credited_scores = episode_scores(log_prob, weights * returns, episode, n_episodes, parameters)
    baseline = optimal_baseline(scores, credited_scores, leave_one_out, group, elsewhere)
    return (credited_scores - baseline * scores).mean(0)
