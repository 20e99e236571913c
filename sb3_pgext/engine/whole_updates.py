"""An update happens as a whole or not at all."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_pgext.engine.nested import leaves, rebuilding
from sb3_pgext.rollouts.acting import unvalidated_distributions
from sb3_pgext.rollouts.checks import first_not_finite

__all__ = ["require_finite_losses", "require_finite_state", "whole_update"]

Update = TypeVar("Update", bound=Callable[..., Any])


def whole_update(update: Update) -> Update:
    """
    Undo an update that fails: of a NaN, Ctrl-C, an error of the user's code.

    What SB3 saves of a model (``_get_torch_save_params``: networks, optimizers, tensors), and the number of updates,
    are put back then. What a finished update leaves must be finite.

    :param update: a method of an SB3 algorithm
    :return: the same method, which may also raise the ValueError of :func:`require_finite_state`
    """

    @wraps(update)
    def whole(model: BaseAlgorithm, *arguments: Any, **options: Any) -> Any:
        restore = [_restorer(part) for _, part in _trained_parts(model)]
        n_updates = model._n_updates
        try:
            with unvalidated_distributions():  # what is not finite is named by its place in the update
                result = update(model, *arguments, **options)
                require_finite_state(model)
        except BaseException:
            for put_back in restore:
                put_back()
            model._n_updates = n_updates
            raise
        return result

    return whole  # type: ignore[return-value]


def _trained_parts(model: BaseAlgorithm) -> Iterator[tuple[str, Any]]:
    """The networks, optimizers and tensors that SB3 saves of a model, by name."""
    for name in (name for names in model._get_torch_save_params() for name in names):
        yield name, recursive_getattr(model, name)


def _restorer(part: Any) -> Callable[[], object]:
    if isinstance(part, th.Tensor):
        value = part.detach().clone()
        return lambda: part.data.copy_(value)
    state = part.state_dict()
    copy = rebuilding(state)(x.clone() if isinstance(x, th.Tensor) else x for x in leaves(state))

    def put_back() -> None:
        part.zero_grad()
        part.load_state_dict(copy)

    return put_back


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
