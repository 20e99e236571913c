"""Acting, a whole gradient step, its gradient alone, and a product with the Fisher matrix, as one graph each."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.func import functional_call

from sb3_pgext.algorithms.flat_adam import FlatAdam, concatenated, views
from sb3_pgext.algorithms.graphs import Graph, graph_of
from sb3_pgext.algorithms.nested import leaves, rebuilding
from sb3_pgext.estimators.natural import Metric, Tangents, fisher_vector_product

__all__ = [
    "Evaluation",
    "LossFunction",
    "Step",
    "compiled_acting",
    "compiled_fisher",
    "compiled_function",
    "compiled_step",
    "recorded",
]

LossFunction = Callable[..., tuple[th.Tensor, Any]]
"""Minibatch → its loss, a scalar, and what it leaves for the log: tensors without a graph."""
Step = Callable[..., tuple[Any, th.Tensor | None, bool]]
"""Minibatch → what the loss function left; the norm of the gradient, if it was measured; whether a step was taken."""
Evaluation = Callable[..., tuple[Any, Callable[[], None]]]
"""Minibatch → what the loss function left; what puts the gradient into the ``grad`` of the parameters."""

WORTH_RECORDING = 50
"""Steps after which a gradient is recorded: that takes as long as some hundred of them save."""

_evaluated: "WeakKeyDictionary[th.nn.Module, Counter[Hashable]]" = WeakKeyDictionary()
"""Policy → how often a gradient has been computed that was not recorded."""


def compiled_acting(policy: ActorCriticPolicy) -> Callable[[PyTorchObs], Sequence[th.Tensor]]:
    """
    The policy's ``forward``: observations → actions, values, log-probabilities, with the same random numbers.

    :param policy: in evaluation mode; its parameters may not be replaced by others while this is used
    :return: the function; the policy itself where it cannot be traced
    """
    names, parameters = zip(*((name, p.detach()) for name, p in policy.named_parameters()), strict=True)
    found_out = False
    graph: Graph | None = None

    def graph_for(observations: PyTorchObs, arguments: list[th.Tensor]) -> Graph | None:
        n, rebuild = len(arguments) - len(names), rebuilding(observations)

        def forward(*tensors: th.Tensor) -> Any:
            return _call(policy, dict(zip(names, tensors[n:], strict=True)), rebuild(iter(tensors[:n])))

        key = "acting", policy.device, _forms(arguments[:n])
        return graph_of(policy, key, forward, arguments, "acting", draws=True)

    def act(observations: PyTorchObs) -> Sequence[th.Tensor]:
        nonlocal found_out, graph
        # Images may come transposed, and a graph is for one order in memory.
        arguments = [*(x.contiguous() for x in leaves(observations)), *parameters]
        if not found_out:
            graph, found_out = graph_for(observations, arguments), True
        return policy(observations) if graph is None else graph(arguments)

    return act


def compiled_step(
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
    device = adam.parameters.device
    learning_rate = th.tensor(adam.options["lr"], dtype=th.float64)
    state = [adam.parameters, adam.exp_avg, adam.exp_avg_sq, adam.count]
    others = _others(policy, parameters)
    constant = [*others, learning_rate]
    as_tensors = _as_tensors(device, th.float32)
    shapes: list[th.Size] | None = None
    graph: Graph | None = None

    def graph_for(minibatch: tuple[Any, ...], arguments: list[th.Tensor]) -> Graph | None:
        options = tuple(sorted((name, value) for name, value in adam.options.items() if name != "lr"))
        of_policy = _names(policy, parameters)
        given = arguments[len(state) + len(constant) :]
        full_key = (key, max_norm, options, adam.decoupled, of_policy, device, _forms(given))
        update = _update(policy, parameters, adam, loss_function, max_norm, minibatch, len(others))
        return graph_of(policy, full_key, update, arguments, "this update")

    def step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
        nonlocal shapes, graph
        given = [x.contiguous() for x in as_tensors(minibatch)]
        arguments = [*state, *constant, *given]
        given_shapes = [x.shape for x in given]
        if shapes is None:
            shapes = given_shapes
            graph = graph_for(minibatch, arguments)
        if graph is None or given_shapes != shapes:
            return eager_step(*minibatch)

        new_state, norm, left = graph(arguments)
        if proceed is not None and not proceed(left):
            return left, None, False
        th._foreach_copy_(state, new_state)
        return left, norm, True

    return step


def recorded(
    eager: Evaluation,
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    loss_function: LossFunction,
    key: Hashable,
) -> Evaluation:
    """
    The same numbers to the bit, as the bare operations that autograd has gone through, one after the other: without
    Python's way through the modules and autograd's way back, which take longer than tiny networks do.

    It is recorded for the shapes of the first minibatch when it has been computed often, and where nobody can tell the
    difference: of the networks of torch and SB3. Anything else stays as it is.

    :param eager: what is to be computed
    :param policy: the network that the loss function evaluates
    :param parameters: those of its parameters that are moved, which have a ``grad`` that is to stay theirs
    :param loss_function: a function of the policy's parameters and its arguments alone
    :param key: everything else that the loss depends on and that may change
    :return: the evaluation
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    constant = [*(p.detach() for p in parameters), *_others(policy, parameters)]
    n, m = len(parameters), len(constant)
    device = constant[0].device
    if device.type == "mps":  # has no double precision
        return eager
    as_tensors = _as_tensors(device, th.float64)  # in which Python computes with numbers
    counts = _evaluated.setdefault(policy, Counter())
    forms: Hashable = None
    graph: Graph | None = None
    found_out = False

    def graph_for(minibatch: tuple[Any, ...], given: list[th.Tensor]) -> Graph | None:
        full_key = ("gradient", key, _names(policy, parameters), device, forms)
        gradient = _gradient(policy, parameters, loss_function, minibatch)

        def flat_gradient(*tensors: th.Tensor) -> tuple[Any, ...]:
            return gradient(tensors[:n], tensors[n:m], tensors[m:])

        return graph_of(policy, full_key, flat_gradient, [*constant, *given], "the gradient", compiled=False)

    def evaluate(*minibatch: Any) -> tuple[Any, Callable[[], None]]:
        nonlocal forms, graph, found_out
        given = as_tensors(minibatch)
        given_forms = _forms(given)
        forms = forms or given_forms
        if given_forms != forms:
            return eager(*minibatch)
        if not found_out:
            counts[key, forms] += 1
            found_out = counts[key, forms] > WORTH_RECORDING
            graph = graph_for(minibatch, given) if found_out else None
        if graph is None:
            return eager(*minibatch)
        with th.inference_mode():
            new, left = graph([*constant, *given])
        return left, lambda: th._foreach_copy_(gradients, new)

    return evaluate


