"""Many gradient steps in a row, on one minibatch after the other."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th

from sb3_pgext.engine.compiled import Step, compiled_step
from sb3_pgext.engine.flat_adam import can_be_flattened, flattened
from sb3_pgext.engine.functional import LossFunction
from sb3_pgext.engine.recorded import Evaluation, recorded

__all__ = ["descending"]

_COMPILED = "compiled is Adam or AdamW with one group of parameters, default implementation and no hooks"


@contextmanager
def descending(
    policy: th.nn.Module,
    optimizer: th.optim.Optimizer,
    parameters: Sequence[th.nn.Parameter],
    loss_function: LossFunction,
    max_norm: float | None = None,
    proceed: Callable[[Any], th.Tensor] | None = None,
    fused: bool = False,
    key: Hashable = None,
    compile: bool = False,
) -> Iterator[Step]:
    """
    For many steps in a row: a function that takes one step along the gradient of a minibatch's loss.

    An Adam or AdamW steps with one vector meanwhile, of which parameters and gradients are views.

    :param policy: the network that the loss function evaluates
    :param optimizer: its optimizer
    :param parameters: those of its parameters that are moved
    :param loss_function: a function of the policy's parameters and its arguments alone
    :param max_norm: the gradient is shortened to this norm, as by torch's ``clip_grad_norm_``; infinity only measures
        it, None does not
    :param proceed: what the loss function left → whether the step is taken, a scalar
    :param fused: see :func:`~sb3_pgext.engine.flat_adam.flattened`
    :param key: everything else that the loss depends on and that may change: the step is recorded, or compiled, once
        for each. None does neither
    :param compile: whether the step is compiled
    :return: context of the function
    """
    optimizer.zero_grad(set_to_none=True)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = [p for p in parameters if p.requires_grad and id(p) in known]
    evaluate = _evaluation(loss_function, parameters)
    if not can_be_flattened(optimizer, parameters):
        if compile:
            name = type(optimizer).__name__
            warnings.warn(f"compile=True: updates run uncompiled with this {name}: {_COMPILED}", stacklevel=2)
        yield _step(evaluate, parameters, parameters, optimizer.step, max_norm, proceed)
        return
    with flattened(optimizer, parameters, fused) as adam:
        if key is not None:
            evaluate = recorded(evaluate, policy, parameters, loss_function, key)
        step = _step(evaluate, parameters, [adam.parameters], adam.step, max_norm, proceed)
        if key is not None and compile:
            step = compiled_step(step, policy, parameters, adam, loss_function, max_norm, proceed, key)
        yield step


def _evaluation(loss_function: LossFunction, parameters: list[th.nn.Parameter]) -> Evaluation:
    """By autograd, which adds to what ``grad`` is."""

    def evaluate(*minibatch: Any) -> tuple[Any, Callable[[], None]]:
        loss, left = loss_function(*minibatch)

        def differentiate() -> None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                th._foreach_zero_(gradients)
            loss.backward(inputs=parameters)

        return left, differentiate

    return evaluate


def _step(
    evaluate: Evaluation,
    parameters: list[th.nn.Parameter],
    stepped: Sequence[th.Tensor],
    move: Callable[[], object],
    max_norm: float | None,
    proceed: Callable[[Any], th.Tensor] | None,
) -> Step:
    """
    :param evaluate: computes the gradient
    :param parameters: of the network
    :param stepped: the tensors that ``move`` moves by their gradients: the same, or one vector of them all
    :param move: of the optimizer
    :param max_norm: see :func:`descending`
    :param proceed: see :func:`descending`
    :return: one step
    """

    def step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
        left, differentiate = evaluate(*minibatch)
        if proceed is not None and not proceed(left):
            return left, None, False
        differentiate()
        norm = None
        if max_norm is not None:
            norm = th.linalg.vector_norm(th.stack(th._foreach_norm([p.grad for p in parameters if p.grad is not None])))
            scale = th.clamp(max_norm / (norm + 1e-6), max=1.0)
            for p in stepped:
                if p.grad is not None:
                    p.grad.mul_(scale)
        move()
        return left, norm, True

    return step
