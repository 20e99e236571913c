"""Gradient steps as one graph each: loss, gradient, its norm, and Adam."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import torch as th

from sb3_pgext.engine.adam import adam_options, concatenated, moments_of, views
from sb3_pgext.engine.eager import Average, LossFunction, Proceed, Step
from sb3_pgext.engine.functional import FunctionOfPolicy, of_tensors
from sb3_pgext.engine.graphs import Examined, Graph, graph_of
from sb3_pgext.engine.nested import leaves

__all__ = ["AveragedDescent", "CompiledDescent"]

Result = tuple[Any, th.Tensor | None, bool]


class CompiledDescent:
    """
    Many gradient steps in a row, compiled for the shapes of the first minibatch; a context manager.

    :param policy: the network that the loss evaluates
    :param examined: it as it is now
    :param optimizer: one that :func:`~sb3_pgext.engine.adam.can_be_flattened`
    :param parameters: those of its parameters that are moved
    :param loss_function: minibatch → loss
    :param max_norm: of the gradient; None for any
    :param proceed: whether a step is taken; None for always
    :param key: what the graph depends on beside the policy and the optimizer
    :param batch_size: rows of a full minibatch, the only ones worth a graph; None for those of the first one
    :param eagerly: makes a context of the step as it is, for minibatches of other shapes
    """

    def __init__(
        self,
        policy: th.nn.Module,
        examined: Examined,
        optimizer: th.optim.Optimizer,
        parameters: Sequence[th.nn.Parameter],
        loss_function: LossFunction,
        max_norm: float | None,
        proceed: Proceed | None,
        key: Hashable,
        batch_size: int | None,
        eagerly: Callable[[], AbstractContextManager[Step]],
    ):
        self.policy, self.examined, self.parameters, self.loss_function = policy, examined, parameters, loss_function
        self.max_norm, self.proceed, self.batch_size, self.eagerly = max_norm, proceed, batch_size, eagerly
        moved, self.device = set(map(id, parameters)), parameters[0].device
        # Not moved here, but not constant either: the policy's while the critic is fitted, or what is frozen.
        self.others = [p for p in examined.parameters if id(p) not in moved]
        places = tuple(i for i, p in enumerate(examined.parameters) if id(p) in moved)
        self.options, self.decoupled = adam_options(optimizer)
        self.learning_rate = th.tensor(self.options.pop("lr"), dtype=th.float64, device=self.device)
        # Where nobody decides on the step, the graph takes it; a CUDA graph does not change what it is given.
        self.in_place = proceed is None and self.device.type == "cpu"
        of_optimizer = tuple(self.options.items()), self.decoupled, max_norm
        self.key = key, loss_function.__qualname__, batch_size, of_optimizer, places, self.in_place
        self.moments = moments_of(optimizer, parameters)
        self.steps = self.moments.steps.to(self.device)  # a graph with a part on the CPU would wait for it
        self.state = [*parameters, self.moments.exp_avg, self.moments.exp_avg_sq, self.steps]
        self.constant = [*self.state, *self.others, self.learning_rate]
        self.shapes: list[th.Size] | None = None
        self.graph: Graph | None = None
        self.uncompiled: Step | None = None
        self.for_good = ExitStack()
        self.numbers: dict[float, th.Tensor] = {}

    def __enter__(self) -> Step:
        return self.step

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.uncompiled is None:
            self.moments.steps.copy_(self.steps)
        self.for_good.__exit__(*error)  # type: ignore[arg-type]

    def step(self, *minibatch: Any) -> Result:
        """See :data:`~sb3_pgext.engine.eager.Step`."""
        if self.uncompiled is not None:
            return self.uncompiled(*minibatch)
        given = [self._tensor(x).contiguous() for x in leaves(minibatch)]
        shapes = [x.shape for x in given]
        full = self.batch_size is None or len(given[0]) == self.batch_size  # it may be shorter each time
        if self.shapes is None and full:
            self.shapes = shapes
            self.graph = self._graph(minibatch, [*self.constant, *given])
            if self.graph is None:
                self.uncompiled = self.for_good.enter_context(self.eagerly())
                return self.uncompiled(*minibatch)
        if self.graph is None or shapes != self.shapes:
            return self._step_of_another_shape(minibatch)
        with th.no_grad():
            new_state, norm, log = self.graph([*self.constant, *given])
            if self.proceed is not None and not self.proceed(log):
                return log, None, False
            if not self.in_place:
                th._foreach_copy_(self.state, new_state)
        return log, norm, True

    def _tensor(self, x: th.Tensor | float) -> th.Tensor:
        """A number as a scalar in single precision, which is made once."""
        if isinstance(x, th.Tensor):
            return x
        if x not in self.numbers:
            self.numbers[x] = th.tensor(x, dtype=th.float32, device=self.device)
        return self.numbers[x]

    def _graph(self, minibatch: tuple[Any, ...], arguments: Sequence[th.Tensor]) -> Graph | None:
        update = _update(self._gradient(minibatch), self._adam(), len(self.parameters), len(self.others))
        return graph_of(self.policy, self.key, update, arguments, "an update", examined=self.examined)

    def _gradient(self, minibatch: tuple[Any, ...]) -> Callable[..., Any]:
        function = FunctionOfPolicy(self.policy, self.loss_function)
        loss = of_tensors(function, [*self.parameters, *self.others], minibatch)
        return _gradient(loss, len(self.parameters))

    def _adam(self) -> Callable[..., Any]:
        return _adam(len(self.parameters), self.options, self.decoupled, self.max_norm, self.in_place)

    def _step_of_another_shape(self, minibatch: tuple[Any, ...]) -> Result:
        self.moments.steps.copy_(self.steps)
        with self.eagerly() as step:
            result = step(*minibatch)
        self.steps.copy_(self.moments.steps)
        return result


class AveragedDescent(CompiledDescent):
    """
    Compiled gradient steps along the mean gradient of several processes: one graph ends at the gradient, another
    one steps.

    All take the same step, also where only some have a minibatch of the shape of their graph: steps that round
    differently would drive their parameters apart.

    :param average: see :class:`~sb3_pgext.engine.eager.Engine`
    :param arguments: see :class:`CompiledDescent`
    """

    def __init__(self, average: Average, *arguments: Any):
        super().__init__(*arguments)
        self.average = average
        self.in_place = self.device.type == "cpu"
        state = [*self.state, self.learning_rate, concatenated([p.detach() for p in self.parameters])]
        key = (*self.key[:-1], self.in_place)
        self.move = graph_of(self.policy, key, self._adam(), state, "a step", examined=self.examined)
        if self.move is None:
            self.uncompiled = self.for_good.enter_context(self.eagerly())

    def step(self, *minibatch: Any) -> Result:
        """See :data:`~sb3_pgext.engine.eager.Step`."""
        if self.move is None:
            assert self.uncompiled is not None
            return self.uncompiled(*minibatch)
        given = [self._tensor(x).contiguous() for x in leaves(minibatch)]
        gradient, log = self._averaged(minibatch, given)
        if self.proceed is not None and not self.proceed(log):
            return log, None, False
        with th.no_grad():
            new_state, norm = self.move([*self.state, self.learning_rate, gradient])
            if not self.in_place:
                th._foreach_copy_(self.state, new_state)
        return log, norm, True

    def _averaged(self, minibatch: tuple[Any, ...], given: Sequence[th.Tensor]) -> tuple[th.Tensor, Any]:
        """The gradient of all processes in one vector, and their log."""
        arguments, shapes = [*self.parameters, *self.others, *given], [x.shape for x in given]
        if self.shapes is None and self.batch_size in (None, len(given[0])):
            self.shapes, of_tensors = shapes, self._gradient(minibatch)
            what = "a gradient"
            self.graph = graph_of(self.policy, self.key, of_tensors, arguments, what, examined=self.examined)
        if self.graph is not None and shapes == self.shapes:
            with th.no_grad():
                gradient, log = self.graph(arguments)
        else:
            loss, log = self.loss_function(*minibatch)
            gradients = th.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            gradient = concatenated(gradients)
        self.average([gradient, *leaves(log)], len(given[0]))
        return gradient, log


def _gradient(loss: Callable[..., tuple[th.Tensor, Any]], n_moved: int) -> Callable[..., Any]:
    """(θ in its parts, other parameters, minibatch) → ∇ loss in one vector; the loss function's tensors for the log."""

    def gradient(*tensors: th.Tensor) -> tuple[th.Tensor, Any]:
        # By autograd: torch.func's grad goes through other operations in places.
        moved = [p.detach().requires_grad_() for p in tensors[:n_moved]]
        value, log = loss(*moved, *tensors[n_moved:])
        return concatenated(th.autograd.grad(value, moved, allow_unused=True, materialize_grads=True)), log

    return gradient