def compiled_function(
    policy: th.nn.Module, function: Callable[..., Any], batch: tuple[Any, ...], key: Hashable
) -> Callable[[tuple[Any, ...]], Any] | None:
    """
    :param policy: the network that the function evaluates
    :param function: of the policy's parameters and its arguments alone
    :param batch: examples of its arguments
    :param key: everything else that it depends on and that may change
    :return: batch of these shapes → what the function returns, without a graph; None where it cannot be traced
    """
    module = _Function(policy, function)
    named = {name: p.detach() for name, p in module.named_parameters()}
    rebuild = rebuilding(batch)

    def of_tensors(*tensors: th.Tensor) -> Any:
        own = dict(zip(named, tensors, strict=False))
        return _call(module, own, *rebuild(iter(tensors[len(named) :])))

    def arguments(batch: tuple[Any, ...]) -> list[th.Tensor]:
        return [*named.values(), *(x.contiguous() for x in leaves(batch))]

    examples = arguments(batch)
    full_key = ("function", key, examples[0].device, _forms(examples))
    graph = graph_of(policy, full_key, of_tensors, examples, "an evaluation of the policy")
    return None if graph is None else (lambda batch: graph(arguments(batch)))


def compiled_fisher(
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    geometry: Callable[..., tuple[Tangents, Metric]],
    batch: tuple[Any, ...],
    key: Hashable,
) -> Callable[[th.Tensor], th.Tensor] | None:
    """
    The products of :func:`~sb3_pgext.estimators.natural.fisher_vector_product`, up to rounding, as one graph. What they
    have in common, such as the forward pass, is computed here, once.

    :param policy: the network that the geometry evaluates
    :param parameters: θ, P numbers in all
    :param geometry: batch → z and the metric, a function of the policy's parameters and its arguments alone
    :param batch: its arguments
    :param key: everything else that the geometry depends on and that may change
    :return: v ``(P,)`` → F v ``(P,)``, as long as the parameters are not moved; None where that cannot be traced
    """
    module = _Function(policy, geometry)
    named = dict(module.named_parameters())
    name_of = {id(p): name for name, p in named.items()}
    theta = [name_of[id(p)] for p in parameters]
    rebuild = rebuilding(batch)

    def product(*tensors: th.Tensor) -> th.Tensor:
        own = {name: p.detach().requires_grad_(name in theta) for name, p in zip(named, tensors, strict=False)}
        outputs, metric = _call(module, own, *rebuild(iter(tensors[len(own) :])))
        return fisher_vector_product(outputs, metric, [own[name] for name in theta])(tensors[-1])

    first = [*(p.detach() for p in named.values()), *(x.contiguous() for x in leaves(batch))]
    v = th.cat([p.detach().flatten() for p in parameters])
    full_key = ("fisher", key, tuple(theta), v.device, _forms(first))
    graph = graph_of(policy, full_key, product, [*first, v], "the product with the Fisher matrix", n_first=len(first))
    if graph is None:
        return None
    product_with = graph(first)
    return lambda v: product_with([v])


