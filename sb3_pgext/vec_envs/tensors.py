"""Environments whose steps take and return tensors, as SB3's ``VecEnv``."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_pgext.arguments import require, require_count
from sb3_pgext.vec_envs.observations import each

__all__ = ["NumpySide", "StepInfos", "TensorEnv", "TensorStep", "TensorVecEnv", "as_arrays", "at_hand"]


class TensorStep(NamedTuple):
    """
    The outcome of a step of E sub-environments. Where an episode ends, the next one has already begun.

    :ivar observations: in the dtype of their space, ``(E, *observation shape)``, or a dict of such tensors
    :ivar rewards: ``(E,)``, floating
    :ivar terminated: whether the step ended an episode, ``(E,)``, bool
    :ivar truncated: whether a time limit cut it, ``(E,)``, bool
    :ivar final_observations: as ``observations``, but of the episode that has ended, where one has; anything elsewhere
    """

    observations: PyTorchObs
    rewards: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    final_observations: PyTorchObs


class TensorEnv(Protocol):
    """
    An environment for :class:`TensorVecEnv`: E sub-environments, whose tensors are all on one device.

    :ivar num_envs: E
    :ivar observation_space: of one sub-environment
    :ivar action_space: of one sub-environment
    :ivar device: of all tensors
    """

    num_envs: int
    observation_space: spaces.Space
    action_space: spaces.Space
    device: th.device

    def reset(self, seed: int | None = None) -> PyTorchObs:
        """
        Begin an episode in every sub-environment.

        :param seed: of all random numbers from here on; None to go on with them
        :return: first observations, ``(E, *observation shape)``
        """

    def step(self, actions: th.Tensor) -> TensorStep:
        """
        Step all sub-environments, and begin the next episode where one has ended.

        :param actions: ``(E, *action shape)``, within the bounds of a Box
        :return: a :class:`TensorStep`, or a tuple of the same five
        """


class NumpySide:
    """
    The methods of SB3's ``VecEnv``, in arrays, by those in tensors.

    :ivar device: of the tensors
    """

    device: th.device

    @property
    def base(self) -> "TensorVecEnv":
        """The environment inside all wrappers."""
        raise NotImplementedError

    def reset_tensors(self) -> PyTorchObs:
        """
        Begin an episode in every sub-environment, with the seed that has been set.

        :return: first observations, ``(E, *observation shape)``
        """
        raise NotImplementedError

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Step all sub-environments.

        :param actions: ``(E, *action shape)``
        :return: what the step returns
        """
        raise NotImplementedError

    def hand_over(self) -> None:
        """Show in arrays what is computed on the device."""

    def reset(self) -> VecEnvObs:
        """See SB3's ``VecEnv``."""
        return as_arrays(self.reset_tensors())

    def step_async(self, actions: np.ndarray) -> None:
        """See SB3's ``VecEnv``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """See SB3's ``VecEnv``."""
        step = self.step_tensors(th.as_tensor(self._actions, device=self.device))
        dones = as_arrays(self.base.ended)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in dones]
        of_each = StepInfos(self.base, step)
        for e in np.flatnonzero(dones).tolist():
            infos[e] = of_each[e]
        return as_arrays(step.observations), as_arrays(step.rewards), dones, infos


class StepInfos(Sequence[dict[str, Any]]):
    """
    The infos of a vector step as SB3 has them, each made when somebody looks at it.

    :param env: as it is after the step
    :param step: what it returned
    """

    def __init__(self, env: "TensorVecEnv", step: TensorStep):
        self.step, self.ended, self.episode = step, env.ended, (env.returns, env.lengths, env.seconds)

    def __len__(self) -> int:
        return len(self.ended)

    def __getitem__(self, e: Any) -> Any:
        cut = bool(self.step.truncated[e] & ~self.step.terminated[e])
        info: dict[str, Any] = {"TimeLimit.truncated": cut}
        if self.ended[e]:
            returns, lengths, seconds = self.episode
            info["terminal_observation"] = as_arrays(each(lambda x: x[e], self.step.final_observations))
            info["episode"] = {"r": returns[e].item(), "l": int(lengths[e]), "t": seconds}
        return info


