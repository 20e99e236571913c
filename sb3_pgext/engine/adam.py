"""Adam on all parameters at once: the same numbers to the bit, without a dozen calls for each parameter."""

import itertools
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

    :param parameters: θ
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

    def zero_grad(self, parameters: Sequence[th.nn.Parameter]) -> None:
        """Set the gradients to 0, which are views of one vector from the first time on."""
        if self.parameters.grad is None:
            self.parameters.grad = th.empty_like(self.parameters)
            for p, gradient in zip(parameters, views(self.parameters.grad, parameters), strict=True):
                p.grad = gradient
        self.parameters.grad.zero_()

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
    Meanwhile the parameters are views of one vector. Afterwards everything is the given optimizer's again, its moments
    as views of vectors, which the next call for the same parameters need not put together.

    :param optimizer: one that :func:`can_be_flattened`
    :param parameters: those of its parameters that are to be moved
    :param fused: step with torch's fused kernel: in less time, the same numbers up to rounding instead of to the bit
    :return: context of the state to step with
    """
    (group,) = optimizer.param_groups
    own_storage = [p.data for p in parameters]
    flat = concatenated(own_storage)
    values = views(flat, parameters)
    states = [optimizer.state[p] for p in parameters if optimizer.state.get(p)]
    exp_avg, exp_avg_sq = (
        _whole([state[name] for state in states]) if states else th.zeros_like(flat)
        for name in ("exp_avg", "exp_avg_sq")
    )
    count = states[0]["step"].clone() if states else th.tensor(0.0)
    count = count.to(flat.device) if fused else count
    options = {name: group[name] for name in ("lr", "eps", "weight_decay", "maximize")}
    options["beta1"], options["beta2"] = group["betas"]
    # Adam can have AdamW's weight decay, in versions of torch that have a flag for it.
    decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, th.optim.AdamW)))
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    adam = FlatAdam(flat, exp_avg, exp_avg_sq, count, options, decoupled, fused)
    try:
        yield adam
    finally:
        th._foreach_copy_(own_storage, values)
        for p, storage in zip(parameters, own_storage, strict=True):
            p.data, p.grad = storage, None
        if (count := adam.count.cpu()) > 0:  # its own one: a compiled step has moved it to the device
            steps = count.repeat(len(parameters))
            columns = steps, views(exp_avg, parameters), views(exp_avg_sq, parameters)
            for p, step, first, second in zip(parameters, *columns, strict=True):
                optimizer.state[p] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


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
    gaps = [x.new_zeros(-x.numel() % _ALIGNMENT) for x in tensors]
    return th.cat([part for x, gap in zip(tensors, gaps, strict=True) for part in (x.flatten(), gap)])


def views(flat: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """The parts of :func:`concatenated` in the shapes that they had."""
    parts = flat.split([length for x in like for length in (x.numel(), -x.numel() % _ALIGNMENT)])
    return [part.view(x.shape) for part, x in zip(parts[::2], like, strict=True)]


def _whole(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """The vector that all are :func:`views` of, or one of their numbers."""
    vector, ends = tensors[0]._base, [*itertools.accumulate(x.numel() + -x.numel() % _ALIGNMENT for x in tensors)]
    if vector is None or vector.shape != (ends[-1],) or not vector.is_contiguous():
        return concatenated(tensors)
    starts = [vector.storage_offset() + start for start in (0, *ends[:-1])]
    laid_out = [(x._base is vector, x.storage_offset(), x.is_contiguous()) for x in tensors]
    return vector if laid_out == [(True, start, True) for start in starts] else concatenated(tensors)
