r"""Exponential weights on tables (lecture 004; ``docs/mathematics.md``, section 10).

:math:`\pi_{k+1}(a|s) \propto \pi_k(a|s) \exp(\eta \hat Q_k(s, a))`, which on logits is a sum. With one state and exact
rewards it is Hedge (Freund & Schapire 1997), with estimated ones EXP3 (Auer et al. 2002).
"""

import math

import torch as th

__all__ = ["bandit_feedback", "exponential_weights", "regret_bound", "step_size_of_bound"]


def exponential_weights(logits: th.Tensor, q: th.Tensor, eta: float) -> th.Tensor:
    r"""
    One round, :math:`\theta(s,a) + \eta \hat Q(s,a)`; constants that depend on the state alone change no policy.

    :param logits: θ, ``(S, A)``
    :param q: Q̂, ``(S, A)``
    :param eta: η
    :return: the next logits, ``(S, A)``, the largest of each state 0
    """
    logits = logits + eta * q
    return logits - logits.amax(1, keepdim=True)


def bandit_feedback(
    states: th.Tensor,
    actions: th.Tensor,
    returns: th.Tensor,
    log_prob: th.Tensor,
    baseline: float,
    control_variate: th.Tensor,
) -> th.Tensor:
    r"""
    Q̂ from the actions that were taken, by inverse propensities:
    :math:`\hat Q(s,a) = \frac{(G - b - c(s,a)) \, 1\{a_t = a\}}{\pi(a|s)} + c(s,a)`, the mean over the visits of s.

    Its mean is Q - b: b and c change the variance alone, as a constant changes no policy. b is subtracted from what was
    earned, and not from the other actions' 0: with rewards in [0, 1], b = 1 makes them the losses of EXP3, negated.

    :param states: s_t, ``(M,)``, integer
    :param actions: a_t, ``(M,)``, integer
    :param returns: G_t, ``(M,)``
    :param log_prob: log π(a_t|s_t), ``(M,)``
    :param baseline: b
    :param control_variate: c, ``(S, A)``
    :return: Q̂, ``(S, A)``; 0 in states that were not visited
    """
    n_visits = th.bincount(states, minlength=len(control_variate)).unsqueeze(1)
    residuals = (returns - baseline - control_variate[states, actions]) * (-log_prob).exp()
    sums = th.zeros_like(control_variate).index_put_((states, actions), residuals, accumulate=True)
    return th.where(n_visits > 0, sums / n_visits.clamp(min=1) + control_variate, 0.0)


def step_size_of_bound(
    n_actions: int, n_rounds: int, feedback: str, largest: float = 1.0, one_state: bool = True
) -> float:
    r"""
    The η that makes :func:`regret_bound` smallest.

    :param n_actions: A
    :param n_rounds: K
    :param feedback: ``"full"`` or ``"bandit"``
    :param largest: the largest \|Q\|
    :param one_state: whether it is a bandit
    :return: η
    """
    log_a = math.log(n_actions)
    if feedback == "bandit":
        return math.sqrt(2 * log_a / (n_rounds * n_actions)) / largest
    return math.sqrt((8 if one_state else 1) * log_a / n_rounds) / largest


def regret_bound(
    n_actions: int, n_rounds: int, eta: float, feedback: str, largest: float = 1.0, gamma: float | None = None
) -> float:
    r"""
    The largest cumulative regret that theory allows.

    * Hedge, rewards in [0, largest]: :math:`\ln A/\eta + \eta K A_{max}^2/8`
    * EXP3, one draw per round, b = the largest reward, c = 0, the mean:
      :math:`\ln A/\eta + \eta K A\,A_{max}^2/2`
    * a finite MDP with exact Q: :math:`(\ln A/\eta + \eta K A_{max}^2)/(1-\gamma)`

    :param n_actions: A
    :param n_rounds: K
    :param eta: η
    :param feedback: ``"full"`` or ``"bandit"``
    :param largest: :math:`A_{max}`, the largest reward, or the largest \|Q\| of an MDP
    :param gamma: discount of an MDP; None for a bandit
    :return: the bound
    """
    start = math.log(n_actions) / eta
    if gamma is not None:
        return (start + eta * n_rounds * largest**2) / (1 - gamma)
    return start + eta * n_rounds * largest**2 * (n_actions / 2 if feedback == "bandit" else 1 / 8)