class TensorVecEnv(NumpySide, VecEnv):
    """
    SB3's ``VecEnv`` over an environment that speaks tensors. Our algorithms with fixed-length rollouts collect from it
    without numpy; to all other code of SB3 it is like ``DummyVecEnv``, with the infos of ``VecMonitor``.

    ``seed(seed)`` counts at the next reset. ``get_attr``, ``set_attr`` and ``env_method`` speak of ``env``, which is
    one for all sub-environments.

    :ivar ended: where the last step ended an episode, ``(E,)``, bool
    :ivar returns: sums of rewards of the episodes, those that have just ended included, ``(E,)``
    :ivar lengths: numbers of steps, likewise, ``(E,)``
    :ivar last_step: what the environment returned last

    :param env: see :class:`TensorEnv`
    :raises ValueError: ``num_envs`` is no count, or a space or the device is missing
    """

    ended: th.Tensor
    returns: th.Tensor
    lengths: th.Tensor
    last_step: TensorStep

    def __init__(self, env: TensorEnv):
        require_count("env.num_envs", getattr(env, "num_envs", None))
        for name, kind in (("observation_space", spaces.Space), ("action_space", spaces.Space), ("device", th.device)):
            value = getattr(env, name, None)
            require(isinstance(value, kind), f"env.{name}", value, f"a {kind.__module__}.{kind.__qualname__}")
        self.env, self._start = env, time.time()
        self.device = th.empty(0, device=env.device).device  # "cuda" is "cuda:0"
        super().__init__(env.num_envs, env.observation_space, env.action_space)
        self._begin_episodes()

    @property
    def base(self) -> "TensorVecEnv":
        """The environment itself."""
        return self

    def reset_tensors(self) -> PyTorchObs:
        """
        Begin an episode in every sub-environment, with the seed that has been set.

        :return: first observations, ``(E, *observation shape)``
        :raises ValueError: they have another shape, dtype or device; options have been set, which nobody takes
        """
        require(not any(self._options), "options", self._options[0], "none")
        observations = self.env.reset(self._seeds[0])
        self._require_observations("observations", observations)
        self._reset_seeds()
        self._begin_episodes()
        return observations

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Step all sub-environments.

        :param actions: ``(E, *action shape)``
        :return: what the environment returns
        :raises ValueError: a shape, a dtype or a device is another one than it should be
        """
        return self.stepped(TensorStep(*self.env.step(actions)))

    def stepped(self, step: TensorStep) -> TensorStep:
        """
        Check a step and count it.

        :param step: of the environment
        :return: the same, with rewards in single precision
        """
        self._require_observations("observations", step.observations)
        self._require_observations("final_observations", step.final_observations)
        for name, dtypes in (("rewards", _FLOATING), ("terminated", (th.bool,)), ("truncated", (th.bool,))):
            self._require(name, getattr(step, name), (), dtypes)
        if step.rewards.dtype != th.float32:
            step = step._replace(rewards=step.rewards.float())
        going_on = ~self.ended
        self.returns = self.returns * going_on + step.rewards
        self.lengths = self.lengths * going_on + 1
        self.ended, self.last_step = step.terminated | step.truncated, step
        return step

    @property
    def seconds(self) -> float:
        """The time since the environment was made, as episodes have it."""
        return round(time.time() - self._start, 6)

    def _begin_episodes(self) -> None:
        self.ended = th.zeros(self.num_envs, dtype=th.bool, device=self.device)
        self.returns = th.zeros(self.num_envs, device=self.device)
        self.lengths = th.zeros(self.num_envs, dtype=th.long, device=self.device)

    def _require_observations(self, what: str, observations: Any) -> None:
        space: Any = self.observation_space
        if not isinstance(space, spaces.Dict):
            return self._require(what, observations, space.shape, (_dtype_of(space),))
        keys = list(observations) if isinstance(observations, dict) else type(observations).__name__
        require(keys == [*space] or set(keys) == set(space), f"keys of {what}", keys, f"{[*space]}")
        for key, part in space.items():
            self._require(f"{what} {key!r}", observations[key], part.shape, (_dtype_of(part),))
        return None

    def _require(self, what: str, x: Any, shape: Any, dtypes: tuple[th.dtype, ...]) -> None:
        """Require what can be told without a look at the numbers."""
        if not isinstance(x, th.Tensor):
            raise ValueError(f"{what} of {self.env} is a {type(x).__name__}: allowed is a torch.Tensor")
        shape = (self.num_envs, *shape)
        for name, value, good, allowed in (
            ("shape", tuple(x.shape), x.shape == shape, shape),
            ("dtype", x.dtype, x.dtype in dtypes, dtypes[0]),
            ("device", x.device, x.device == self.device, self.device),
        ):
            if not good:
                raise ValueError(f"{name} of {what}={value}: allowed is {allowed}")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute of ``env``
        :param indices: which sub-environments; None for all
        :return: its value, once for each
        """
        default = (None,) if attr_name == "render_mode" else ()
        return [getattr(self.env, attr_name, *default)] * len([*self._get_indices(indices)])

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of ``env``
        :param value: what to set it to
        :param indices: None: there is one for all
        """
        require(indices is None, "indices", indices, "None, which is all sub-environments")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method of ``env``, which is called once
        :param method_args: its arguments
        :param indices: which sub-environments; None for all
        :param kwargs: its keyword arguments
        :return: what it returns, once for each
        """
        result = getattr(self.env, method_name)(*method_args, **kwargs)
        return [result] * len([*self._get_indices(indices)])

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a wrapper of single environments
        :param indices: which sub-environments; None for all
        :return: False for each: there are no single environments
        """
        return [False] * len([*self._get_indices(indices)])

    def close(self) -> None:
        """Close the environment, if it can be."""
        getattr(self.env, "close", lambda: None)()


_FLOATING = (th.float32, th.float64, th.float16, th.bfloat16)


def _dtype_of(space: spaces.Space) -> th.dtype:
    return th.from_numpy(np.empty(0, space.dtype)).dtype


def at_hand(device: th.device) -> bool:
    """True where a look at a number does not wait for the device."""
    return device.type == "cpu"


def as_arrays(observations: PyTorchObs) -> Any:
    """
    :param observations: a tensor, or a dict of them
    :return: arrays of their own, which no step writes to
    """
    return each(lambda x: np.array(x.numpy(force=True)), observations)
