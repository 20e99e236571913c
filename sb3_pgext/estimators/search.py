r"""
Search gradients: the policy gradient in parameter space, :math:`\nabla_\mu E\,F(\mu + \sigma\varepsilon)` with
:math:`\varepsilon \sim N(0, I)` (Wierstra et al. 2014; Salimans et al. 2017, arXiv 1703.03864; lecture 000).
"""

import torch as th

from sb3_pgext.estimators.statistics import standardize

__all__ = ["SHAPINGS", "centred_ranks", "leave_one_out", "mirrored", "search_gradient"]


def mirrored(noise: th.Tensor) -> th.Tensor:
    """
    Antithetic noise: each direction and its opposite.

    :param noise: ε_i, ``(N, P)``
    :return: ε_1 … ε_N, −ε_1 … −ε_N, ``(2N, P)``
    """
    return th.cat([noise, -noise])


def search_gradient(fitness: th.Tensor, noise: th.Tensor, sigma: float) -> th.Tensor:
    r"""
    The search gradient :math:`\frac{1}{K\sigma} \sum_i F_i \varepsilon_i` (Wierstra et al. 2014, eq. 2; Salimans et
    al. 2017, section 2). With :func:`mirrored` noise this is the antithetic estimator,
    :math:`\frac{1}{2N\sigma} \sum_i (F_i^+ - F_i^-) \varepsilon_i`.

    It is unbiased for :math:`\nabla_\mu E\,F(\mu + \sigma\varepsilon)` if F is the return, or the return less a
    baseline that ignores the member itself.

    :param fitness: F_i of each member, ``(K,)``
    :param noise: ε_i of each member, ``(K, P)``
    :param sigma: σ
    :return: ``(P,)``
    """
    return fitness @ noise / (len(fitness) * sigma)


def leave_one_out(returns: th.Tensor) -> th.Tensor:
    """
    Subtract the mean of the other members from each, which leaves the search gradient unbiased.

    :param returns: F_i, ``(K,)``, K >= 2
    :return: F_i − mean of F_j over j ≠ i, ``(K,)``
    """
    return (returns - returns.mean()) * (len(returns) / (len(returns) - 1))


def centred_ranks(returns: th.Tensor) -> th.Tensor:
    """
    Replace returns by their ranks, from −½ for the lowest to ½ for the highest (Salimans et al. 2017, section 2.1).

    The search gradient of ranks is not the gradient of E F. Equal returns share the mean of their ranks, so that a
    population without differences moves nothing.

    :param returns: F_i, ``(K,)``, K >= 2
    :return: ``(K,)``
    """
    _, inverse, counts = returns.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0) - (counts + 1) / 2  # from 0 on, of each different return
    return (ranks / (len(returns) - 1) - 0.5)[inverse].to(returns.dtype)


SHAPINGS = {"none": lambda returns: returns, "standardized": standardize, "ranks": centred_ranks}
"""Name of a fitness shaping → (F_i ``(K,)`` → what is multiplied with the noise, ``(K,)``)."""
