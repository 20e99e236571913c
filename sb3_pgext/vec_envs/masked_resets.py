"""Resetting some sub-environments of a gymnasium vector environment while the others stay where they are.

gymnasium asks for it with ``reset(options={"reset_mask": mask})``. Not every vector environment understands it, and
some accept it and do something else.
"""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control import utils as classic_control
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics

__all__ = ["with_masked_resets"]

_FORGETFUL = (RecordEpisodeStatistics, NormalizeReward, NormalizeObservation)
"""Wrappers whose state of all sub-environments is lost, or refused, when some are reset."""

_CART_POLE_BOUND = 0.05


def with_masked_resets(env: VectorEnv) -> VectorEnv:
    """
    Make sure that a vector environment which does not reset within the step can be reset in parts.

    :param env: vector environment with the autoreset mode NEXT_STEP or DISABLED. Where it must be wrapped, that happens
        below its own wrappers
    :return: the environment to use in its place
    :raises ValueError: it cannot be reset in parts, or one of its wrappers cannot
    """
    layers = _wrappers(env)
    for layer in layers:
        if isinstance(layer, _FORGETFUL):
            raise ValueError(
                f"env={env}: {type(layer).__name__} does not keep its state when only some sub-environments are reset. "
                "Allowed is SB3's VecMonitor or VecNormalize around GymnasiumVecEnv in its place, or a vector "
                "environment with autoreset_mode=AutoresetMode.SAME_STEP"
            )
    base = env.unwrapped
    if isinstance(base, CartPoleVectorEnv):
        resettable = MaskedCartPoles(base)
        if not layers:
            return resettable
        layers[-1].env = resettable
        return env
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED or _clears_its_autoreset(base):
        return env
    raise ValueError(
        f"env={env} has autoreset_mode=AutoresetMode.NEXT_STEP: a finished sub-environment is reset only in the next "
        "step, in which it takes no action, and SB3 has no place for such a step. Allowed are SAME_STEP, DISABLED with "
        'reset(options={"reset_mask": …}), and with NEXT_STEP only SyncVectorEnv, AsyncVectorEnv (with shared memory '
        "and gymnasium's own worker) and the vectorised CartPole; for envpool there is EnvPoolVecEnv"
    )


def _wrappers(env: VectorEnv) -> list[VectorWrapper]:
    """The wrappers around a vector environment, from outside to inside."""
    layers = []
    while isinstance(env, VectorWrapper):
        layers.append(env)
        env = env.env
    return layers


def _clears_its_autoreset(base: VectorEnv) -> bool:
    """Whether a reset by mask, in the mode NEXT_STEP, takes the place of the reset in the next step."""
    if isinstance(base, AsyncVectorEnv):
        # Without shared memory the workers of gymnasium 1.4 forget to take note, and would reset once more.
        return base.shared_memory and base.worker is None
    return isinstance(base, SyncVectorEnv)


class MaskedCartPoles(VectorWrapper):
    """
    gymnasium's vectorised CartPole, with a reset that understands ``reset_mask``.

    The numbers are drawn as the environment draws them itself, one step later.

    :param env: the vectorised CartPole
    """

    env: CartPoleVectorEnv

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: of the random numbers of all sub-environments
        :param options: ``reset_mask``, ``(E,)``, bool: which sub-environments to reset; bounds as CartPole takes them
        :return: the observations of all sub-environments, ``(E, 4)``, and no infos
        """
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return self.env.reset(seed=seed, options=options)
        VectorEnv.reset(self.env, seed=seed)
        low, high = classic_control.maybe_parse_reset_bounds(options, -_CART_POLE_BOUND, _CART_POLE_BOUND)
        cart_poles: Any = self.env  # its state is typed as None, which it is before the first reset
        cart_poles.state[:, mask] = cart_poles.np_random.uniform(low, high, size=(4, np.count_nonzero(mask)))
        cart_poles.steps[mask] = 0
        cart_poles.prev_done[mask] = False
        return cart_poles.state.T.astype(np.float32), {}
