"""Adam on all parameters at once: the same numbers to the bit, without a dozen calls for each parameter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th
from torch.optim.adam import adam
from torch.optim.adamw import adamw

__all__ = ["FlatAdam", "can_be_flattened", "concatenated", "flattened", "views"]

_ALIGNMENT = 16
"""Each parameter starts at a multiple of this many numbers: a matrix product may round by where its operands lie."""


@dataclass
class FlatAdam:
    """
    The state of an Adam or AdamW, each part in one vector.

    :param parameters: θ, its ``grad`` another such vector
    :param exp_avg: first moment
    :param exp_avg_sq: second moment
    :param count: number of steps so far, a scalar
    :param options: ``lr``, ``beta1``, ``beta2``, ``eps``, ``weight_decay``, ``maximize``
    :param decoupled: whether the weight decay is AdamW's
    :param fused: whether torch's fused kernel steps, which rounds otherwise
    """

    parameters: th.Tensor
    exp_avg: th.Tensor
    exp_avg_sq: th.Tensor
    count: th.Tensor
    options: dict[str, Any]
    decoupled: bool
    fused: bool

    @th.no_grad()
    def step(self) -> None:
        """One step of torch's own function."""
        function: Any = adamw if self.decoupled else adam
        tensors: Any = [self.parameters], [self.parameters.grad], [self.exp_avg], [self.exp_avg_sq], [], [self.count]
        function(*tensors, foreach=False, fused=self.fused, amsgrad=False, **self.options)


@contextmanager
def flattened(
    optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter], fused: bool = False
) -> Iterator[FlatAdam]:
    """
    Meanwhile the parameters and their gradients are views of one vector each. Afterwards everything is the given
    optimizer's again.

    :param optimizer: one that :func:`can_be_flattened`
    :param parameters: those of its parameters that are to be moved
    :param fused: step with torch's fused kernel: in less time, the same numbers up to rounding instead of to the bit
    :return: context of the state to step with
    """
    (group,) = optimizer.param_groups
    own_storage = [p.data for p in parameters]
    states = [optimizer.state[p] for p in parameters if optimizer.state.get(p)]
    flat = concatenated([p.detach() for p in parameters])
    flat.grad = th.zeros_like(flat)
    exp_avg, exp_avg_sq = (
        concatenated([state[name] for state in states]) if states else th.zeros_like(flat)
        for name in ("exp_avg", "exp_avg_sq")
    )
    count = states[0]["step"].clone() if states else th.tensor(0.0)
    count = count.to(flat.device) if fused else count
    options = {name: group[name] for name in ("lr", "eps", "weight_decay", "maximize")}
    options["beta1"], options["beta2"] = group["betas"]
    # Adam can have AdamW's weight decay, in versions of torch that have a flag for it.
    decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, th.optim.AdamW)))
    for p, values, gradient in zip(parameters, views(flat, parameters), views(flat.grad, parameters), strict=True):
        p.data, p.grad = values, gradient
    adam = FlatAdam(flat, exp_avg, exp_avg_sq, count, options, decoupled, fused)
    try:
        yield adam
    finally:
        # Its own count: a compiled step has moved it to the device.
        count, columns = adam.count.cpu(), [views(x, parameters) for x in (flat, exp_avg, exp_avg_sq)]
        for p, storage, values, first, second in zip(parameters, own_storage, *columns, strict=True):
            p.data, p.grad = storage.copy_(values), None
            if count > 0:
                state = {"step": count.clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
                optimizer.state[p] = state


def can_be_flattened(optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter]) -> bool:
    """
    :param optimizer: any
    :param parameters: those of its parameters that are to be moved
    :return: whether it is an Adam or AdamW with one group of parameters, without hooks, whose implementation the user
        has not chosen
    """
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW) or len(optimizer.param_groups) > 1:
        return False
    (group,) = optimizer.param_groups
    chosen = group["foreach"] is not None or group["fused"] is not None
    special = group["amsgrad"] or group["capturable"] or group["differentiable"]
    special = special or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    special = special or any(p._post_accumulate_grad_hooks for p in parameters)  # which may replace the gradient
    counts = {float(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0.0 for p in parameters}
    of_one_kind = len({(p.device, p.dtype) for p in parameters}) == 1
    return not (chosen or special) and len(counts) == 1 and of_one_kind


def concatenated(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """All numbers in one vector, with gaps of zeros."""
    return th.cat([th.nn.functional.pad(x.flatten(), (0, -x.numel() % _ALIGNMENT)) for x in tensors])


def views(flat: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """The parts of :func:`concatenated` in the shapes that they had."""
    parts = flat.split([p.numel() + -p.numel() % _ALIGNMENT for p in like])
    return [part[: p.numel()].view_as(p) for part, p in zip(parts, like, strict=True)]
