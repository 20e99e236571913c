"""Acting, a gradient step, a function of a batch, and a product with the Fisher matrix, as one compiled graph each."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_pgext.engine.flat_adam import FlatAdam, concatenated, views
from sb3_pgext.engine.functional import (
    FunctionOfPolicy,
    LossFunction,
    as_tensors,
    call,
    forms,
    gradient_of,
    names_of,
    values_of_others,
)
from sb3_pgext.engine.graphs import Graph, graph_of
from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.estimators.natural import Metric, Tangents, fisher_vector_product

__all__ = ["Step", "compiled_acting", "compiled_fisher", "compiled_function", "compiled_step"]

Step = Callable[..., tuple[Any, th.Tensor | None, bool]]
"""Minibatch → what the loss function left; the norm of the gradient, if it was measured; whether a step was taken."""


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
            return call(policy, dict(zip(names, tensors[n:], strict=True)), rebuild(iter(tensors[:n])))

        key = "acting", policy.device, forms(arguments[:n])
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
    others = values_of_others(policy, parameters)
    constant = [*others, learning_rate]
    tensors_of = as_tensors(device, th.float32)
    shapes: list[th.Size] | None = None
    graph: Graph | None = None

    def graph_for(minibatch: tuple[Any, ...], arguments: list[th.Tensor]) -> Graph | None:
        options = tuple(sorted((name, value) for name, value in adam.options.items() if name != "lr"))
        of_policy = names_of(policy, parameters)
        given = arguments[len(state) + len(constant) :]
        full_key = (key, max_norm, options, adam.decoupled, of_policy, device, forms(given))
        update = _update(policy, parameters, adam, loss_function, max_norm, minibatch, len(others))
        return graph_of(policy, full_key, update, arguments, "this update")

    def step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
        nonlocal shapes, graph
        given = [x.contiguous() for x in tensors_of(minibatch)]
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
    module = FunctionOfPolicy(policy, function)
    named = {name: p.detach() for name, p in module.named_parameters()}
    rebuild = rebuilding(batch)

    def of_tensors(*tensors: th.Tensor) -> Any:
        own = dict(zip(named, tensors, strict=False))
        return call(module, own, *rebuild(iter(tensors[len(named) :])))

    def arguments(batch: tuple[Any, ...]) -> list[th.Tensor]:
        return [*named.values(), *(x.contiguous() for x in leaves(batch))]

    examples = [x.clone() for x in arguments(batch)]  # which tracing may change in place
    full_key = ("function", key, examples[0].device, forms(examples))
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
    module = FunctionOfPolicy(policy, geometry)
    named = dict(module.named_parameters())
    name_of = {id(p): name for name, p in named.items()}
    theta = [name_of[id(p)] for p in parameters]
    rebuild = rebuilding(batch)

    def product(*tensors: th.Tensor) -> th.Tensor:
        own = {name: p.detach().requires_grad_(name in theta) for name, p in zip(named, tensors, strict=False)}
        outputs, metric = call(module, own, *rebuild(iter(tensors[len(own) :])))
        return fisher_vector_product(outputs, metric, [own[name] for name in theta])(tensors[-1])

    first = [*(p.detach() for p in named.values()), *(x.contiguous() for x in leaves(batch))]
    v = th.cat([p.detach().flatten() for p in parameters])
    full_key = ("fisher", key, tuple(theta), v.device, forms(first))
    graph = graph_of(policy, full_key, product, [*first, v], "the product with the Fisher matrix", n_first=len(first))
    if graph is None:
        return None
    product_with = graph(first)
    return lambda v: product_with([v])


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
    gradient = gradient_of(policy, parameters, loss_function, minibatch)
    beta1, beta2, eps, weight_decay = (adam.options[name] for name in ("beta1", "beta2", "eps", "weight_decay"))

    def update(
        flat: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor, count: th.Tensor, *tensors: th.Tensor
    ) -> tuple[Any, ...]:
        others, lr, given = tensors[:n_others], tensors[n_others], tensors[n_others + 1 :]
        gradients, left = gradient(views(flat, parameters), others, given)
        g = concatenated(gradients)
        norm = th.linalg.vector_norm(g)
        if max_norm is not None:
            g = g * th.clamp(max_norm / (norm + 1e-6), max=1.0)
        if adam.options["maximize"]:
            g = -g
        if adam.decoupled:
            flat = flat * (1 - lr * weight_decay)
        elif weight_decay:
            g = g + weight_decay * flat
        exp_avg = exp_avg + (1 - beta1) * (g - exp_avg)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        count = count + 1
        steps = count.double()
        denominator = (exp_avg_sq / (1 - beta2**steps)).sqrt() + eps
        flat = flat - lr / (1 - beta1**steps) * exp_avg / denominator
        return (flat, exp_avg, exp_avg_sq, count), norm, left

    return update
