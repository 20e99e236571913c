r"""Surrogates of proximal policy optimisation and its critic (lectures 002 and 004; Schulman et al. 2017).

Flat tensors, one entry per step of a minibatch, ``(B,)``; means are over steps. The ratio is
:math:`\rho = \pi_\theta(a|s) / \pi_{old}(a|s)`, the advantages :math:`\Psi` and whatever bears "old" are constants.
Definitions in ``docs/mathematics.md`` (section 7).
"""

import torch as th
from torch.nn import functional as F

__all__ = [
    "adapted_factor",
    "adapted_kl_coef",
    "approximate_kl",
    "clipped_ratios",
    "clipped_surrogate",
    "clipped_values",
    "kl_penalized_surrogate",
    "unclipped_surrogate",
    "value_loss",
]


def unclipped_surrogate(ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    r"""
    :math:`E[\rho \Psi]`, the conservative policy iteration objective (Schulman et al. 2017, eq. 6).

    :param ratio: ρ, ``(B,)``, differentiable
    :param advantages: Ψ, ``(B,)``
    :return: scalar, to be made larger
    """
    return (advantages * ratio).mean()


def clipped_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    r"""
    :math:`E[\min(\rho \Psi, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) \Psi)]` (lecture 002; eq. 7 of the paper).

    :param ratio: ρ, ``(B,)``, differentiable
    :param advantages: Ψ, ``(B,)``
    :param clip_range: ε
    :return: scalar, to be made larger
    """
    clipped = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return th.min(advantages * ratio, advantages * clipped).mean()


def kl_penalized_surrogate(ratio: th.Tensor, advantages: th.Tensor, kl: th.Tensor, kl_coef: float) -> th.Tensor:
    r"""
    :math:`E[\rho \Psi - \beta KL]`, the regularised form of the natural gradient (lecture 004; eq. 8 of the paper).

    :param ratio: ρ, ``(B,)``, differentiable
    :param advantages: Ψ, ``(B,)``
    :param kl: the divergence between π_old and π_θ in each state, ``(B,)``, differentiable
    :param kl_coef: β
    :return: scalar, to be made larger
    """
    return (advantages * ratio - kl_coef * kl).mean()


def adapted_kl_coef(kl_coef: float, kl: float, kl_target: float) -> float:
    r"""
    The β of the next update: half where the step was too short, twice where it was too long (section 4 of the paper).

    :param kl_coef: β of the update just made
    :param kl: the mean divergence that it led to
    :param kl_target: the one that is wanted
    :return: β/2 for d < d_targ/1.5, 2β for d > 1.5 d_targ, else β
    """
    if kl < kl_target / 1.5:
        return kl_coef / 2
    return kl_coef * 2 if kl > kl_target * 1.5 else kl_coef


def adapted_factor(factor: float, kl: float, kl_target: float) -> float:
    r"""
    The factor of the next update's learning rate: smaller after a step that was too long, larger after one too short.

    After Heess et al. 2017 (appendix B), with the numbers of Rudin et al. 2022.

    :param factor: of the update just made
    :param kl: the mean divergence that it led to
    :param kl_target: the one that is wanted
    :return: 1.5 times as much for d < d_targ/2, 1.5 times less for d > 2 d_targ, within [0.01, 100]
    """
    if kl < kl_target / 2:
        return min(1.5 * factor, 100.0)
    return max(factor / 1.5, 0.01) if kl > 2 * kl_target else factor


def value_loss(
    values: th.Tensor, targets: th.Tensor, old_values: th.Tensor, value_clip: str, clip_range: float
) -> th.Tensor:
    r"""
    The critic's loss, :math:`L_1 = (y - V)^2`, :math:`L_2 = (y - V_{old} - \mathrm{clip}(V - V_{old}, \pm\epsilon))^2`.

    :param values: V, ``(B,)``, differentiable
    :param targets: y, ``(B,)``
    :param old_values: V_old, ``(B,)``
    :param value_clip: ``"max"``: mean of max(L1, L2) (lecture 002); ``"clip"``: of L2 (Stable-Baselines3);
        ``"none"``: of L1
    :param clip_range: ε; not used by ``"none"``
    :return: scalar
    """
    if value_clip == "none":
        return F.mse_loss(values, targets)
    clipped_values = old_values + th.clamp(values - old_values, -clip_range, clip_range)
    if value_clip == "clip":
        return F.mse_loss(clipped_values, targets)
    return th.max((targets - values).square(), (targets - clipped_values).square()).mean()


def clipped_ratios(ratio: th.Tensor, clip_range: float) -> th.Tensor:
    """
    :param ratio: ρ, ``(B,)``
    :param clip_range: ε
    :return: which steps have |ρ - 1| > ε, ``(B,)``, bool; their fraction is SB3's ``train/clip_fraction``
    """
    return (ratio - 1).abs() > clip_range


def clipped_values(
    values: th.Tensor, targets: th.Tensor, old_values: th.Tensor, value_clip: str, clip_range: float
) -> th.Tensor:
    """
    Find the steps whose gradient the clipping of the critic takes away.

    With ``"clip"`` these are all steps that left the range, with ``"max"`` only those that left it towards their
    target: where V moved away from it, L1 is the larger loss and brings it back.

    :param values: V, ``(B,)``
    :param targets: y, ``(B,)``
    :param old_values: V_old, ``(B,)``
    :param value_clip: ``"max"`` or ``"clip"``
    :param clip_range: ε
    :return: ``(B,)``, bool
    """
    outside = (values - old_values).abs() > clip_range
    if value_clip == "max":
        clipped_values = old_values + th.clamp(values - old_values, -clip_range, clip_range)
        outside &= (targets - clipped_values).abs() > (targets - values).abs()
    return outside


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    r"""
    :math:`(\rho - 1) - \log \rho`, from the sampled actions (its mean is SB3's ``train/approx_kl``; Schulman 2020).

    :param log_ratio: log ρ, ``(B,)``
    :return: ``(B,)``, never negative; the mean is unbiased for KL(π_old ‖ π_θ)
    """
    return (log_ratio.exp() - 1) - log_ratio
