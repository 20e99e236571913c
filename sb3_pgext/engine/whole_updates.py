"""An update happens as a whole or not at all."""

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_pgext.rollouts.acting import unvalidated_distributions

__all__ = ["require_finite_state", "whole_update"]

Update = TypeVar("Update", bound=Callable[..., Any])


def whole_update(update: Update) -> Update:
    """
    A method that changes the policy, of which nothing stays if it fails: a NaN, Ctrl-C, an error of the user's code.

    Parameters, the policy's other tensors, the optimizer's state and the number of updates are those of before then.
    What it leaves must be finite.

    :param update: the method
    :return: the same method, which may also raise the ValueError of :func:`require_finite_state`
    """

    @wraps(update)
    def whole(model: OnPolicyAlgorithm, *arguments: Any, **options: Any) -> Any:
        policy = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        state, groups = _contents(model.policy.optimizer)
        n_updates = model._n_updates
        try:
            with unvalidated_distributions():  # what is not finite is named by its place in the update
                result = update(model, *arguments, **options)
                require_finite_state(model)
        except BaseException:
            model.policy.load_state_dict(policy)
            optimizer = model.policy.optimizer
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.update(before)
            model._n_updates = n_updates
            raise
        return result

    return whole  # type: ignore[return-value]


def _contents(optimizer: th.optim.Optimizer) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """A copy of the state of each parameter, and the options of each group."""
    state = {
        p: {key: value.clone() if isinstance(value, th.Tensor) else deepcopy(value) for key, value in entries.items()}
        for p, entries in optimizer.state.items()
    }
    return state, [dict(group) for group in optimizer.param_groups]


def require_finite_state(model: OnPolicyAlgorithm) -> None:
    """
    :param model: after an update
    :raises ValueError: naming a parameter that is NaN or infinite, or whose moments in the optimizer are
    """
    tensors = {}
    for name, p in model.policy.named_parameters():
        tensors[f"parameter {name} of the policy"] = p.detach()
        for key, value in model.policy.optimizer.state.get(p, {}).items():
            if isinstance(value, th.Tensor) and value.shape == p.shape:
                tensors[f"the optimizer's {key} of parameter {name}"] = value
    tensors = {name: x for name, x in tensors.items() if x.numel() > 0}
    if not tensors:
        return
    # The largest entry of each: NaN or infinite if one is. Nothing leaves the device but the answer.
    largest = th.stack(th._foreach_norm(list(tensors.values()), th.inf))
    if not largest.isfinite().all():
        name = next(name for name, x in tensors.items() if not x.isfinite().all())
        raise ValueError(f"{name} is NaN or infinite after update {model._n_updates}: allowed are finite numbers only")
