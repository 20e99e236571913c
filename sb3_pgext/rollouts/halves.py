"""Collection in two halves: the policy acts for one half of the sub-environments while the other one steps.

Everybody sees whole vector steps. Actions are drawn for the first half, then for the second, step by step, so that the
rollout is to the bit what acting in two halves gives without overlap. Two things differ from it where they apply: the
first half's observations are normalised before VecNormalize has learnt from that vector step, and a callback that
changes the policy at a step changes it for the first half one step later.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_pgext.rollouts.acting import Act, Actions, checked_steps, draw_actions, explain
from sb3_pgext.rollouts.checks import require_half
from sb3_pgext.vec_envs import HalvesVecEnv
from sb3_pgext.vec_envs.observations import each

__all__ = ["nothing_ahead", "vector_steps"]

_ROW_BY_ROW = {VecMonitor: "", VecTransposeImage: "transpose_observations", VecNormalize: "normalize_obs"}
"""Wrappers that show each sub-environment's observations by itself → their method for it."""

GoesOn = Callable[[int, np.ndarray], bool]
"""Vector step and dones of the first half, ``(E/2,)`` → whether another step follows, whatever the second half does."""


def vector_steps(model: Any, env: VecEnv, act: Act, goes_on: GoesOn) -> Iterator[tuple[Actions, VecEnvStepReturn]]:
    """
    Play vector steps without end. Whoever takes them sets ``model._last_obs`` to what each has returned.

    :param model: an on-policy algorithm of this family, with its last observations
    :param env: the environment
    :param act: the policy's ``forward``, compiled or not
    :param goes_on: asked before the first half is sent ahead
    :return: the actions and the environment's answer, one vector step after the other
    """
    step, halves = checked_steps(model, env), _halves(model, env)
    if halves is None:
        for t in count():
            actions = draw_actions(model, act, t)
            yield actions, step(actions.clipped, t)
    assert halves is not None

    def send(which: int, observations: Any, t: int) -> Actions:
        actions = draw_actions(model, act, t, observations)
        halves.send(which, actions.clipped)
        return actions

    first, second = (lambda observations, rows=rows: each(lambda x: x[rows], observations) for rows in halves.rows)
    ahead: Any = None
    for t in count():
        if not halves.stepping:  # nothing is ahead yet, or somebody has reset the environment
            ahead = send(0, first(model._last_obs), t)
        both = ahead, send(1, second(model._last_obs), t)
        try:
            observations, _, dones, _ = halves.receive(0)
        except Exception as error:
            explain(error, env, f"at vector step {t} of this rollout")
            raise
        if goes_on(t, np.asarray(dones, dtype=bool)):
            observations = _shown(env, observations)
            require_half(env, observations, t + 1)
            ahead = send(0, observations, t + 1)
        actions = Actions(*map(_joined, zip(*both, strict=True)))
        yield actions, step(actions.clipped, t)


@contextmanager
def nothing_ahead(model: Any, env: VecEnv) -> Iterator[None]:
    """
    Bring both halves to the same step at the end of this context. Where the first one was a step further, because a
    callback has ended the training or something has failed, the model begins with new episodes.

    :param model: counts the steps
    :param env: the environment
    """
    try:
        yield
    finally:
        halves = env.unwrapped
        if isinstance(halves, HalvesVecEnv) and halves.drop():
            model.num_timesteps += env.num_envs // 2
            model._last_obs = None


def _halves(model: Any, env: VecEnv) -> HalvesVecEnv | None:
    """The halves that can be played one by one, if there are any; a warning says why they cannot."""
    halves = env.unwrapped
    if not isinstance(halves, HalvesVecEnv):
        return None
    obstacles = ["use_sde, whose noise is for all sub-environments"] if model.use_sde else []
    obstacles += [type(layer).__name__ for layer in _wrappers(env) if type(layer) not in _ROW_BY_ROW]
    if obstacles:
        text = f"The halves of {type(halves).__name__} step together, because of {', '.join(obstacles)}"
        warnings.warn(f"{text}. Put wrappers around each half instead", stacklevel=2)
        return None
    return halves


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """From the outside."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _shown(env: VecEnv, observations: Any) -> Any:
    """Observations of some sub-environments as the wrappers show them."""
    for layer in reversed(list(_wrappers(env))):
        if name := _ROW_BY_ROW[type(layer)]:
            observations = getattr(layer, name)(observations)
    return observations


def _joined(parts: Sequence[Any]) -> Any:
    """One of the fields of both halves' actions, for all sub-environments."""
    if parts[0] is None:
        return None
    return each(lambda *x: th.cat(x) if isinstance(x[0], th.Tensor) else np.concatenate(x), *parts)
