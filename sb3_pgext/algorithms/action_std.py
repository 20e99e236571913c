"""The spread of a Gaussian policy where it is given instead of learnt."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

from sb3_pgext.arguments import require, require_number, require_positive, require_schedule

__all__ = ["require_action_std", "set_action_std"]


def require_action_std(model: Any) -> None:
    """
    Check ``action_std`` and what else must be so beside it.

    :param model: an algorithm of this family
    :raises ValueError: naming the argument, its value and what is allowed
    """
    std = getattr(model, "action_std", None)
    if std is None:
        frozen = getattr(model, "_std_was_given", False)
        require(not frozen, "action_std", None, "a number or a schedule, as when the model was made")
        return
    require_schedule("action_std", std, above_0=True)
    space = getattr(model, "action_space", None)
    on_box = space is None or isinstance(space, spaces.Box)
    require(on_box, "action_std", std, f"None on a {type(space).__name__} action space")
    require(not model.use_sde, "action_std", std, "None with use_sde=True")
    learnt = isinstance(model.ent_coef, str)
    require(not learnt, "ent_coef", model.ent_coef, "a number with action_std, which leaves no entropy to keep")


def set_action_std(model: Any) -> None:
    """
    Give the policy the spread of the present progress, in parameters that no step moves.

    :param model: an algorithm of this family; nothing happens where its ``action_std`` is None
    :raises ValueError: the spread is not a number > 0, or the policy has none
    """
    given = getattr(model, "action_std", None)
    if given is None:
        return
    progress = model._current_progress_remaining
    std = given(progress) if callable(given) else given
    require_positive(f"action_std at progress {progress:.3g}", std)
    log_std: Any = getattr(getattr(model.policy, "actor", model.policy), "log_std", None)
    require(log_std is not None, "policy", type(model.policy).__name__, "one with `log_std`, for action_std")
    log_std.requires_grad_(False)
    if isinstance(log_std, th.nn.Linear):  # of the state, in SAC's actor
        low, high = math.exp(LOG_STD_MIN), math.exp(LOG_STD_MAX)
        require_number("action_std", std, f"a number in [{low:.3g}, {high:.3g}], which the actor clips to", low, high)
        log_std.weight.zero_()
        log_std = log_std.bias
    log_std.fill_(math.log(std))
    model._std_was_given = True
