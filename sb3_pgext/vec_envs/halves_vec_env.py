"""Two halves of the sub-environments: one steps while the policy acts for the other."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_pgext.arguments import require, require_count
from sb3_pgext.vec_envs.observations import each
from sb3_pgext.vec_envs.worker_vec_env import WorkerVecEnv

__all__ = ["HalvesVecEnv"]


class HalvesVecEnv(VecEnv):
    """
    SB3's ``VecEnv`` made of two that step by themselves: in worker processes, or in envpool's threads.

    To SB3's code it is an ordinary one. The on-policy algorithms of this package act for one half while the other one
    steps, see :mod:`sb3_pgext.rollouts.halves`. Who uses it so calls :meth:`send` for each half, and :meth:`receive` as
    soon as its observations are needed; a half may be sent on before the other one has been received. The next
    :meth:`step_wait`, with :meth:`step_async` before it or not, returns the whole vector step.

    :param first: the first half: SB3's SubprocVecEnv, :class:`WorkerVecEnv`, :class:`EnvPoolVecEnv`,
        :class:`GymnasiumVecEnv` over AsyncVectorEnv, another ``HalvesVecEnv``, or a VecEnv that says
        ``asynchronous = True``; also in wrappers that know their half alone
    :param second: the second half, of as many sub-environments, with the same spaces
    :raises ValueError: the halves do not fit together, or cannot step by themselves
    """

    asynchronous = True
    """It steps while this process does something else."""

    def __init__(self, first: VecEnv, second: VecEnv):
        for name, half in (("first", first), ("second", second)):
            base = half.unwrapped
            by_itself = isinstance(base, SubprocVecEnv) or getattr(base, "asynchronous", False) is True
            allowed = (
                "a VecEnv that steps by itself: SubprocVecEnv, WorkerVecEnv, EnvPoolVecEnv or one over AsyncVectorEnv"
            )
            require(by_itself, name, base, allowed)
        sizes = f"{first.num_envs} and {second.num_envs}"
        require(first.num_envs == second.num_envs, "sub-environments of the halves", sizes, "the same number in both")
        for name in ("observation_space", "action_space"):
            spaces = getattr(first, name), getattr(second, name)
            require(spaces[0] == spaces[1], f"{name} of the second half", spaces[1], f"that of the first, {spaces[0]}")
        self.halves = first, second
        self.rows = slice(0, first.num_envs), slice(first.num_envs, None)
        self._sent = [False, False]
        self._received: list[VecEnvStepReturn | None] = [None, None]
        super().__init__(2 * first.num_envs, first.observation_space, first.action_space)

    @classmethod
    def of(cls, env_fns: Sequence[Callable[[], gym.Env]], n_workers: int | None = None) -> "HalvesVecEnv":
        """
        Make one with worker processes that step several sub-environments each, e.g. ``make_vec_env("Ant-v5", 8,
        vec_env_cls=HalvesVecEnv.of)``.

        :param env_fns: each makes a sub-environment; an even number of them
        :param n_workers: 2, 4, 8, …; None for as many as there are cores and the sub-environments can be shared among
        :return: the environment
        :raises ValueError: the sub-environments cannot be shared equally among the workers
        """
        n_envs = len(env_fns)
        require(n_envs > 0 and n_envs % 2 == 0, "number of sub-environments", n_envs, "an even one")
        if n_workers is None:
            n_workers, n_cores = 2, os.cpu_count() or 1
            while 2 * n_workers <= n_cores and n_envs % (2 * n_workers) == 0:
                n_workers *= 2
        require_count("n_workers", n_workers, 2)
        equally = n_workers & (n_workers - 1) == 0 and n_envs % n_workers == 0
        require(equally, "n_workers", n_workers, f"2, 4, 8, … that divide {n_envs} sub-environments")

        def half(env_fns: Sequence[Callable[[], gym.Env]]) -> VecEnv:
            few = len(env_fns) == n_envs // n_workers
            return WorkerVecEnv(partial(DummyVecEnv, list(env_fns))) if few else both(env_fns)

        def both(env_fns: Sequence[Callable[[], gym.Env]]) -> HalvesVecEnv:
            middle = len(env_fns) // 2
            return cls(half(env_fns[:middle]), half(env_fns[middle:]))

        return both(env_fns)

    def send(self, which: int, actions: np.ndarray) -> None:
        """
        Let one half begin to step.

        :param which: 0 or 1
        :param actions: of its sub-environments, ``(E/2, *action shape)``
        """
        self.halves[which].step_async(actions)
        self._sent[which] = True

    def receive(self, which: int) -> VecEnvStepReturn:
        """
        Wait for the step of one half. What it returns is also kept for :meth:`step_wait`.

        :param which: 0 or 1
        :return: its observations, rewards, dones and infos
        """
        self._sent[which] = False  # also where it fails
        self._received[which] = result = self.halves[which].step_wait()
        return result

    @property
    def stepping(self) -> bool:
        """True if a half steps, and has not been received."""
        return any(self._sent)

    def drop(self) -> bool:
        """
        Wait for the halves that step, and forget what they return.

        :return: whether there was one
        """
        stepping = self.stepping
        for which in (0, 1):
            if self._sent[which]:
                self.receive(which)
        self._received = [None, None]
        return stepping

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: with which those halves begin to step that have not been sent on their own, ``(E, *action
            shape)``
        """
        for which, rows in enumerate(self.rows):
            if not self._sent[which] and self._received[which] is None:
                self.send(which, actions[rows])

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones and infos of the whole vector step
        """
        results = [self._received[which] or self.receive(which) for which in (0, 1)]
        self._received = [None, None]
        observations, rewards, dones, infos = zip(*results, strict=True)
        self._join_reset_infos()
        return _joined(observations), np.concatenate(rewards), np.concatenate(dones), [*infos[0], *infos[1]]

    def _join_reset_infos(self) -> None:
        self.reset_infos = [info for half in self.halves for info in half.reset_infos]

    def reset(self) -> VecEnvObs:
        """
        Begin an episode in every sub-environment, with the seeds and options that have been set.

        :return: first observations, ``(E, *observation shape)``; a dict of such arrays for a dict space
        """
        self.drop()
        observations = []
        for half, rows in zip(self.halves, self.rows, strict=True):
            if self._seeds[rows][0] is not None:
                half.seed(self._seeds[rows][0])
            half.set_options(self._options[rows])
            observations.append(half.reset())
        self._join_reset_infos()
        self._reset_seeds()
        self._reset_options()
        return _joined(observations)

    def _of_halves(self, name: str, *arguments: Any, indices: VecEnvIndices, **keywords: Any) -> list[Any]:
        """Call a method of both halves, or for each sub-environment that is asked for; the values in one list."""
        if indices is None:
            return [x for half in self.halves for x in getattr(half, name)(*arguments, **keywords) or ()]
        of_each: list[Any] = []
        for index in self._get_indices(indices):
            which, at = divmod(index, self.num_envs // 2)
            of_each += getattr(self.halves[which], name)(*arguments, indices=[at], **keywords) or ()
        return of_each

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See ``VecEnv.get_attr``."""
        return self._of_halves("get_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See ``VecEnv.set_attr``."""
        self._of_halves("set_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """See ``VecEnv.env_method``."""
        return self._of_halves("env_method", method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """See ``VecEnv.env_is_wrapped``."""
        return self._of_halves("env_is_wrapped", wrapper_class, indices=indices)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: an image of each sub-environment, ``(height, width, 3)``
        """
        return [image for half in self.halves for image in half.get_images()]

    def close(self) -> None:
        """Close both halves."""
        for half in self.halves:
            half.close()


def _joined(observations: Sequence[Any]) -> Any:
    return each(lambda *parts: np.concatenate(parts), *observations)
