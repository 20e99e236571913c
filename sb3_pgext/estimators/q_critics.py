r"""Policy gradients and targets with a critic of Q (lectures 000 and 004; ``docs/mathematics.md``, section 9).

``(B,)`` is one entry per state, ``(B, A)`` one per state and joint action, ``(K, B)`` one per draw from the policy and
state. The surrogates are scalars to be made larger, means over states, whose gradient is the estimate; Q is a constant
in all of them but the reparameterised one. With :math:`\alpha` > 0 Q is the soft one, :math:`Q - \alpha\log\pi`
(Haarnoja et al. 2018).
"""

from collections.abc import Sequence

import torch as th

__all__ = [
    "all_action_surrogate",
    "drawn_action_surrogate",
    "expected_q",
    "minimum",
    "reparameterized_surrogate",
    "sampled_surrogate",
    "td_targets",
    "truncated_ratios",
]


def minimum(q_values: Sequence[th.Tensor]) -> th.Tensor:
    """
    The smallest estimate of several critics, against the overestimation of one (Fujimoto et al. 2018).

    :param q_values: of each critic, of equal shapes
    :return: of that shape
    """
    return q_values[0] if len(q_values) == 1 else th.stack(list(q_values)).min(0).values


def expected_q(q: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor | float = 0.0) -> th.Tensor:
    r"""
    The value of a state, :math:`V(s) = \sum_a \pi(a|s) \, (Q(s, a) - \alpha \log \pi(a|s))`.

    :param q: of all actions, ``(B, A)``
    :param log_probs: log π(a|s) of all actions, ``(B, A)``
    :param ent_coef: α
    :return: ``(B,)``
    """
    return (log_probs.exp() * (q - ent_coef * log_probs)).sum(1)


def td_targets(
    rewards: th.Tensor, terminated: th.Tensor, next_values: th.Tensor, discount: th.Tensor | float
) -> th.Tensor:
    r"""
    Targets of Q(s, a): :math:`y = r + \gamma V(s')`, or :math:`y = r` where s' is terminal.

    The values make the target: :math:`Q(s', a')` of the action taken there is SARSA, :math:`E_{a'\sim\pi} Q(s', a')`
    expected SARSA (van Seijen et al. 2009), :math:`E[Q - \alpha\log\pi]` the soft target (Haarnoja et al. 2018, eq. 3).
    With n rewards in place of one, summed with their discounts, the discount is :math:`\gamma^n`.

    :param rewards: r, ``(B,)``
    :param terminated: 1 where s' is terminal, else 0; not where a time limit has cut the episode, ``(B,)``
    :param next_values: V(s'), ``(B,)``
    :param discount: γ, or that of each transition, ``(B,)``
    :return: ``(B,)``
    """
    return rewards + (1 - terminated) * discount * next_values


def sampled_surrogate(
    log_prob: th.Tensor, q: th.Tensor, expected: th.Tensor, weights: th.Tensor | None = None
) -> th.Tensor:
    r"""
    :math:`\nabla\log\pi(a|s) \, (Q(s,a) - E_{a\sim\pi}Q(s,a))` of the actions that were taken (lecture 004); with
    weights :math:`\rho = \pi/\mu` of those that another policy μ took (Degris et al. 2012, eq. 5).

    :param log_prob: log π(a|s), ``(B,)``, differentiable
    :param q: Q(s, a), ``(B,)``
    :param expected: the mean of Q over actions, ``(B,)``
    :param weights: ρ, ``(B,)``; None for 1
    :return: scalar
    """
    advantages = q - expected
    return (log_prob * (advantages if weights is None else weights * advantages)).mean()


def truncated_ratios(log_prob: th.Tensor, old_log_prob: th.Tensor, weight_clip: float | None) -> th.Tensor:
    r"""
    :math:`\min(\rho, c)` with :math:`\rho = \pi(a|s) / \mu(a|s)`, constant.

    :param log_prob: log π(a|s), ``(B,)``
    :param old_log_prob: log μ(a|s) of the policy that acted, ``(B,)``
    :param weight_clip: c; None for no limit
    :return: ``(B,)``
    """
    ratios = (log_prob.detach() - old_log_prob).exp()
    return ratios if weight_clip is None else ratios.clamp(max=weight_clip)


def all_action_surrogate(log_probs: th.Tensor, q: th.Tensor, ent_coef: th.Tensor | float = 0.0) -> th.Tensor:
    r"""
    :math:`\sum_a \nabla\pi(a|s) \, Q(s,a)`: all actions instead of the one that was taken, which for the same Q never
    has more variance (Sutton et al. 2000; Allen et al. 2017; Ciosek & Whiteson 2018).

    :param log_probs: log π(a|s) of all actions, ``(B, A)``, differentiable
    :param q: of all actions, ``(B, A)``
    :param ent_coef: α
    :return: scalar, the mean value of the states
    """
    return expected_q(q, log_probs, ent_coef).mean()


def drawn_action_surrogate(log_probs: th.Tensor, q: th.Tensor) -> th.Tensor:
    r"""
    The all-action gradient from K draws of the policy, :math:`\frac1K\sum_k \nabla\log\pi(a_k|s) \, (Q_k - b_k)`,
    where :math:`b_k` is the mean of the other draws' Q, which leaves it unbiased.

    :param log_probs: log π(a_k|s) of K >= 2 independent draws, ``(K, B)``, differentiable
    :param q: Q(s, a_k), ``(K, B)``; the soft one is Q - α log π
    :return: scalar
    """
    n_draws = len(q)
    centered = (q - q.mean(0)) * (n_draws / (n_draws - 1))
    return (log_probs * centered).mean()


def reparameterized_surrogate(q: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor | float = 0.0) -> th.Tensor:
    r"""
    :math:`\nabla_\theta (Q(s, a_\theta(s, \epsilon)) - \alpha \log\pi_\theta(a_\theta|s))`: through the action
    (Heess et al. 2015; Haarnoja et al. 2018, eq. 9). Without spread it is the deterministic gradient (Silver et al.
    2014).

    :param q: Q(s, a_θ(s, ε)), ``(B,)``, differentiable through the action
    :param log_prob: log π_θ(a_θ|s), ``(B,)``, differentiable
    :param ent_coef: α
    :return: scalar
    """
    return -(ent_coef * log_prob - q).mean()
