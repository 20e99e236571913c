"""Functions of a policy and gradient steps, computed as they are written."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sb3_pgext.engine.adam import can_be_flattened, flattened
from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.engine.plain import foreign_part
from sb3_pgext.estimators.natural import Metric, Tangents, fisher_vector_product
from sb3_pgext.rollouts.acting import unvalidated_distributions

__all__ = ["Engine", "LossFunction", "Step", "evaluation_mode", "moved_by"]

Draw = Callable[[PyTorchObs], Sequence[Any]]
"""Observations → actions, and what else is asked for beside them."""

LossFunction = Callable[..., tuple[th.Tensor, Any]]
"""Minibatch → its loss, a scalar, and tensors for the log, without a graph."""

Step = Callable[..., tuple[Any, th.Tensor | None, bool]]
"""Minibatch → the loss function's tensors for the log; the gradient's norm, if measured; whether a step was taken."""

Proceed = Callable[[Any], th.Tensor]
"""The loss function's tensors for the log → whether the step is taken, a scalar."""

Average = Callable[[Sequence[th.Tensor], int], None]
"""Means over so many rows → the same tensors as means over the rows of all processes."""

Geometry = Callable[..., tuple[Tangents, Metric]]
"""Steps → z and the metric, see :func:`~sb3_pgext.estimators.natural.fisher_vector_product`."""

Product = Callable[[th.Tensor], th.Tensor]
"""v → F v, ``(P,)`` each."""

AT_ONCE = 1024
"""Rows that go through the networks together: what these keep of each takes more memory than the row itself."""


FLAT_AT_MOST = 2**18
"""Numbers of a network that steps as one vector: of a larger one the calls are few beside the memory that is moved."""


