"""Adam on all parameters at once: the same numbers to the bit, without a dozen calls for each parameter."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th

__all__ = ["descend", "flattened"]

_ALIGNMENT = 16
"""Each parameter starts at a multiple of this many numbers: a matrix product may round by where its operands lie."""


@contextmanager
def flattened(optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter]) -> Iterator[th.optim.Optimizer]:
    """
    For many steps in a row: the optimizer with some parameters, their gradients and moments in one vector.

    Meanwhile parameters and their gradients are views of that vector. Afterwards everything is the given optimizer's
    again, and the parameters that were not to be moved are as they were.

    :param optimizer: an Adam or AdamW with one group of parameters, whose implementation the user has not chosen;
        any other is handed on as it is
    :param parameters: those of its parameters that are to be moved
    :return: the optimizer for :func:`descend`
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for p in parameters if p.requires_grad]
    if not _can_be_flattened(optimizer, parameters):
        yield optimizer
        return

    (group,) = optimizer.param_groups
    flat = th.nn.Parameter(_concatenated([p.detach() for p in parameters]))
    flat.grad = th.zeros_like(flat)
    flat_optimizer = type(optimizer)([{**group, "params": [flat]}])  # type: ignore[call-arg]
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    for name in states[0] if states else ():
        entries = [state[name] for state in states]
        flat_optimizer.state[flat][name] = _concatenated(entries) if name != "step" else entries[0]
    for p, values, gradient in zip(
        parameters, _views(flat.data, parameters), _views(flat.grad, parameters), strict=True
    ):
        p.data, p.grad = values, gradient

    try:
        yield flat_optimizer
    finally:
        for p, values in zip(parameters, _views(flat.data, parameters), strict=True):
            p.data, p.grad = values.clone(), None
        for name, entry in flat_optimizer.state[flat].items():
            parts = _views(entry, parameters) if name != "step" else [entry] * len(parameters)
            for p, part in zip(parameters, parts, strict=True):
                optimizer.state[p][name] = part.clone()


def descend(
    loss: th.Tensor, optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter], max_norm: float | None
) -> th.Tensor:
    """
    One step along the gradient, shortened as torch's ``clip_grad_norm_`` does.

    :param loss: scalar
    :param optimizer: from :func:`flattened`
    :param parameters: those that it was asked to move
    :param max_norm: the largest norm allowed; None for no limit
    :return: the norm as it was, scalar
    """
    optimizer.zero_grad(set_to_none=False)
    loss.backward(inputs=parameters)
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm([p.grad for p in parameters if p.grad is not None])))
    scale = th.clamp((math.inf if max_norm is None else max_norm) / (norm + 1e-6), max=1.0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.mul_(scale)
    optimizer.step()
    return norm


def _can_be_flattened(optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> bool:
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW) or len(optimizer.param_groups) > 1:
        return False
    (group,) = optimizer.param_groups
    steps = {float(optimizer.state[p]["step"]) if p in optimizer.state else 0.0 for p in parameters}
    of_one_kind = len({(p.device, p.dtype) for p in parameters}) == 1
    return group["foreach"] is None and group["fused"] is None and len(steps) == 1 and of_one_kind


def _concatenated(tensors: list[th.Tensor]) -> th.Tensor:
    """All numbers in one vector, with gaps of zeros."""
    return th.cat([th.nn.functional.pad(x.flatten(), (0, -x.numel() % _ALIGNMENT)) for x in tensors])


def _views(flat: th.Tensor, like: list[th.nn.Parameter]) -> list[th.Tensor]:
    """The parts of :func:`_concatenated` in the shapes that they had."""
    parts = flat.split([p.numel() + -p.numel() % _ALIGNMENT for p in like])
    return [part[: p.numel()].view_as(p) for part, p in zip(parts, like, strict=True)]
