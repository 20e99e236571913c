"""One step of acting, as every collection needs it: finite numbers, actions within bounds, nothing validated twice."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs

__all__ = [
    "ActingAlgorithm",
    "copy_of",
    "environment_actions",
    "observation_of",
    "require_finite",
    "unvalidated_distributions",
]


class ActingAlgorithm(OnPolicyAlgorithm):
    """What every collection asks of the policy."""

    def _acting_policy(self) -> Callable[[PyTorchObs], Sequence[th.Tensor]]:
        """What maps observations to actions, values and log-probabilities during a rollout: the policy itself."""
        return self.policy

    def _values(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: ``(K, *observation shape)``
        :return: V of the current critic, ``(K,)``, constant
        """
        with th.no_grad():
            return self.policy.predict_values(observations).flatten()


def environment_actions(model: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """
    The policy's actions as the environment takes them: a Box's are unscaled or clipped to its bounds.

    :param model: whose policy and action space
    :param actions: ``(E, …)``
    :return: ``(E, …)``
    """
    if not isinstance(model.action_space, spaces.Box):
        return actions
    if model.policy.squash_output:
        return model.policy.unscale_action(actions)
    return np.clip(actions, model.action_space.low, model.action_space.high)


def copy_of(obs: Any) -> Any:
    """
    :param obs: an array, or a dict of arrays
    :return: a copy
    """
    return {key: np.array(value) for key, value in obs.items()} if isinstance(obs, dict) else np.array(obs)


def observation_of(obs: Any, env_index: int) -> Any:
    """
    :param obs: ``(E, *observation shape)``, or a dict of such arrays
    :param env_index: sub-environment
    :return: its observation, not batched
    """
    return {key: value[env_index] for key, value in obs.items()} if isinstance(obs, dict) else obs[env_index]


def require_finite(what: str, array: Any, n_steps: int, env_index: int | None = None) -> None:
    """
    :param what: name of the quantity, for the message
    :param array: one row per sub-environment, ``(E, …)``, or that of a single one; a dict of such arrays
    :param n_steps: vector steps since the start of the rollout, for the message
    :param env_index: sub-environment, if the array is of a single one
    :raises ValueError: naming the first sub-environment with a NaN or an infinity
    """
    if isinstance(array, dict):
        for key, value in array.items():
            require_finite(f"{what} {key!r}", value, n_steps, env_index)
        return
    array = np.asarray(array)
    # The sum of squares is not finite if any entry is not, and several times cheaper than looking at each.
    if array.dtype.kind == "f" and not math.isfinite(np.vdot(array, array)):
        rows = array[np.newaxis] if env_index is not None else array
        bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            e = int(np.argmax(bad))
            raise ValueError(
                f"{what}={rows[e]!r} of sub-environment {e if env_index is None else env_index} at vector step "
                f"{n_steps} of this rollout: allowed are finite numbers only"
            )


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Without torch's validation of distribution arguments: a fifth of the time of acting, and a synchronisation."""
    validate = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(validate)
