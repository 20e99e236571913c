"""SB3's ``VecEnv`` over a gymnasium vector environment, which steps all sub-environments at once.

SB3 wants the first observation of the next episode in the step that ended the last one, and the last observation in the
infos. This is gymnasium's autoreset mode ``SAME_STEP``.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_pgext.arguments import require
from sb3_pgext.vec_envs.cart_pole import SameStepCartPole
from sb3_pgext.vec_envs.vector_infos import infos_of_each, spread_infos

__all__ = ["GymnasiumVecEnv"]

_CUT = "TimeLimit.truncated"
"""SB3's key for an episode that a limit has cut."""

_FINAL = ("final_obs", "final_info")
"""Keys of what a vector environment says of the episode that has ended, when it has begun the next one itself."""

_SHARED_ATTRIBUTES = ("render_mode", "spec")
"""What a vector environment says of all its sub-environments."""

_NOT_THROUGH_ASYNC = ("reset", "step", "close", "_setattr", "_check_spaces")
"""Methods for which a worker of AsyncVectorEnv gives up."""


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
        if isinstance(env, DictInfoToList):
            raise ValueError(f"env={env}: without DictInfoToList, please; the infos become a list here")
        env = SameStepCartPole(env) if isinstance(env, CartPoleVectorEnv) else env
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env={env} has metadata['autoreset_mode']={mode!r}: allowed is AutoresetMode.SAME_STEP, in which the "
                "step that ends an episode begins the next one, as with gymnasium.make_vec(…, "
                'vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}); without it '
                "there are SB3's DummyVecEnv and, for envpool, EnvPoolVecEnv"
            )
        check_for_nested_spaces(env.single_observation_space)
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    @property
    def envs(self) -> list[gym.Env]:
        """The sub-environments, where they are in this process (SyncVectorEnv), as ``DummyVecEnv`` has them."""
        base = self.env.unwrapped
        if not isinstance(base, SyncVectorEnv):
            raise self._has_none("itself")
        return base.envs

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        Set the options of the next reset.

        :param options: for all sub-environments, or a list with one and the same for each
        :raises ValueError: different options for different sub-environments
        """
        if isinstance(options, list) and any(of_one != options[0] for of_one in options):
            raise ValueError(f"options={options!r}: a vector environment takes the same options for all")
        super().set_options(options)

    def reset(self) -> VecEnvObs:
        """
        Begin an episode in every sub-environment, with the seeds and options that have been set.

        :return: first observations, ``(E, *observation shape)``; dicts or tuples of such arrays for such spaces
        """
        observations, infos = self.env.reset(seed=self._next_seed(), options=self._options[0] or None)
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
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all sub-environments, and begin the next episode where one has ended.

        :return: observations ``(E, *observation shape)``, rewards ``(E,)``, whether an episode has ended ``(E,)``, and
            an info for each sub-environment. All of it is new: nothing is written to by a later step
        """
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        # Copies: the next step may write into what this one returned.
        observations, rewards = _copied(observations, self.observation_space), np.array(rewards, dtype=np.float32)
        dones = np.logical_or(terminated, truncated)
        cut = np.logical_and(truncated, np.logical_not(terminated)).tolist()
        ended = np.flatnonzero(dones).tolist()
        of_each = self._infos_around_reset(infos, ended) if ended else self._infos(infos)
        for e in ended:
            of_each[e][_CUT] = cut[e]
        return observations, rewards, dones, of_each

    def _infos(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """The infos of a step, for each sub-environment as if its episode went on."""
        of_each: list[dict[str, Any]] = [{_CUT: False} for _ in range(self.num_envs)]
        spread_infos({key: values for key, values in infos.items() if key.removeprefix("_") != _CUT}, of_each)
        return of_each

    def _infos_around_reset(self, infos: dict[str, Any], ended: list[int]) -> list[dict[str, Any]]:
        """
        Take apart what a vector environment returns that has begun the next episodes itself (SAME_STEP).

        :param infos: of the step where an episode goes on, of the reset where one has ended
        :param ended: the sub-environments whose episode has ended
        :return: the infos of the step
        """
        if "final_obs" not in infos:
            raise ValueError(
                f"env={self.env}: no 'final_obs' in the infos of a step that ended an episode, with "
                "autoreset_mode=AutoresetMode.SAME_STEP: it must hold the last observations"
            )
        of_each = self._infos({key: values for key, values in infos.items() if key.removeprefix("_") not in _FINAL})
        of_last = self._infos(infos.get("final_info", {}))
        for e in ended:
            of_reset, of_each[e] = of_each[e], of_last[e]
            del of_reset[_CUT]
            # gymnasium's RecordEpisodeStatistics adds what it has to say to the infos as they are, after the reset.
            if "episode" in of_reset:
                of_each[e].setdefault("episode", of_reset.pop("episode"))
            self.reset_infos[e] = of_reset
            of_each[e]["terminal_observation"] = _copied(_row(infos["final_obs"], e), self.observation_space)
        return of_each

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute of the sub-environments, also of a wrapped one
        :param indices: which sub-environments; None for all
        :return: its value in each
        :raises AttributeError: there is none, or the vector environment has no sub-environments of its own
        """
        base, chosen = self.env.unwrapped, self._chosen(indices)
        if isinstance(base, SyncVectorEnv):
            return [base.envs[e].get_wrapper_attr(attr_name) for e in chosen]
        if isinstance(base, AsyncVectorEnv):
            # A worker that fails to find an attribute ends.
            if not all(base.call("has_wrapper_attr", attr_name)):
                raise AttributeError(f"the sub-environments of {self.env} have no attribute {attr_name!r}")
            of_each = base.call("get_wrapper_attr", attr_name)
            return [of_each[e] for e in chosen]
        if attr_name in _SHARED_ATTRIBUTES:
            return [getattr(self.env, attr_name) for _ in chosen]
        raise self._has_none(f"the attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of the sub-environments
        :param value: what to set it to
        :param indices: which sub-environments; None for all
        :raises AttributeError: the vector environment has no sub-environments of its own
        :raises ValueError: only some sub-environments of AsyncVectorEnv
        """
        base, chosen = self.env.unwrapped, self._chosen(indices)
        if isinstance(base, SyncVectorEnv):
            for e in chosen:
                setattr(base.envs[e], attr_name, value)
        elif isinstance(base, AsyncVectorEnv):
            self._require_all(chosen)
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            raise self._has_none(f"the attribute {attr_name!r}")

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
        :raises ValueError: AsyncVectorEnv cannot call it, or not in only some sub-environments
        """
        base, chosen = self.env.unwrapped, self._chosen(indices)
        if isinstance(base, SyncVectorEnv):
            methods = [base.envs[e].get_wrapper_attr(method_name) for e in chosen]
            return [method(*method_args, **method_kwargs) for method in methods]
        if not isinstance(base, AsyncVectorEnv):
            raise self._has_none(f"the method {method_name!r}")
        self._require_all(chosen)
        if method_name in _NOT_THROUGH_ASYNC:
            raise ValueError(f"method_name={method_name!r}: AsyncVectorEnv allows any but {_NOT_THROUGH_ASYNC}")
        if not self.has_attr(method_name):
            raise AttributeError(f"the sub-environments of {self.env} have no method {method_name!r}")
        return list(base.call(method_name, *method_args, **method_kwargs))

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: name of an attribute
        :return: whether every sub-environment has it
        """
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            return all(base.call("has_wrapper_attr", attr_name))
        return super().has_attr(attr_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a wrapper of single environments, e.g. SB3's ``Monitor``
        :param indices: which sub-environments; None for all
        :return: whether each is wrapped in it; False where there are no sub-environments that could be
        :raises AttributeError: the sub-environments are in the processes of AsyncVectorEnv, which do not say
        """
        base, chosen = self.env.unwrapped, self._chosen(indices)
        if isinstance(base, SyncVectorEnv):
            return [is_wrapped(base.envs[e], wrapper_class) for e in chosen]
        if isinstance(base, AsyncVectorEnv):
            # SB3's VecMonitor takes this error for a no, its evaluate_policy asks only where there is no VecMonitor.
            raise AttributeError(
                f"the processes of AsyncVectorEnv do not say whether they wrap in {wrapper_class.__name__}; where SB3 "
                "needs returns and lengths of episodes, wrap the GymnasiumVecEnv in VecMonitor"
            )
        return [False for _ in chosen]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: an image of each sub-environment, ``(height, width, 3)``; None without ``render_mode="rgb_array"``
        """
        if self.render_mode != "rgb_array":
            warnings.warn(f'render_mode={self.render_mode!r} gives no images: "rgb_array" does', stacklevel=2)
            return [None for _ in range(self.num_envs)]
        images: Any = self.env.render()
        return list(images)

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """
        :param mode: ``"rgb_array"`` or ``"human"``; default: the vector environment's ``render_mode``
        :return: the images of all sub-environments as one, for ``"rgb_array"``
        """
        if self.render_mode == "human" and mode in (None, "human"):
            self.env.render()
            return None
        return super().render(mode)

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def _chosen(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))

    def _require_all(self, chosen: list[int]) -> None:
        every = sorted(chosen) == list(range(self.num_envs))
        require(every, "indices", chosen, "None, which is all sub-environments, with AsyncVectorEnv")

    def _has_none(self, what: str) -> AttributeError:
        return AttributeError(
            f"{self.env} has no sub-environments in this process that could be asked for {what}; itself it is the "
            "adapter's attribute env"
        )


def _copied(observations: Any, space: spaces.Space) -> Any:
    """Observations, of one or of all sub-environments, as new arrays of the space's types."""
    if isinstance(space, spaces.Dict):
        return {key: np.array(observations[key], dtype=part.dtype) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(np.array(one, dtype=part.dtype) for one, part in zip(observations, space.spaces, strict=True))
    return np.array(observations, dtype=space.dtype)


def _row(observations: Any, e: int) -> Any:
    """The observation of one sub-environment, as views."""
    if isinstance(observations, dict):
        return {key: values[e] for key, values in observations.items()}
    return tuple(values[e] for values in observations) if isinstance(observations, tuple) else observations[e]
