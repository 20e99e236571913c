"""A whole gradient step as one compiled graph: the networks are tiny, and the time goes into calling their parts."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch as th
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sb3_pgext.algorithms.flat_adam import FlatAdam, concatenated, views

__all__ = ["LossFunction", "Step", "compiled"]

LossFunction = Callable[..., tuple[th.Tensor, Any]]
"""Minibatch → its loss, a scalar, and what it leaves for the log: tensors without a graph."""
Step = Callable[..., tuple[Any, th.Tensor | None, bool]]
"""Minibatch → what the loss function left; the norm of the gradient, if it was measured; whether a step was taken."""

_graphs: "WeakKeyDictionary[th.nn.Module, dict[Hashable, Any]]" = WeakKeyDictionary()
"""Policy → what has been compiled for it; None where that failed. They hold no reference to the policy."""


def compiled(
    eager_step: Step,
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    adam: FlatAdam,
    loss_function: LossFunction,
    max_norm: float | None,
    proceed: Callable[[Any], th.Tensor] | None,
    key: Hashable,
) -> Step:
    """
    A step that computes what ``eager_step`` does, up to rounding: loss, gradient, its norm and Adam in one graph.

    It is traced and compiled for the shapes of the first minibatch; minibatches of other shapes, such as a shorter last
    one, and policies that cannot be traced take the eager step.

    :param eager_step: what is to be computed
    :param policy: the network that the loss function evaluates
    :param parameters: those of its parameters that are moved
    :param adam: the optimizer's state, changed in place
    :param loss_function: a function of the policy's parameters and its arguments alone
    :param max_norm: as in ``eager_step``
    :param proceed: as in ``eager_step``
    :param key: everything else that the loss depends on and that may change
    :return: the step
    """
    graphs = _graphs.setdefault(policy, {})
    device = adam.parameters.device
    options = tuple(sorted((name, value) for name, value in adam.options.items() if name != "lr"))
    moved = {id(p) for p in parameters}
    of_policy = tuple(name for name, p in policy.named_parameters() if id(p) in moved)
    learning_rate = th.tensor(adam.options["lr"], dtype=th.float64)
    shapes_of_first: Hashable = None

    def step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
        nonlocal shapes_of_first
        leaves, structure = pytree.tree_flatten(minibatch)
        leaves = [x if isinstance(x, th.Tensor) else th.tensor(x, device=device) for x in leaves]
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        shapes_of_first = shapes_of_first or shapes
        full_key = (key, max_norm, options, adam.decoupled, of_policy, device, shapes)
        if shapes == shapes_of_first and full_key not in graphs:
            update = _update(policy, parameters, adam, loss_function, max_norm, structure)
            graphs[full_key] = _compile(
                policy, update, [*_state(adam), adam.count.double() + 1, learning_rate, *leaves]
            )
        if graphs.get(full_key) is None:
            return eager_step(*minibatch)

        adam.count += 1
        *new_state, norm, left = graphs[full_key](*_state(adam), adam.count.double(), learning_rate, *leaves)
        if proceed is not None and not proceed(left):
            adam.count -= 1
            return left, None, False
        th._foreach_copy_(_state(adam), new_state)
        return left, norm, True

    return step


def _state(adam: FlatAdam) -> list[th.Tensor]:
    return [adam.parameters, adam.exp_avg, adam.exp_avg_sq]


class _Loss(th.nn.Module):
    """The loss function as a module that contains the policy, for ``functional_call``."""

    def __init__(self, policy: th.nn.Module, loss_function: LossFunction):
        super().__init__()
        self.policy = policy
        self._loss_function = loss_function

    def forward(self, *minibatch: Any) -> tuple[th.Tensor, Any]:
        return self._loss_function(*minibatch)


def _update(
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    adam: FlatAdam,
    loss_function: LossFunction,
    max_norm: float | None,
    structure: pytree.TreeSpec,
) -> Callable[..., Any]:
    """(θ, first moment, second moment, step count, learning rate, minibatch) → the new ones, the norm, what is left."""
    loss = _Loss(policy, loss_function)
    name_of = {id(p): name for name, p in loss.named_parameters()}
    names = [name_of[id(p)] for p in parameters]
    beta1, beta2, eps, weight_decay = (adam.options[name] for name in ("beta1", "beta2", "eps", "weight_decay"))

    def update(
        flat: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor, count: th.Tensor, lr: th.Tensor, *leaves: th.Tensor
    ) -> tuple[Any, ...]:
        def loss_of(values: tuple[th.Tensor, ...]) -> tuple[th.Tensor, Any]:
            minibatch = pytree.tree_unflatten(leaves, structure)
            return functional_call(loss, dict(zip(names, values, strict=True)), minibatch)

        gradients, left = grad(loss_of, has_aux=True)(tuple(views(flat, parameters)))
        gradient = concatenated(gradients)
        norm = th.linalg.vector_norm(gradient)
        if max_norm is not None:
            gradient = gradient * th.clamp(max_norm / (norm + 1e-6), max=1.0)
        if adam.options["maximize"]:
            gradient = -gradient
        if adam.decoupled:
            flat = flat * (1 - lr * weight_decay)
        elif weight_decay:
            gradient = gradient + weight_decay * flat
        exp_avg = exp_avg + (1 - beta1) * (gradient - exp_avg)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient
        denominator = (exp_avg_sq / (1 - beta2**count)).sqrt() + eps
        return flat - lr / (1 - beta1**count) * exp_avg / denominator, exp_avg, exp_avg_sq, norm, left

    return update


def _compile(policy: th.nn.Module, update: Callable[..., Any], arguments: list[th.Tensor]) -> Callable[..., Any] | None:
    """The update as one graph for these shapes, or None with a warning that says why there is none."""
    stateful = [type(m).__name__ for m in policy.modules() if any(isinstance(x, th.Tensor) for x in _state_of(m))]
    if stateful:
        _warn(f"{stateful[0]} keeps tensors that are no parameters, such as running statistics")
        return None
    try:
        with _TraceableOneHot(), th.random.fork_rng():
            before = th.get_rng_state()
            traced = make_fx(update)(*arguments)
            if not th.equal(before, th.get_rng_state()):
                _warn("the policy draws random numbers, such as dropout does")
                return None
        graph = th.compile(traced, fullgraph=True)
        graph(*arguments)
    except Exception as error:  # whatever a policy, the tracer or a C++ compiler may raise: the eager step is there
        _warn(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return None
    return graph


def _state_of(module: th.nn.Module) -> list[Any]:
    """What a module may change while it is evaluated: buffers, and whatever else it has as an attribute."""
    return [*module.buffers(recurse=False), *vars(module).values()]


class _TraceableOneHot(TorchFunctionMode):
    """torch's one-hot encoding, which SB3 gives Discrete observations, looks at the data to check it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.one_hot:
            return func(*args, **kwargs)
        return _one_hot(*args, **kwargs)


def _one_hot(tensor: th.Tensor, num_classes: int) -> th.Tensor:
    return (tensor.unsqueeze(-1) == th.arange(num_classes, device=tensor.device)).long()


def _warn(cause: str) -> None:
    warnings.warn(f"compile=True: this update runs uncompiled, with the same results. {cause}", stacklevel=2)
