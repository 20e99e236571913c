"""SB3's ``VecEnv`` over a gymnasium vector environment, which steps all sub-environments at once.

SB3 wants the first observation of the next episode in the step that ended the last one, and the last observation in the
infos. This is gymnasium's autoreset mode ``SAME_STEP``.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_pgext.arguments import require
from sb3_pgext.vec_envs.cart_pole import SameStepCartPole
from sb3_pgext.vec_envs.vector_infos import infos_of_each

__all__ = ["GymnasiumVecEnv"]


class GymnasiumVecEnv(VecEnv):
    """
    SB3's ``VecEnv`` over a ``gymnasium.vector.VectorEnv``, for every algorithm and wrapper of SB3.

    An episode ends as in SB3's ``DummyVecEnv``: the step returns the next one's first observation, and the info has
    ``terminal_observation`` and ``TimeLimit.truncated``. ``seed`` counts at the next reset: of SyncVectorEnv and
    AsyncVectorEnv sub-environment i gets seed + i; a vector environment without sub-environments of its own takes the
    first of these seeds for all.

    :param env: a vector environment with the autoreset mode ``SAME_STEP``, or gymnasium's vectorised CartPole without
        wrappers; it belongs to the adapter from now on
    :raises ValueError: ``env`` is no vector environment, or of another autoreset mode
    """

    def __init__(self, env: VectorEnv):
        require(isinstance(env, VectorEnv), "env", env, "a gymnasium.vector.VectorEnv, as gymnasium.make_vec makes it")
        env = SameStepCartPole(env) if isinstance(env, CartPoleVectorEnv) else env
        mode = env.metadata.get("autoreset_mode")
        allowed = (
            "AutoresetMode.SAME_STEP, as with gymnasium.make_vec(…, "
            'vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})'
        )
        require(mode is AutoresetMode.SAME_STEP, f"autoreset_mode of {env}", mode, allowed)
        self.env: Any = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    @property
    def envs(self) -> list[gym.Env]:
        """The sub-environments, where they are in this process (SyncVectorEnv), as ``DummyVecEnv`` has them."""
        base = self.env.unwrapped
        if not isinstance(base, SyncVectorEnv):
            raise AttributeError(f"{self.env}, the attribute env, has no sub-environments in this process")
        return base.envs

    @property
    def asynchronous(self) -> bool:
        """True if it steps while this process does something else: AsyncVectorEnv without wrappers, and envpool."""
        return hasattr(type(self.env), "step_async")

    def reset(self) -> VecEnvObs:
        """
        Begin an episode in every sub-environment, with the seeds and options that have been set.

        :return: first observations, ``(E, *observation shape)``; a dict of such arrays for a dict space
        :raises ValueError: different options have been set for different sub-environments
        """
        options = self._options[0]
        require(self._options == [options] * self.num_envs, "options", self._options, "the same for all")
        observations, infos = self.env.reset(seed=self._next_seed(), options=options or None)
        self.reset_infos = infos_of_each(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return _copied(observations, self.observation_space)

    def _next_seed(self) -> Any:
        """The seeds that have been set, in the form that the vector environment takes."""
        each_its_own = isinstance(self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        return self._seeds if each_its_own and self._seeds[0] is not None else self._seeds[0]

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: to take in the next :meth:`step_wait`, ``(E, *action shape)``
        """
        if self.asynchronous:
            self.env.step_async(actions)
        else:
            self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all sub-environments, and begin the next episode where one has ended.

        :return: observations ``(E, *observation shape)``, rewards ``(E,)``, whether an episode has ended ``(E,)``, and
            an info for each sub-environment. All of it is new: nothing is written to by a later step
        """
        result = self.env.step_wait() if self.asynchronous else self.env.step(self._actions)
        observations, rewards, terminated, truncated, infos = result
        # Copies: the next step may write into what this one returned.
        observations, rewards = _copied(observations, self.observation_space), np.array(rewards, dtype=np.float32)
        dones, cut = np.logical_or(terminated, truncated), np.logical_and(truncated, np.logical_not(terminated))
        of_each = infos_of_each(infos, self.num_envs)
        for e in np.flatnonzero(dones).tolist():
            # The infos are those of the reset, with those of the step in them.
            of_reset = self.reset_infos[e] = of_each[e]
            of_each[e] = of_reset.pop("final_info", {})
            of_each[e]["terminal_observation"] = _copied(of_reset.pop("final_obs"), self.observation_space)
            if "episode" in of_reset:  # gymnasium's RecordEpisodeStatistics speaks of the last episode after the reset
                of_each[e].setdefault("episode", of_reset.pop("episode"))
        for info, was_cut in zip(of_each, cut.tolist(), strict=True):
            info["TimeLimit.truncated"] = was_cut
        return observations, rewards, dones, of_each

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute of the sub-environments, also of a wrapped one
        :param indices: which sub-environments; None for all
        :return: its value in each
        :raises AttributeError: there is none
        """
        base, chosen = self.env.unwrapped, self._get_indices(indices)
        if not isinstance(base, SyncVectorEnv | AsyncVectorEnv):
            return [getattr(base, attr_name) for _ in chosen]
        # A worker of AsyncVectorEnv that fails to find an attribute ends.
        if not all(base.call("has_wrapper_attr", attr_name)):
            raise AttributeError(f"the sub-environments of {self.env} have no attribute {attr_name!r}")
        of_each = base.call("get_wrapper_attr", attr_name)
        return [of_each[e] for e in chosen]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of the sub-environments
        :param value: what to set it to
        :param indices: which sub-environments; None for all
        :raises AttributeError: the vector environment has no sub-environments of its own
        :raises ValueError: only some sub-environments of AsyncVectorEnv
        """
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            self._require_all(indices)
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            for e in self._get_indices(indices):
                setattr(self.envs[e], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method of the sub-environments, also of a wrapped one
        :param method_args: its arguments
        :param indices: which sub-environments; None for all
        :param method_kwargs: its keyword arguments
        :return: what it returns in each
        :raises AttributeError: there is none, or the vector environment has no sub-environments of its own
        :raises ValueError: only some sub-environments of AsyncVectorEnv
        """
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            self._require_all(indices)
            return list(base.call(method_name, *method_args, **method_kwargs))
        methods = [self.envs[e].get_wrapper_attr(method_name) for e in self._get_indices(indices)]
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a wrapper of single environments, e.g. SB3's ``Monitor``
        :param indices: which sub-environments; None for all
        :return: whether each is wrapped in it; False where it is not in this process
        """
        here = isinstance(self.env.unwrapped, SyncVectorEnv)
        return [here and is_wrapped(self.envs[e], wrapper_class) for e in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: an image of each sub-environment, ``(height, width, 3)``
        """
        images: Any = self.env.render()
        return list(images)

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def _require_all(self, indices: VecEnvIndices) -> None:
        require(indices is None, "indices", indices, "None, which is all sub-environments, with AsyncVectorEnv")


def _copied(observations: Any, space: spaces.Space) -> Any:
    """Observations, of one or of all sub-environments, as new arrays of the space's types."""
    if isinstance(space, spaces.Dict):
        return {key: np.array(observations[key], dtype=part.dtype) for key, part in space.spaces.items()}
    return np.array(observations, dtype=space.dtype)
