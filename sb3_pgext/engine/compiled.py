"""Functions of a policy and gradient steps as one compiled graph each."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from sb3_pgext.engine.adam import can_be_flattened
from sb3_pgext.engine.descent import AveragedDescent, CompiledDescent
from sb3_pgext.engine.eager import Average, Draw, Engine, Geometry, LossFunction, Proceed, Product, Step, moved_by
from sb3_pgext.engine.functional import FunctionOfPolicy, call_with, names_of, of_tensors
from sb3_pgext.engine.graphs import Examined, Graph, examine, graph_of, warn_once
from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.engine.plain import parameters_of, structure_of
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
    An engine that compiles functions and steps: the same results up to rounding, in less time. Where something
    cannot be compiled, it runs as it is, and a warning says why, once.

    :param policy: the network that they evaluate
    :param key: what its losses and functions depend on beside their arguments: the algorithm's own arguments
    :param foreign: the reason why losses are not to be compiled, for the warning; None if there is none
    :param acts: whether acting is compiled
    :param average: see :class:`~sb3_pgext.engine.eager.Engine`
    """

    def __init__(
        self,
        policy: Any,
        key: Hashable,
        foreign: str | None = None,
        acts: bool = True,
        average: Average | None = None,
    ):
        super().__init__(policy, average)
        self.key, self.foreign, self.acts = key, foreign, acts

    def over(self, network: th.nn.Module) -> "CompiledEngine":
        """See :meth:`~sb3_pgext.engine.eager.Engine.over`."""
        return CompiledEngine(network, self.key, self.foreign, self.acts)

    def acting(
        self,
        with_values: bool = True,
        draw: Draw | None = None,
        beside: th.nn.Module | None = None,
        otherwise: Draw | None = None,
    ) -> Draw:
        """See :meth:`~sb3_pgext.engine.eager.Engine.acting`; the same random numbers are drawn."""
        eagerly = otherwise or super().acting(with_values, draw)
        if not self.acts or (draw is not None and self.foreign is not None):
            return eagerly
        graphs: dict[Hashable, Graph | None] = {}
        policy, n_registered = self.policy, _Registrations.n
        parameters = parameters_of(policy)

        def act(observations: PyTorchObs) -> Sequence[th.Tensor]:
            nonlocal n_registered, parameters
            if n_registered != _Registrations.n:  # a callback may have set other modules or parameters
                n_registered, parameters = _Registrations.n, parameters_of(policy)
                graphs.clear()
            # Images may come transposed, and a graph is for one order in memory.
            given = [x.contiguous() for x in leaves(observations)]
            arguments = [*parameters, *given]
            form = tuple([(x.shape, x.dtype) for x in given])
            if form not in graphs:
                module = policy if draw is None else FunctionOfPolicy(policy, draw)
                forward = of_tensors(module, parameters, (observations,))
                with th.no_grad(), unvalidated_distributions():
                    key = None if draw is None else (self.key, beside and structure_of(beside))
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
        module = FunctionOfPolicy(self.policy, function)
        parameters = parameters_of(self.policy)
        values = [p.detach() for p in parameters]

        def arguments(batch: tuple[Any, ...]) -> list[th.Tensor]:
            return [*values, *(x.contiguous() for x in leaves(batch))]

        of_leaves, what = of_tensors(module, parameters, examples), "an evaluation of the policy"
        graph = graph_of(self.policy, (self.key, key), of_leaves, arguments(examples), what)
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
        module = FunctionOfPolicy(self.policy, geometry)
        named = dict(module.named_parameters())
        theta = names_of(module, parameters)
        rebuild = rebuilding(batch)

        def product(*tensors: th.Tensor) -> th.Tensor:
            own = {name: p.detach().requires_grad_(name in theta) for name, p in zip(named, tensors, strict=False)}
            outputs, metric = call_with(module, own, *rebuild(iter(tensors[len(own) :])))
            return fisher_vector_product(outputs, metric, [own[name] for name in theta])(tensors[-1])

        first = [*(p.detach() for p in named.values()), *(x.contiguous() for x in leaves(batch))]
        v = th.cat([p.detach().flatten() for p in parameters])
        full_key, what = (self.key, key, tuple(theta)), "the product with the Fisher matrix"
        graph = graph_of(self.policy, full_key, product, [*first, v], what, n_first=len(first))
        if graph is None:
            return None
        product_with = graph(first)
        return lambda v: product_with([v])

    @cached_property
    def _examined(self) -> Examined:
        """The policy as it is when its first update begins: an engine is made for each update."""
        return examine(self.policy)

    @contextmanager
    def descending(
        self,
        optimizer: th.optim.Optimizer,
        parameters: Sequence[th.nn.Parameter],
        loss_function: LossFunction,
        max_norm: float | None = None,
        proceed: Proceed | None = None,
        fused: bool = False,
        key: Hashable = None,
        batch_size: int | None = None,
    ) -> Iterator[Step]:
        """
        See :meth:`~sb3_pgext.engine.eager.Engine.descending`: loss, gradient, its norm and Adam in one graph, for the
        shapes of the first minibatch.

        Minibatches of other shapes, such as a shorter last one, take the eager step.
        """
        eagerly = partial(super().descending, optimizer, parameters, loss_function, max_norm, proceed, fused)
        parameters = moved_by(optimizer, parameters)
        if self.foreign is not None or not can_be_flattened(optimizer, parameters):
            only = "Adam and AdamW with one group of parameters, default implementation and no hooks"
            warn_once(self.policy, "an update", self.foreign or f"Compiled are {only}, not this optimizer")
            with eagerly() as as_it_is:
                yield as_it_is
            return
        of_network: Any = self.policy, self._examined, optimizer, parameters
        options: Any = loss_function, max_norm, proceed, (self.key, key), batch_size, eagerly
        if self.average is None:
            descent = CompiledDescent(*of_network, *options)
        else:
            descent = AveragedDescent(self.average, *of_network, *options)
        with descent as step:
            yield step
