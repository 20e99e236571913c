"""Checks of numbers that an environment or a policy returns: they are named where they first appear."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

__all__ = [
    "all_finite",
    "first_not_finite",
    "normalizers_of",
    "require_finite",
    "require_half",
    "require_observation",
    "require_observations",
    "step_check",
    "surely_finite",
]


def step_check(env: VecEnv) -> Callable[[Any, np.ndarray, int], None]:
    """
    A check of what the steps of a rollout return, in a few microseconds; it looks for the culprit only if there is one.

    :param env: the environment
    :return: a function of observations, ``(E, *observation shape)`` or a dict of such arrays, of rewards, ``(E,)``, and
        of the vector steps before them in the rollout. It raises a ValueError if one of them has another shape, is not
        finite, or is no number of a discrete space
    """
    space, n_envs, normalizers = env.observation_space, env.num_envs, normalizers_of(env)
    shape = (n_envs, *space.shape) if isinstance(space, spaces.Box) else None

    def check(observations: Any, rewards: np.ndarray, n_steps: int) -> None:
        if (
            type(observations) is np.ndarray
            and observations.shape == shape
            and rewards.shape == (n_envs,)
            and (observations.dtype.kind != "f" or math.isfinite(np.vdot(observations, observations)))
            and math.isfinite(np.vdot(rewards, rewards))
            # An infinity becomes NaN in a VecNormalize that learns, and is clipped by one that does not.
            and (not normalizers or all(normalizer.training for normalizer in normalizers))
        ):
            return
        if rewards.shape != (n_envs,):
            raise ValueError(f"shape of rewards={rewards.shape} at vector step {n_steps}: allowed is ({n_envs},)")
        _require_finite_before("reward", "old_reward", env, n_steps)
        require_finite("reward", rewards, n_steps)
        require_observations(env, observations, n_steps + 1)

    return check


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
    elif not surely_finite(array := np.asarray(array)):
        good = np.isfinite(array)
        if not good.all():
            raise _bad_row(what, array, good, n_steps, env_index, "are finite numbers only")


def _bad_row(
    what: str, array: np.ndarray, good: np.ndarray, n_steps: int, env_index: int | None, allowed: str
) -> ValueError:
    """An error that names the first sub-environment with an entry that is not good."""
    if env_index is None:
        env_index = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        array = array[env_index]
    return ValueError(f"{what}={array} of {_where(n_steps, env_index)} of this rollout: allowed {allowed}")


def _where(n_steps: int, env_index: int | None) -> str:
    return f"{'' if env_index is None else f'sub-environment {env_index} at '}vector step {n_steps}"


def surely_finite(array: np.ndarray) -> bool:
    """The sum of squares is not finite if any entry is not, and several times cheaper than looking at each."""
    return array.dtype.kind != "f" or math.isfinite(np.vdot(array, array))


def all_finite(tensors: Sequence[th.Tensor]) -> bool:
    """
    True if no number is NaN or infinite. Nothing leaves the device but the answer.

    :param tensors: of one device
    :return: whether their norms are finite, which is found in the least time; or else all their numbers, as the square
        of a finite one may not be
    """
    if not tensors:
        return True
    norms = th._foreach_norm([x.detach() for x in tensors])
    return bool(th.stack(norms).isfinite().all()) or all(bool(x.isfinite().all()) for x in tensors)


def first_not_finite(tensors: Mapping[str, th.Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity; None, after one synchronisation, if there is none."""
    if all_finite(list(tensors.values())):
        return None
    return next(name for name, x in tensors.items() if not x.isfinite().all())


def _require_finite_before(what: str, attribute: str, env: VecEnv, n_steps: int) -> None:
    """
    :func:`require_finite` of what VecNormalize was given: it takes a NaN of one sub-environment into the statistics,
    and so gives it to all; with ``training=False`` it clips an infinity.
    """
    for normalizer in reversed(normalizers_of(env)):
        require_finite(what, vars(normalizer).get(attribute, np.zeros(0)), n_steps)


def normalizers_of(env: VecEnv) -> list[VecNormalize]:
    """The VecNormalize around an environment, the outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def require_observations(env: VecEnv, observations: Any, n_steps: int) -> None:
    """
    :param env: which they are of
    :param observations: ``(E, *observation shape)``, or a dict of such arrays
    :param n_steps: vector steps since the start of the rollout, for the message
    :raises ValueError: they have another shape, are not finite, or are no numbers of a discrete space
    """
    _require_finite_before("observation", "old_obs", env, n_steps)
    _require_of_space("observation", observations, env.observation_space, (env.num_envs,), n_steps)


def require_half(env: VecEnv, observations: Any, n_steps: int) -> None:
    """:func:`require_observations` for the first half of the sub-environments, which is acted for before it is done."""
    _require_of_space("observation", observations, env.observation_space, (env.num_envs // 2,), n_steps)


def require_observation(space: spaces.Space, observation: Any, n_steps: int, env_index: int) -> None:
    """:func:`require_observations` for the last one of an episode of a sub-environment."""
    _require_of_space("terminal observation", observation, space, (), n_steps, env_index)


def _require_of_space(
    what: str, array: Any, space: spaces.Space, before: tuple[int, ...], n_steps: int, env_index: int | None = None
) -> None:
    """
    Require the shape that a space says, finite numbers and, of a discrete one, those that SB3's networks take, wherever
    it starts: torch names nobody, and gives up a GPU.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(array, dict) or not array.keys() >= space.spaces.keys():
            present = list(array) if isinstance(array, dict) else type(array).__name__
            where = _where(n_steps, env_index)
            raise ValueError(f"keys of {what}={present} of {where}: allowed are {list(space.spaces)}")
        for key, part in space.spaces.items():
            _require_of_space(f"{what} {key!r}", array[key], part, before, n_steps, env_index)
        return
    array, shape = np.asarray(array), (*before, *space.shape)  # type: ignore[misc]
    if array.shape != shape:
        where = _where(n_steps, env_index)
        raise ValueError(f"shape of {what}={array.shape} of {where}: allowed is {shape}, as the observation space says")
    require_finite(what, array, n_steps, env_index)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        end = space.n if isinstance(space, spaces.Discrete) else space.nvec
        good = (array >= 0) & (array < end)
        if not good.all():
            raise _bad_row(what, array, good, n_steps, env_index, f"is a whole number >= 0 and < {end}")
