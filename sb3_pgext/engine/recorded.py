"""Gradients as the bare operations that autograd goes through, one after the other.

That leaves out Python's way through the modules and autograd's way back, which take longer than tiny networks do. The
numbers are the same to the bit, and so that they stay it when a user changes something about a model between two
updates, each update computes its first gradient both ways: a recording that differs is dropped.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch as th

from sb3_pgext.engine.functional import (
    LossFunction,
    as_tensors,
    forms,
    gradient_of,
    names_of,
    values_of_others,
)
from sb3_pgext.engine.graphs import Graph, forget, graph_of
from sb3_pgext.engine.nested import leaves

__all__ = ["Evaluation", "recorded"]

Evaluation = Callable[..., tuple[Any, Callable[[], None]]]
"""Minibatch → what the loss function left; what puts the gradient into the ``grad`` of the parameters."""

WORTH_RECORDING = 500
"""Steps after which a gradient is recorded: it takes as long as these save."""

MOST_KEYS = 16
"""Of a policy. A coefficient that changes with each update has a key of its own in each, none of which comes again."""

MOST_MISMATCHES = 3
"""After which a gradient is not recorded again."""


@dataclass
class _History:
    """
    :param steps: that took the eager way
    :param mismatches: recordings that were dropped
    """

    steps: int = 0
    mismatches: int = 0


_histories: "WeakKeyDictionary[th.nn.Module, dict[Hashable, _History]]" = WeakKeyDictionary()
"""Policy → what has been computed of it."""


def recorded(
    eager: Evaluation,
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    loss_function: LossFunction,
    key: Hashable,
) -> Evaluation:
    """
    The same gradients to the bit, for the minibatches of an update, in less time.

    Minibatches of other shapes than the first one's, and policies with parts of a user's own, take the eager way.

    :param eager: what is to be computed
    :param policy: the network that the loss function evaluates
    :param parameters: those of its parameters that are moved; each has a ``grad`` that stays the same tensor
    :param loss_function: a function of the policy's parameters and its arguments alone
    :param key: everything else that the loss depends on and that may change
    :return: the evaluation
    """
    gradients: list[Any] = [p.grad for p in parameters]
    constant = [*(p.detach() for p in parameters), *values_of_others(policy, parameters)]
    n, m = len(parameters), len(constant)
    device = constant[0].device
    if device.type == "mps" or th.is_autocast_enabled(device.type) or th.is_anomaly_enabled():
        return eager  # no double precision; other operations each time; a question to autograd
    tensors_of = as_tensors(device, th.float64)  # in which Python computes with numbers
    full_key: Hashable = None
    form: Hashable = None
    graph: Graph | None = None
    history = _History()

    def compared(minibatch: tuple[Any, ...], given: list[th.Tensor]) -> tuple[Any, Callable[[], None]]:
        """The eager way, and whether a graph goes the same."""
        gradient = gradient_of(policy, parameters, loss_function, minibatch)

        def of_tensors(*tensors: th.Tensor) -> tuple[Any, ...]:
            return gradient(tensors[:n], tensors[n:m], tensors[m:])

        first, second = ([*constant, *(x.clone() for x in given)] for _ in range(2))  # they may be changed in place
        found = graph_of(policy, full_key, of_tensors, first, "the gradient", compiled=False)
        if found is None:
            return eager(*minibatch)
        with th.inference_mode():
            new = found(second)
        left, differentiate = eager(*minibatch)

        def differentiate_and_compare() -> None:
            nonlocal graph
            differentiate()
            if _same_bits(leaves(new), [*gradients, *leaves(left)]):
                graph = found
            else:
                history.mismatches += 1
                forget(policy, full_key, compiled=False)

        return left, differentiate_and_compare

    def evaluate(*minibatch: Any) -> tuple[Any, Callable[[], None]]:
        nonlocal full_key, form, history
        given = tensors_of(minibatch)
        if full_key is None:  # the first one of this update
            form = forms(given)
            full_key = ("gradient", key, names_of(policy, parameters), device, form)
            history = _history_of(policy, full_key)
            if history.steps >= WORTH_RECORDING and history.mismatches < MOST_MISMATCHES:
                return compared(minibatch, given)
        if graph is None or forms(given) != form:
            history.steps += 1
            return eager(*minibatch)
        with th.inference_mode():
            new, left = graph([*constant, *given])
        return left, lambda: th._foreach_copy_(gradients, new)

    return evaluate


def _history_of(policy: th.nn.Module, key: Hashable) -> _History:
    """The last ones that were asked for are kept, with their graphs."""
    histories = _histories.setdefault(policy, {})
    histories[key] = histories.pop(key, _History())
    if len(histories) > MOST_KEYS:
        oldest = next(iter(histories))
        del histories[oldest]
        forget(policy, oldest, compiled=False)
    return histories[key]


def _same_bits(first: Sequence[th.Tensor], second: Sequence[th.Tensor]) -> bool:
    """Of finite numbers. One answer leaves the device."""
    return bool(th.stack([(x == y).all() for x, y in zip(first, second, strict=True)]).all())
