"""Functions of a policy and gradient steps as one compiled graph each."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.func import functional_call
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from sb3_pgext.engine.adam import FlatAdam, concatenated, views
from sb3_pgext.engine.eager import Draw, Engine, Geometry, LossFunction, Proceed, Product, Step
from sb3_pgext.engine.graphs import Graph, graph_of, warn_once
from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.estimators.natural import fisher_vector_product
from sb3_pgext.rollouts.acting import unvalidated_distributions

__all__ = ["CompiledEngine"]

FISHER_ROWS = 2048
"""Rows of a compiled product with F at most: more would not stay in the cache, and take much memory."""


class _Registrations:
    """Counts the modules and parameters that are set anywhere, so that acting notices those of its policy."""

    n = 0

    @classmethod
    def note(cls, *_: Any) -> None:
        cls.n += 1


register_module_module_registration_hook(_Registrations.note)
register_module_parameter_registration_hook(_Registrations.note)


class CompiledEngine(Engine):
    """
    The same functions and steps, up to rounding, in less time. Where something cannot be compiled, it runs as it is,
    and a warning says why, once.

    :param policy: the network that they evaluate
    :param key: what its losses and functions depend on beside their arguments: the algorithm's own arguments
    :param foreign: the reason why losses are not to be compiled, for the warning; None if there is none
    :param acts: whether acting is compiled
    """

    def __init__(self, policy: Any, key: Hashable, foreign: str | None = None, acts: bool = True):
        super().__init__(policy)
        self.key, self.foreign, self.acts = key, foreign, acts

    def acting(self, with_values: bool = True, draw: Draw | None = None) -> Draw:
        """See :meth:`~sb3_pgext.engine.eager.Engine.acting`; the same random numbers are drawn."""
        eagerly = super().acting(with_values, draw)
        if not self.acts or (draw is not None and self.foreign is not None):
            return eagerly
        graphs: dict[Hashable, Graph | None] = {}
        policy, n_registered = self.policy, _Registrations.n
        parameters = list(policy.parameters())

        def act(observations: PyTorchObs) -> Sequence[th.Tensor]:
            nonlocal n_registered, parameters
            if n_registered != _Registrations.n:  # a callback may have set other modules or parameters
                n_registered, parameters = _Registrations.n, list(policy.parameters())
                graphs.clear()
            # Images may come transposed, and a graph is for one order in memory.
            given = [x.contiguous() for x in leaves(observations)]
            arguments = [*parameters, *given]
            form = tuple([(x.shape, x.dtype) for x in given])
            if form not in graphs:
                forward = _of_tensors(policy if draw is None else _FunctionOfPolicy(policy, draw), (observations,))
                with th.no_grad(), unvalidated_distributions():
                    key = None if draw is None else self.key
                    graphs[form] = graph_of(policy, key, forward, arguments, "acting", draws=True)
                n_registered = _Registrations.n  # among them the policy's in the function
            graph = graphs[form]
            if graph is None:
                return eagerly(observations)
            with th.no_grad():
                return graph(arguments)

        return act

    def _compiled_function(
        self, function: Callable[..., Any], examples: tuple[Any, ...], key: Hashable
    ) -> Callable[..., Any]:
        if key is None or self.foreign is not None:
            return function
        module = _FunctionOfPolicy(self.policy, function)
        parameters = [p.detach() for p in module.parameters()]

        def arguments(batch: tuple[Any, ...]) -> list[th.Tensor]:
            return [*parameters, *(x.contiguous() for x in leaves(batch))]

        first = [x.clone() for x in arguments(examples)]  # which tracing may change in place
        of_tensors = _of_tensors(module, examples)
        graph = graph_of(self.policy, (self.key, key), of_tensors, first, "an evaluation of the policy")
        return function if graph is None else lambda *batch: graph(arguments(batch))

    def fisher(
        self, parameters: Sequence[th.nn.Parameter], geometry: Geometry, batch: tuple[Any, ...], key: Hashable = None
    ) -> Product:
        """See :meth:`~sb3_pgext.engine.eager.Engine.fisher`; the mean over equal parts of the steps."""
        n_steps = len(leaves(batch)[0])
        together = -(-n_steps // -(-n_steps // FISHER_ROWS))  # so that little is left over
        parts = self.separable_parts(batch, together)
        shares = [len(leaves(part)[0]) / n_steps for part in parts]
        products = []
        for share, part in zip(shares, parts, strict=True):
            compiled = None if share < shares[0] else self._compiled_fisher(parameters, geometry, part, key)
            products.append(compiled or super().fisher(parameters, geometry, part))
        return lambda v: th.stack([share * f(v) for share, f in zip(shares, products, strict=True)]).sum(0)

    def _compiled_fisher(
        self, parameters: Sequence[th.nn.Parameter], geometry: Geometry, batch: tuple[Any, ...], key: Hashable
    ) -> Product | None:
        """The product as one graph. All that products have in common, such as the forward pass, is computed once."""
        if self.foreign is not None:
            return None
        module = _FunctionOfPolicy(self.policy, geometry)
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
        full_key, what = (self.key, key, tuple(theta)), "the product with the Fisher matrix"
        graph = graph_of(self.policy, full_key, product, [*first, v], what, n_first=len(first))
        if graph is None:
            return None
        product_with = graph(first)
        return lambda v: product_with([v])

    def _compiled_step(
        self,
        step: Step,
        adam: FlatAdam | None,
        parameters: Sequence[th.nn.Parameter],
        loss_function: LossFunction,
        max_norm: float | None,
        proceed: Proceed | None,
        key: tuple[Hashable, int | None],
    ) -> Step:
        """
        Loss, gradient, its norm and Adam in one graph, for the shapes of the first minibatch.

        Minibatches of other shapes, such as a shorter last one, take the eager step.
        """
        policy = self.policy
        if adam is None or self.foreign is not None:
            only = "Adam and AdamW with one group of parameters, default implementation and no hooks"
            warn_once(policy, "an update", self.foreign or f"Compiled are {only}, not this optimizer")
            return step
        moved = {id(p) for p in parameters}
        names = tuple(name for name, p in policy.named_parameters() if id(p) in moved)
        options = tuple(sorted((name, value) for name, value in adam.options.items() if name != "lr"))
        full_key = (self.key, loss_function.__qualname__, key, max_norm, options, adam.decoupled, names)
        device = adam.parameters.device
        adam.count = adam.count.to(device)  # a graph with a part on the CPU would wait for it
        state = [adam.parameters, adam.exp_avg, adam.exp_avg_sq, adam.count]
        learning_rate = th.tensor(adam.options["lr"], dtype=th.float64, device=device)
        constant: list[th.Tensor] = []
        tensors_of = _as_tensors(device)
        shapes: list[th.Size] | None = None
        graph: Graph | None = None

        def compiled_step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
            nonlocal shapes, graph
            if not constant:  # now that all networks that are moved at the same time lie where they will
                # Not moved here, but not constant either: the policy's while the critic is fitted, or what is frozen.
                others = [p.detach() for p in policy.parameters() if id(p) not in moved]
                constant.extend([*state, *others, learning_rate])
            arguments = [*constant, *(x.contiguous() for x in tensors_of(minibatch))]
            given_shapes = [x.shape for x in arguments[len(constant) :]]
            if shapes is None:
                shapes, (_, batch_size) = given_shapes, key
                if batch_size not in (None, len(leaves(minibatch)[0])):  # of a batch that is shorter each time
                    return step(*minibatch)
                update = _update(policy, parameters, adam, loss_function, max_norm, minibatch, len(constant) - 5)
                graph = graph_of(policy, full_key, update, arguments, "an update")
            if graph is None or given_shapes != shapes:
                return step(*minibatch)
            new_state, norm, log = graph(arguments)
            if proceed is not None and not proceed(log):
                return log, None, False
            th._foreach_copy_(state, new_state)
            return log, norm, True

        return compiled_step


class _FunctionOfPolicy(th.nn.Module):
    """A function as a module that contains the policy, for ``functional_call``."""

    def __init__(self, policy: th.nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.policy = policy
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _call(module: th.nn.Module, parameters: dict[str, th.Tensor], *arguments: Any) -> Any:
    """
    Call a module with other parameters.

    A module that has several names, such as SB3's shared features extractor, has its parameters under the first of
    them; where ``functional_call`` looks for the others too, it leaves tensors in their place.
    """
    return functional_call(module, parameters, arguments, tie_weights=False)


def _of_tensors(module: th.nn.Module, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """A module as a function of its parameters and of the leaves of arguments like these."""
    names, rebuild = [name for name, _ in module.named_parameters()], rebuilding(arguments)

    def of_tensors(*tensors: th.Tensor) -> Any:
        own = dict(zip(names, tensors, strict=False))
        return _call(module, own, *rebuild(iter(tensors[len(names) :])))

    return of_tensors


def _as_tensors(device: th.device) -> Callable[[Any], list[th.Tensor]]:
    """The leaves of a structure, numbers as scalars in single precision, each of which is made once."""
    numbers: dict[float, th.Tensor] = {}

    def tensor(x: th.Tensor | float) -> th.Tensor:
        if isinstance(x, th.Tensor):
            return x
        if x not in numbers:
            numbers[x] = th.tensor(x, dtype=th.float32, device=device)
        return numbers[x]

    return lambda data: [tensor(x) for x in leaves(data)]


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
    norm, the loss function's tensors for the log.
    """
    loss = _FunctionOfPolicy(policy, loss_function)
    name_of = {id(p): name for name, p in loss.named_parameters()}
    names = [name_of[id(p)] for p in parameters]
    other_names = [name for name in name_of.values() if name not in set(names)]
    rebuild = rebuilding(minibatch)
    beta1, beta2, eps, weight_decay = (adam.options[name] for name in ("beta1", "beta2", "eps", "weight_decay"))

    def update(
        flat: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor, count: th.Tensor, *tensors: th.Tensor
    ) -> tuple[Any, ...]:
        others, lr, given = tensors[:n_others], tensors[n_others], tensors[n_others + 1 :]
        # By autograd: torch.func's grad goes through other operations in places.
        moved = [value.detach().requires_grad_() for value in views(flat, parameters)]
        own = dict(zip([*names, *other_names], [*moved, *others], strict=True))
        value, log = _call(loss, own, *rebuild(iter(given)))
        g = concatenated(th.autograd.grad(value, moved, allow_unused=True, materialize_grads=True))
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
        return (flat, exp_avg, exp_avg_sq, count), norm, log

    return update
