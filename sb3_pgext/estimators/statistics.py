"""Statistics of batches, and gradients as vectors."""

from collections.abc import Sequence

import torch as th

__all__ = ["explained_variance", "flat_gradient", "standardize"]


def flat_gradient(output: th.Tensor, parameters: Sequence[th.Tensor], retain_graph: bool = False) -> th.Tensor:
    """
    The gradient of a scalar as one vector.

    :param output: scalar
    :param parameters: what to differentiate for; those it does not depend on get 0
    :param retain_graph: whether another output of the same forward pass is to be differentiated, too
    :return: ``(P,)``
    """
    gradients = th.autograd.grad(
        output, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return th.cat([g.flatten() for g in gradients])


def standardize(x: th.Tensor) -> th.Tensor:
    """
    Subtract the mean and divide by the standard deviation, as SB3 does with advantages.

    :param x: ``(M,)``; returned as it is for M = 1, where there is no deviation
    :return: ``(M,)``
    """
    return (x - x.mean()) / (x.std() + 1e-8) if len(x) > 1 else x


def explained_variance(predictions: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Share of the targets' variance that the predictions explain, 1 - Var(y - V) / Var(y).

    SB3's, without leaving the device.

    :param predictions: V, ``(M,)``
    :param targets: y, ``(M,)``
    :return: scalar; NaN where the targets do not vary
    """
    variance = targets.var(correction=0)
    return th.where(variance > 0, 1 - (targets - predictions).var(correction=0) / variance, th.nan)
