r"""Natural gradients without forming the Fisher matrix (lectures 002, 003, 004; Kakade 2001; Schulman et al. 2015).

The policy's distribution in state m is determined by a few numbers :math:`z_m(\theta)`: logits, or means and standard
deviations. With J their Jacobian and M the Fisher matrix of the distribution in z,

.. math:: F = \frac1M \sum_m J_m^\top M_m J_m,

which equals the Hessian of the mean divergence. Definitions in ``docs/mathematics.md`` (section 6).
"""

from collections.abc import Callable, Sequence

import torch as th

__all__ = [
    "bernoulli_metric",
    "categorical_metric",
    "conjugate_gradients",
    "dense_matrix",
    "euclidean_metric",
    "fisher_vector_product",
    "normal_metric",
    "trust_region_scale",
]

Tangents = tuple[th.Tensor, ...]
Metric = Callable[[Tangents], Tangents]
"""u → M u, for each of the outputs ``(M, …)`` and all states at once."""


def categorical_metric(logits: th.Tensor) -> Metric:
    r"""
    :math:`M = \mathrm{diag}(p) - p p^\top` in the logits of a categorical distribution.

    :param logits: log-probabilities, up to a constant, ``(M, A)``
    :return: (u ``(M, A)``,) → (M u ``(M, A)``,)
    """
    p = logits.detach().softmax(-1)
    return lambda u: (p * (u[0] - (p * u[0]).sum(-1, keepdim=True)),)


def bernoulli_metric(logits: th.Tensor) -> Metric:
    r"""
    :math:`M = p (1 - p)` in the logit of each of D independent coins.

    :param logits: log-odds, ``(M, D)``
    :return: (u ``(M, D)``,) → (M u ``(M, D)``,)
    """
    p = logits.detach().sigmoid()
    return lambda u: (p * (1 - p) * u[0],)


def normal_metric(std: th.Tensor) -> Metric:
    r"""
    :math:`M = \mathrm{diag}(1/\sigma^2, 2/\sigma^2)` in means and standard deviations of D independent normals.

    :param std: σ, ``(M, D)``
    :return: (u of the means, u of the standard deviations), ``(M, D)`` each → M u in the same form
    """
    precision = std.detach().pow(-2)
    return lambda u: (precision * u[0], 2 * precision * u[1])


def euclidean_metric(tangents: Tangents) -> Tangents:
    r"""
    M = 1. With the log-probabilities of the sampled actions as outputs, F is the empirical Fisher matrix
    :math:`\hat F = \frac1M \sum_t \nabla\log\pi_t \nabla\log\pi_t^\top`.

    :param tangents: u
    :return: u
    """
    return tangents


def fisher_vector_product(
    outputs: Sequence[th.Tensor], metric: Metric, parameters: Sequence[th.Tensor]
) -> Callable[[th.Tensor], th.Tensor]:
    r"""
    :math:`v \mapsto \frac1M J^\top (M (J v))`, without F and without J.

    :math:`J^\top u` is a backward pass; it is linear in u, and differentiating it for u gives :math:`J v`. So any
    network will do that can be differentiated twice. (``benchmarks/fisher.py`` compares this with the ways around it.)

    :param outputs: z, ``(M, …)`` each, differentiable in the parameters; the graph is kept
    :param metric: M
    :param parameters: θ, P numbers in all
    :return: v ``(P,)`` → F v ``(P,)``
    """
    differentiable = [z for z in outputs if z.requires_grad]
    cotangents = [th.zeros_like(z, requires_grad=True) for z in differentiable]
    pulled_back = _flat_gradients(differentiable, parameters, cotangents, create_graph=True)

    def product(v: th.Tensor) -> th.Tensor:
        moved = iter(th.autograd.grad(pulled_back, cotangents, v, retain_graph=True))
        tangents = tuple(next(moved) if z.requires_grad else th.zeros_like(z) for z in outputs)
        metric_tangents = [u for u, z in zip(metric(tangents), outputs, strict=True) if z.requires_grad]
        return _flat_gradients(differentiable, parameters, metric_tangents) / len(outputs[0])

    return product


def _flat_gradients(
    outputs: Sequence[th.Tensor],
    parameters: Sequence[th.Tensor],
    cotangents: Sequence[th.Tensor],
    create_graph: bool = False,
) -> th.Tensor:
    """Jᵀu, ``(P,)``."""
    gradients = th.autograd.grad(
        outputs, parameters, cotangents, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return th.cat([g.flatten() for g in gradients])


def conjugate_gradients(
    product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, max_steps: int, tolerance: float
) -> tuple[th.Tensor, th.Tensor, int]:
    r"""
    Solve A x = b for a symmetric positive (semi-)definite A, from x = 0 (Hestenes & Stiefel 1952).

    :param product: v ``(P,)`` → A v ``(P,)``
    :param b: right-hand side, ``(P,)``
    :param max_steps: number of products at most
    :param tolerance: stop when :math:`\|A x - b\|^2` is at most this share of :math:`\|b\|^2`, or when A shows no
        curvature along the next direction, which rounding alone can cause
    :return: x ``(P,)``, the residual :math:`\|A x - b\|`, a scalar, and the number of products
    """
    x, residual = th.zeros_like(b), b.clone()
    direction, squared = residual, residual @ residual
    enough = tolerance * squared
    for n_steps in range(max_steps):
        if squared <= enough:
            return x, squared.sqrt(), n_steps
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            return x, squared.sqrt(), n_steps + 1
        step = squared / curvature
        x = x + step * direction
        residual = residual - step * image
        previous, squared = squared, residual @ residual
        direction = residual + squared / previous * direction
    return x, squared.sqrt(), max_steps


def trust_region_scale(curvature: th.Tensor, target_kl: float) -> th.Tensor:
    r"""
    :math:`\sqrt{2\delta / x^\top F x}`: the multiple of x whose divergence is δ in the quadratic model.

    :param curvature: :math:`x^\top F x`, scalar
    :param target_kl: δ
    :return: scalar; not finite, or NaN, where the curvature is not positive
    """
    return (2 * target_kl / curvature).sqrt()


def dense_matrix(product: Callable[[th.Tensor], th.Tensor], size: int, like: th.Tensor) -> th.Tensor:
    """
    The matrix itself, column by column: a reference for few parameters.

    :param product: v ``(P,)`` → A v ``(P,)``
    :param size: P
    :param like: a tensor of the dtype and on the device of v
    :return: A, ``(P, P)``
    """
    return th.stack([product(e) for e in th.eye(size, dtype=like.dtype, device=like.device)], dim=1)