class _Function(th.nn.Module):
    """A function as a module that contains the policy, for ``functional_call``."""

    def __init__(self, policy: th.nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.policy = policy
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _update(
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    adam: FlatAdam,
    loss_function: LossFunction,
    max_norm: float | None,
    minibatch: tuple[Any, ...],
    n_others: int,
) -> Callable[..., Any]:
    """
    (θ, first moment, second moment, step count, other parameters, learning rate, minibatch) → the first four anew, the
    norm, what is left.
    """
    gradient_of = _gradient(policy, parameters, loss_function, minibatch)
    beta1, beta2, eps, weight_decay = (adam.options[name] for name in ("beta1", "beta2", "eps", "weight_decay"))

    def update(
        flat: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor, count: th.Tensor, *tensors: th.Tensor
    ) -> tuple[Any, ...]:
        others, lr, given = tensors[:n_others], tensors[n_others], tensors[n_others + 1 :]
        gradients, left = gradient_of(views(flat, parameters), others, given)
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
        count = count + 1
        steps = count.double()
        denominator = (exp_avg_sq / (1 - beta2**steps)).sqrt() + eps
        flat = flat - lr / (1 - beta1**steps) * exp_avg / denominator
        return (flat, exp_avg, exp_avg_sq, count), norm, left

    return update


def _gradient(
    policy: th.nn.Module,
    parameters: Sequence[th.nn.Parameter],
    loss_function: LossFunction,
    minibatch: tuple[Any, ...],
) -> Callable[..., tuple[tuple[th.Tensor, ...], Any]]:
    """(Values of the parameters, of the other parameters, minibatch as a list of tensors) → gradients, what is left."""
    loss = _Function(policy, loss_function)
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
        value, left = _call(loss, own, *rebuild(iter(given)))
        return th.autograd.grad(value, moved, allow_unused=True, materialize_grads=True), left

    return gradient


def _others(policy: th.nn.Module, parameters: Sequence[th.nn.Parameter]) -> list[th.Tensor]:
    """Not moved, but not constant either: the policy's while the critic is fitted, or what is frozen for some time."""
    moved = {id(p) for p in parameters}
    return [p.detach() for p in policy.parameters() if id(p) not in moved]


def _names(policy: th.nn.Module, parameters: Sequence[th.nn.Parameter]) -> tuple[str, ...]:
    moved = {id(p) for p in parameters}
    return tuple(name for name, p in policy.named_parameters() if id(p) in moved)


def _as_tensors(device: th.device, dtype: th.dtype) -> Callable[[Any], list[th.Tensor]]:
    """The leaves of a structure, numbers as scalars of this type, each of which is made once."""
    numbers: dict[float, th.Tensor] = {}

    def tensor(x: th.Tensor | float) -> th.Tensor:
        if isinstance(x, th.Tensor):
            return x
        if x not in numbers:
            numbers[x] = th.tensor(x, dtype=dtype, device=device)
        return numbers[x]

    return lambda data: [tensor(x) for x in leaves(data)]


def _call(module: th.nn.Module, parameters: dict[str, th.Tensor], *arguments: Any) -> Any:
    """
    With other parameters. A module that has several names, such as SB3's shared features extractor, has its parameters
    under the first of them; where ``functional_call`` looks for the others too, it leaves tensors in their place.
    """
    return functional_call(module, parameters, arguments, tie_weights=False)


def _forms(tensors: Sequence[th.Tensor]) -> Hashable:
    return tuple((x.shape, x.stride(), x.dtype) for x in tensors)
