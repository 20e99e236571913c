"""What a policy computes, as functions of tensors alone: the tracer's view of it."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch as th
from torch.func import functional_call

from sb3_pgext.engine.nested import leaves, rebuilding

__all__ = [
    "FunctionOfPolicy",
    "LossFunction",
    "as_tensors",
    "call",
    "forms",
    "gradient_of",
    "names_of",
    "values_of_others",
]

LossFunction = Callable[..., tuple[th.Tensor, Any]]
"""Minibatch → its loss, a scalar, and what it leaves for the log: tensors without a graph."""


class FunctionOfPolicy(th.nn.Module):
    """A function as a module that contains the policy, for ``functional_call``."""

    def __init__(self, policy: th.nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.policy = policy
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def gradient_of(
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    loss_function: LossFunction,
    minibatch: tuple[Any, ...],
) -> Callable[..., tuple[tuple[th.Tensor, ...], Any]]:
    """(Values of the parameters, of the other parameters, minibatch as a list of tensors) → gradients, what is left."""
    loss = FunctionOfPolicy(policy, loss_function)
    name_of = {id(p): name for name, p in loss.named_parameters()}
    names = [name_of[id(p)] for p in parameters]
    other_names = [name for name in name_of.values() if name not in set(names)]
    rebuild = rebuilding(minibatch)

    def gradient(
        values: Sequence[th.Tensor], others: Sequence[th.Tensor], given: Sequence[th.Tensor]
    ) -> tuple[tuple[th.Tensor, ...], Any]:
        # By autograd: torch.func's grad goes through other operations in places.
        moved = [value.detach().requires_grad_() for value in values]
        own = dict(zip([*names, *other_names], [*moved, *others], strict=True))
        value, left = call(loss, own, *rebuild(iter(given)))
        return th.autograd.grad(value, moved, allow_unused=True, materialize_grads=True), left

    return gradient


def values_of_others(policy: th.nn.Module, parameters: Sequence[th.nn.Parameter]) -> list[th.Tensor]:
    """Not moved, but not constant either: the policy's while the critic is fitted, or what is frozen for some time."""
    moved = {id(p) for p in parameters}
    return [p.detach() for p in policy.parameters() if id(p) not in moved]


def names_of(policy: th.nn.Module, parameters: Sequence[th.nn.Parameter]) -> tuple[str, ...]:
    """Those of the parameters within the policy."""
    moved = {id(p) for p in parameters}
    return tuple(name for name, p in policy.named_parameters() if id(p) in moved)


def as_tensors(device: th.device, dtype: th.dtype) -> Callable[[Any], list[th.Tensor]]:
    """The leaves of a structure, numbers as scalars of this type, each of which is made once."""
    numbers: dict[float, th.Tensor] = {}

    def tensor(x: th.Tensor | float) -> th.Tensor:
        if isinstance(x, th.Tensor):
            return x
        if x not in numbers:
            numbers[x] = th.tensor(x, dtype=dtype, device=device)
        return numbers[x]

    return lambda data: [tensor(x) for x in leaves(data)]


def call(module: th.nn.Module, parameters: dict[str, th.Tensor], *arguments: Any) -> Any:
    """
    With other parameters. A module that has several names, such as SB3's shared features extractor, has its parameters
    under the first of them; where ``functional_call`` looks for the others too, it leaves tensors in their place.
    """
    return functional_call(module, parameters, arguments, tie_weights=False)


def forms(tensors: Sequence[th.Tensor]) -> Hashable:
    """What a graph is made for."""
    return tuple((x.shape, x.stride(), x.dtype) for x in tensors)
