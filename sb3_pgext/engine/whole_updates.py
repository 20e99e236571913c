"""An update happens as a whole or not at all."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_pgext.engine.plain import modules_of
from sb3_pgext.rollouts.acting import unvalidated_distributions
from sb3_pgext.rollouts.checks import all_finite, first_not_finite

__all__ = ["require_finite_losses", "require_finite_state", "whole_update"]

Update = TypeVar("Update", bound=Callable[..., Any])


def whole_update(update: Update) -> Update:
    """
    Undo an update that fails: of a NaN, Ctrl-C, an error of the user's code.

    What SB3 saves of a model (``_get_torch_save_params``: networks, optimizers, tensors), and attributes that are
    numbers, are put back then. What a finished update leaves must be finite.

    :param update: a method of an SB3 algorithm
    :return: the same method, which may also raise the ValueError of :func:`require_finite_state`
    """

    @wraps(update)
    def whole(model: BaseAlgorithm, *arguments: Any, **options: Any) -> Any:
        put_back = _restorer(model, [part for _, part in _trained_parts(model)])
        numbers = {name: value for name, value in vars(model).items() if type(value) in (int, float)}
        try:
            with unvalidated_distributions():  # what is not finite is named by its place in the update
                result = update(model, *arguments, **options)
                require_finite_state(model)
        except BaseException:
            put_back()
            vars(model).update(numbers)
            raise
        return result

    return whole  # type: ignore[return-value]


def _trained_parts(model: BaseAlgorithm) -> Iterator[tuple[str, Any]]:
    """The networks, optimizers and tensors that SB3 saves of a model, by name."""
    for name in (name for names in model._get_torch_save_params() for name in names):
        yield name, recursive_getattr(model, name)


_copies: "WeakKeyDictionary[BaseAlgorithm, list[th.Tensor]]" = WeakKeyDictionary()
"""Model → the memory that its tensors are copied to before each update."""


def _restorer(model: BaseAlgorithm, parts: Sequence[Any]) -> Callable[[], object]:
    """A function that takes networks, optimizers and tensors back to what they are now."""
    optimizers = [part for part in parts if isinstance(part, th.optim.Optimizer)]
    groups = [[dict(group) for group in optimizer.param_groups] for optimizer in optimizers]
    states = [{p: dict(state) for p, state in optimizer.state.items()} for optimizer in optimizers]
    others = [part for part in parts if not isinstance(part, (th.nn.Module, th.optim.Optimizer, th.Tensor))]
    of_others = [copy.deepcopy(part.state_dict()) for part in others]
    tensors = _tensors(parts)
    values = _copies.get(model, [])
    if [(x.shape, x.dtype, x.device) for x in values] != [(x.shape, x.dtype, x.device) for x in tensors]:
        values = _copies[model] = [th.empty_like(x) for x in tensors]
    with th.no_grad():
        th._foreach_copy_(values, tensors)

    @th.no_grad()
    def put_back() -> None:
        th._foreach_copy_(tensors, values)
        for optimizer, of_groups, of_parameters in zip(optimizers, groups, states, strict=True):
            optimizer.zero_grad()
            for group, as_it_was in zip(optimizer.param_groups, of_groups, strict=True):
                group.update(as_it_was)
            optimizer.state.clear()
            optimizer.state.update(of_parameters)
        for part, state in zip(others, of_others, strict=True):
            part.load_state_dict(state)

    return put_back


def _tensors(parts: Sequence[Any]) -> list[th.Tensor]:
    """
    The tensors in networks, optimizers and tensors; the whole of what some are views of, as an optimizer's moments are
    after :func:`~sb3_pgext.engine.adam.flattened`.
    """
    found: dict[int, th.Tensor] = {}
    for part in parts:
        if isinstance(part, th.nn.Module):
            dicts: Iterable[dict[Any, Any]] = [x for m in modules_of(part) for x in (m._parameters, m._buffers) if x]
        else:
            dicts = part.state.values() if isinstance(part, th.optim.Optimizer) else [{"": part}]
        for values in dicts:
            for x in values.values():
                if isinstance(x, th.Tensor):
                    whole = x if x._base is None else x._base
                    found[id(whole)] = whole
    return list(found.values())


def require_finite_losses(what: str, losses: th.Tensor, update: int) -> None:
    """
    Require finite losses.

    :param what: name of the loss, for the message
    :param losses: of the gradient steps of an update, one after the other, ``(K,)``
    :param update: its number, for the message
    :raises ValueError: naming the first step whose loss is not finite
    """
    finite = losses.isfinite()
    if not finite.all():
        k = int((~finite).nonzero()[0])
        raise ValueError(
            f"{what}={losses[k].item()!r}: allowed is a finite number (update {update}, gradient step {k})"
        )


def require_finite_state(model: BaseAlgorithm) -> None:
    """
    Require that nothing which is trained is NaN or infinite.

    :param model: after an update
    :raises ValueError: naming a parameter that is NaN or infinite, or whose moments in the optimizer are
    """
    if all_finite([x for x in _tensors([part for _, part in _trained_parts(model)]) if x.is_floating_point()]):
        return
    names: dict[Any, str] = {}
    tensors: dict[str, th.Tensor] = {}
    for part_name, part in _trained_parts(model):
        if isinstance(part, th.nn.Module):
            named = {p: f"parameter {name} of the {part_name}" for name, p in part.named_parameters()}
            names |= named
            tensors |= {name: p for p, name in named.items()}
        elif isinstance(part, th.optim.Optimizer):
            for p, state in part.state.items():
                of_parameter = f"of {names.get(p, 'a parameter outside of the networks')}"
                moments = {key: x for key, x in state.items() if isinstance(x, th.Tensor) and x.shape == p.shape}
                tensors |= {f"the optimizer's {key} {of_parameter}": x for key, x in moments.items()}
        else:
            tensors[part_name] = part
    wrong = first_not_finite(tensors)
    if wrong is not None:
        raise ValueError(f"{wrong} is NaN or infinite after update {model._n_updates}: allowed are finite numbers only")