@contextmanager
def evaluation_mode(policy: th.nn.Module) -> Iterator[None]:
    """The policy as it acts: without dropout, which would draw random numbers, and with batch norm's statistics."""
    modes = {module: module.training for module in policy.modules()}
    policy.train(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Engine:
    """
    Computes functions of a policy, and takes gradient steps.

    Functions depend on the policy's parameters and their arguments alone. A batch is tensors ``(M, …)``, nested in
    tuples and dicts in any way.

    :param policy: the network that they evaluate
    :param average: what makes gradients and losses those of all processes, in place; None for a process alone
    """

    def __init__(self, policy: Any, average: Average | None = None):
        self.policy, self.average = policy, average

    def over(self, network: th.nn.Module) -> "Engine":
        """
        The same engine for another network.

        :param network: which functions evaluate, and which is moved, beside the policy
        :return: its engine
        """
        return Engine(network)

    def acting(
        self,
        with_values: bool = True,
        draw: Draw | None = None,
        beside: th.nn.Module | None = None,
        otherwise: Draw | None = None,
    ) -> Draw:
        """
        Acting during a rollout.

        :param with_values: whether values and log-probabilities are needed
        :param draw: how a policy without a critic of V acts, or what else is done with it; None for its ``forward``
        :param beside: another module that ``draw`` evaluates
        :param otherwise: does the same as ``draw``, where that cannot be compiled; None for ``draw`` as it is
        :return: observations → actions, values, log-probabilities, as the policy's ``forward``; or those of ``draw``
        """
        policy = self.policy

        def act(observations: PyTorchObs) -> Sequence[Any]:
            with th.no_grad(), unvalidated_distributions():
                if draw is not None:
                    return draw(observations)
                if with_values:
                    return policy(observations)
                return policy.get_distribution(observations).get_actions(), None, None

        return act

    @th.no_grad()
    def evaluate(self, function: Callable[..., Any], batch: tuple[Any, ...], key: Hashable = None) -> Any:
        """
        Evaluate a function of each row of a batch, some rows at a time, with the policy as it acts.

        :param function: rows of the batch → tensors of as many rows, nested in any way
        :param batch: M rows
        :param key: what it depends on beside its arguments, the policy and the algorithm's own arguments
        :return: the function's tensors, of all M rows, constant
        """
        parts = _parts(batch, AT_ONCE)
        with evaluation_mode(self.policy):
            compute = self._compiled_function(function, parts[0], key)
            n_rows = len(leaves(parts[0])[0])  # of the last part, there may be fewer
            return _together([(compute if len(leaves(part)[0]) == n_rows else function)(*part) for part in parts])

    def _compiled_function(
        self, function: Callable[..., Any], examples: tuple[Any, ...], key: Hashable
    ) -> Callable[..., Any]:
        """The function for rows like the examples: as it is here, compiled in a subclass."""
        return function

    def differentiable(self, function: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
        """
        Evaluate a function for a gradient that is asked for once.

        Of a large batch, what the networks keep of each row is computed anew when the gradient is.

        :param function: rows of the batch → tensors of as many rows, nested in any way
        :param batch: M rows
        :return: the function's tensors, of all M rows, differentiable
        """
        parts = self.separable_parts(batch, AT_ONCE)
        if len(parts) == 1:
            return function(*batch)

        def of_part(*part: Any) -> Any:
            return function(*rebuilding(part)(leaf.clone() for leaf in leaves(part)))  # it goes in twice, as it is now

        return _together([checkpoint(of_part, *part, use_reentrant=False) for part in parts])

    def separable_parts(self, batch: tuple[Any, ...], n_rows: int) -> list[tuple[Any, ...]]:
        """
        Cut a batch where that changes no gradient.

        :param batch: M rows
        :param n_rows: how many rows go together
        :return: parts of so many rows, the last one maybe of fewer; the whole batch, as the only one, where the policy
            may look at other rows while it is trained: with parts of a user's own, or running statistics
        """
        policy = self.policy
        looks_at_others = list(policy.buffers()) or any(isinstance(m, _BatchNorm) for m in policy.modules())
        return [batch] if looks_at_others or foreign_part(policy) else _parts(batch, n_rows)

    def fisher(
        self, parameters: Sequence[th.nn.Parameter], geometry: Geometry, batch: tuple[Any, ...], key: Hashable = None
    ) -> Product:
        """
        Products with the Fisher matrix of the policy as it is now.

        :param parameters: θ, P numbers in all
        :param geometry: batch → z and the metric
        :param batch: M steps
        :param key: what the geometry depends on beside its arguments and the policy
        :return: v ``(P,)`` → F v ``(P,)``, as long as the parameters are not moved
        """
        return fisher_vector_product(*geometry(*batch), parameters)

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
        Many gradient steps in a row, each along the gradient of a minibatch's loss.

        An Adam or AdamW of a small network steps with one vector meanwhile, of which parameters and gradients are
        views.

        :param optimizer: of the parameters
        :param parameters: those that are moved
        :param loss_function: minibatch → loss
        :param max_norm: the gradient is shortened to this norm, as by torch's ``clip_grad_norm_``; infinity only
            measures it, None does not
        :param proceed: whether a step is taken; None for always
        :param fused: see :func:`~sb3_pgext.engine.adam.flattened`
        :param key: what the loss depends on beside its arguments, the policy and the algorithm's own arguments
        :param batch_size: rows of a full minibatch, the only ones worth a graph; None for those of the first one
        :return: context of the step
        """
        optimizer.zero_grad(set_to_none=True)
        parameters, average = moved_by(optimizer, parameters), self.average
        small = sum(p.numel() for p in parameters) <= FLAT_AT_MOST
        in_one = small and can_be_flattened(optimizer, parameters)
        with flattened(optimizer, parameters, fused) if in_one else nullcontext() as adam:
            stepped = parameters if adam is None else [adam.parameters]
            move = optimizer.step if adam is None else adam.step

            def step(*minibatch: Any) -> tuple[Any, th.Tensor | None, bool]:
                loss, log = loss_function(*minibatch)
                if proceed is not None and average is None and not proceed(log):
                    return log, None, False
                if adam is not None:
                    adam.zero_grad(parameters)
                else:
                    optimizer.zero_grad()
                loss.backward(inputs=parameters)
                if average is not None:  # before anybody decides by what is logged
                    gradients = [p.grad for p in stepped if p.grad is not None]
                    average([*gradients, *leaves(log)], len(leaves(minibatch)[0]))
                    if proceed is not None and not proceed(log):
                        return log, None, False
                norm = _clip(parameters, stepped, max_norm)
                move()
                return log, norm, True

            yield step


def moved_by(optimizer: th.optim.Optimizer, parameters: Sequence[th.nn.Parameter]) -> list[th.nn.Parameter]:
    """
    :param optimizer: any
    :param parameters: of a network
    :return: those that the optimizer moves, and that are not frozen
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [p for p in parameters if p.requires_grad and id(p) in known]


def _clip(parameters: Sequence[th.Tensor], stepped: Sequence[th.Tensor], max_norm: float | None) -> th.Tensor | None:
    """Shorten the gradients as ``clip_grad_norm_`` does, which may be views of the fewer tensors that are stepped."""
    if max_norm is None:
        return None
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm([p.grad for p in parameters if p.grad is not None])))
    scale = th.clamp(max_norm / (norm + 1e-6), max=1.0)
    for p in stepped:
        if p.grad is not None:
            p.grad.mul_(scale)
    return norm


def _parts(batch: tuple[Any, ...], n_rows: int) -> list[tuple[Any, ...]]:
    rebuild = rebuilding(batch)
    return [rebuild(iter(part)) for part in zip(*(leaf.split(n_rows) for leaf in leaves(batch)), strict=True)]


def _together(results: list[Any]) -> Any:
    """The results of the parts as one, of all rows."""
    if len(results) == 1:
        return results[0]
    columns = zip(*map(leaves, results), strict=True)
    return rebuilding(results[0])(th.cat(column) for column in columns)
