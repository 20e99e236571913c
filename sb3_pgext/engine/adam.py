"""Adam on all parameters at once: the same numbers to the bit, without a dozen calls for each parameter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch as th
from torch.optim.adam import adam
from torch.optim.adamw import adamw

__all__ = [
    "FlatAdam",
    "Moments",
    "adam_options",
    "can_be_flattened",
    "concatenated",
    "flattened",
    "moments_of",
    "views",
]

_ALIGNMENT = 16
"""Each parameter starts at a multiple of this many numbers: a matrix product may round by where its operands lie."""


class Moments(NamedTuple):
    """
    The memory of an Adam or AdamW, each part in one vector. ``optimizer.state`` has views of these.

    :param exp_avg: first moments
    :param exp_avg_sq: second moments
    :param steps: the number of steps so far, once for each parameter
    """

    exp_avg: th.Tensor
    exp_avg_sq: th.Tensor
    steps: th.Tensor


MAX_KEPT = 4
"""Choices of an optimizer's parameters whose moments are kept together."""

_kept: "WeakKeyDictionary[th.optim.Optimizer, dict[tuple[int, ...], tuple[Moments, list[dict[str, th.Tensor]]]]]"
_kept = WeakKeyDictionary()
"""Optimizer → addresses of some of its parameters → their moments, and the views of them that its state has."""


def moments_of(optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter]) -> Moments:
    """
    The moments of some parameters, laid together at the first call, and where the optimizer has got others since.

    :param optimizer: one that :func:`can_be_flattened`
    :param parameters: of the optimizer
    :return: what its state has views of from now on
    """
    kept, key = _kept.setdefault(optimizer, {}), tuple(map(id, parameters))
    if key in kept and _are_kept(optimizer, parameters, kept[key][1]):
        return kept[key][0]
    states = [optimizer.state.get(p) or {} for p in parameters]
    zeros = [th.zeros_like(p, memory_format=th.contiguous_format) for p in parameters]
    exp_avg, exp_avg_sq = (
        concatenated([state.get(name, zero).detach() for state, zero in zip(states, zeros, strict=True)])
        for name in ("exp_avg", "exp_avg_sq")
    )
    moments = Moments(exp_avg, exp_avg_sq, th.stack([state.get("step", th.tensor(0.0)) for state in states]))
    columns = views(moments.exp_avg, parameters), views(moments.exp_avg_sq, parameters), moments.steps.unbind()
    of_parameters = [
        {"step": step, "exp_avg": first, "exp_avg_sq": second} for first, second, step in zip(*columns, strict=True)
    ]
    optimizer.state.update(zip(parameters, map(dict, of_parameters), strict=True))
    if len(kept) >= MAX_KEPT:
        kept.clear()
    kept[key] = moments, of_parameters
    return moments


def _are_kept(
    optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter], kept: Sequence[dict[str, th.Tensor]]
) -> bool:
    """True if the optimizer's state has these tensors."""
    states = [optimizer.state.get(p) or {} for p in parameters]
    return all(state.get(name) is x for state, of_p in zip(states, kept, strict=True) for name, x in of_p.items())


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
    Meanwhile the parameters are views of one vector. Afterwards they lie where they did, and the optimizer has its
    state in :class:`Moments`, which the next call for the same parameters need not put together.

    :param optimizer: one that :func:`can_be_flattened`
    :param parameters: those of its parameters that are to be moved
    :param fused: step with torch's fused kernel: in less time, the same numbers up to rounding instead of to the bit
    :return: context of the state to step with
    """
    own_storage = [p.data for p in parameters]
    flat = concatenated(own_storage)
    values = views(flat, parameters)
    moments = moments_of(optimizer, parameters)
    options, decoupled = adam_options(optimizer)
    count = moments.steps[0].to(flat.device if fused else "cpu", copy=True)
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    adam = FlatAdam(flat, moments.exp_avg, moments.exp_avg_sq, count, options, decoupled, fused)
    try:
        yield adam
    finally:
        th._foreach_copy_(own_storage, values)
        for p, storage in zip(parameters, own_storage, strict=True):
            p.data, p.grad = storage, None
        moments.steps.fill_(adam.count)


def adam_options(optimizer: th.optim.Optimizer) -> tuple[dict[str, Any], bool]:
    """
    :param optimizer: one that :func:`can_be_flattened`
    :return: the options of :class:`FlatAdam`, and whether the weight decay is AdamW's
    """
    (group,) = optimizer.param_groups
    options = {name: group[name] for name in ("lr", "eps", "weight_decay", "maximize")}
    options["beta1"], options["beta2"] = group["betas"]
    # Adam can have AdamW's weight decay, in versions of torch that have a flag for it.
    return options, bool(group.get("decoupled_weight_decay", isinstance(optimizer, th.optim.AdamW)))


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
    of_one_kind = len({(p.device, p.dtype) for p in parameters}) == 1
    if chosen or special or not of_one_kind:
        return False
    kept = _kept.get(optimizer, {}).get(tuple(map(id, parameters)))
    if kept is not None and _are_kept(optimizer, parameters, kept[1]):
        return bool((kept[0].steps == kept[0].steps[0]).all())
    return len({float(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0.0 for p in parameters}) == 1


def concatenated(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """All numbers in one vector, with gaps of zeros."""
    gaps = [x.new_zeros(-x.numel() % _ALIGNMENT) for x in tensors]
    return th.cat([part for x, gap in zip(tensors, gaps, strict=True) for part in (x.flatten(), gap)])


def views(flat: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """The parts of :func:`concatenated` in the shapes that they had."""
    parts = flat.split([length for x in like for length in (x.numel(), -x.numel() % _ALIGNMENT)])
    return [part.view(x.shape) for part, x in zip(parts[::2], like, strict=True)]