def _adam(
    n_moved: int, options: dict[str, Any], decoupled: bool, max_norm: float | None, in_place: bool
) -> Callable[..., Any]:
    """
    (θ in its parts, first moments, second moments, steps, learning rate, gradient) → the first four anew, or nothing
    where they are changed in place; the norm.
    """
    beta1, beta2, eps, weight_decay = (options[name] for name in ("beta1", "beta2", "eps", "weight_decay"))

    def step(*tensors: th.Tensor) -> tuple[Any, ...]:
        state, (lr, g) = tensors[: n_moved + 3], tensors[n_moved + 3 :]
        theta, (exp_avg, exp_avg_sq, steps) = state[:n_moved], state[n_moved:]
        norm = th.linalg.vector_norm(g)
        if max_norm is not None:
            g = g * th.clamp(max_norm / (norm + 1e-6), max=1.0)
        if options["maximize"]:
            g = -g
        if decoupled:
            theta = tuple(p * (1 - lr * weight_decay) for p in theta)
        elif weight_decay:
            g = g + weight_decay * concatenated(theta)
        exp_avg = exp_avg + (1 - beta1) * (g - exp_avg)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        steps = steps + 1
        count = steps[0].double()
        denominator = (exp_avg_sq / (1 - beta2**count)).sqrt() + eps
        change = lr / (1 - beta1**count) * exp_avg / denominator
        new_state = [*(p - d for p, d in zip(theta, views(change, theta), strict=True)), exp_avg, exp_avg_sq, steps]
        if not in_place:
            return new_state, norm
        for old, new in zip(state, new_state, strict=True):
            old.copy_(new)
        return [], norm

    return step


def _update(gradient: Callable[..., Any], step: Callable[..., Any], n_moved: int, n_others: int) -> Callable[..., Any]:
    """
    (θ in its parts, first moments, second moments, steps, other parameters, learning rate, minibatch) → what the step
    returns; the loss function's tensors for the log.
    """

    def update(*tensors: th.Tensor) -> tuple[Any, ...]:
        state, others_and_more = tensors[: n_moved + 3], tensors[n_moved + 3 :]
        others, lr, given = others_and_more[:n_others], others_and_more[n_others], others_and_more[n_others + 1 :]
        g, log = gradient(*state[:n_moved], *others, *given)
        return *step(*state, lr, g), log

    return update
