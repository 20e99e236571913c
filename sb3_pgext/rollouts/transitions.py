"""Collection into a replay: SB3's own loop over a checked environment, and buffers that keep log-probabilities."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_pgext.rollouts.acting import explain
from sb3_pgext.rollouts.checks import step_check

__all__ = [
    "CheckedVecEnv",
    "DictLogProbReplayBuffer",
    "LogProbReplayBuffer",
    "NStepLogProbReplayBuffer",
    "Transitions",
]


class CheckedVecEnv(VecEnvWrapper):
    """
    Looks at what an environment returns before anybody else does.

    :param venv: the environment
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.n_steps = 0
        self._check = step_check(venv)

    def __reduce__(self) -> tuple[Any, ...]:
        """Models are copied; SB3's wrappers cannot be."""
        return type(self), (self.venv,)

    def reset(self) -> VecEnvObs:
        """See SB3's ``VecEnv``."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step, and check.

        :raises ValueError: an observation or a reward has another shape, is not finite, or lacks a key. Whatever else
            the environment raises goes through, with a note of the step (Python 3.11 or newer)
        """
        n_steps, self.n_steps = self.n_steps, self.n_steps + 1
        try:
            observations, rewards, dones, infos = self.venv.step_wait()
        except Exception as error:
            explain(error, self.venv, f"at vector step {n_steps} of this rollout")
            raise
        self._check(observations, rewards, n_steps)
        return observations, rewards, dones, infos


class Transitions(NamedTuple):
    """
    A minibatch of the replay, B transitions.

    :param observations: s, ``(B, *observation shape)``, or a dict of such tensors
    :param actions: a as the policy draws them, ``(B, …)``: scaled to [-1, 1] if of a Box, ``(B, action dim)``
    :param next_observations: s' after the n steps of the reward, as ``observations``
    :param terminated: 1 where s' is terminal, else 0, ``(B,)``
    :param rewards: the discounted sum of n rewards, ``(B,)``
    :param discounts: γ, or γ^n of each transition, ``(B,)``
    :param log_prob: log μ(a|s) of the policy that acted, ``(B,)``; empty where the buffer does not keep it
    """

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs
    terminated: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | float
    log_prob: tuple[th.Tensor, ...]

    @classmethod
    def of(cls, samples: Any, gamma: float, action_space: spaces.Space) -> "Transitions":
        """
        Flatten what SB3's buffers return.

        :param samples: SB3's, or :class:`LogProbSamples`
        :param gamma: the discount where the buffer has none of its own
        :param action_space: discrete actions get its shape, which the buffer flattens
        :return: the minibatch
        """
        actions, shape = samples.actions, action_space.shape
        if not isinstance(action_space, spaces.Box):
            assert shape is not None
            actions = actions.reshape(-1, *shape).float()
        discounts = getattr(samples, "discounts", None)
        log_prob = getattr(samples, "log_prob", None)
        return cls(
            samples.observations,
            actions,
            samples.next_observations,
            samples.dones.flatten(),
            samples.rewards.flatten(),
            gamma if discounts is None else discounts.flatten(),
            () if log_prob is None else (log_prob,),
        )


class LogProbSamples(NamedTuple):
    """SB3's samples of a replay, and ``log_prob``, log μ(a|s) of the policy that acted, ``(B,)``."""

    observations: Any
    actions: th.Tensor
    next_observations: Any
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    log_prob: th.Tensor


class _KeepsLogProb(ReplayBuffer):
    """A replay buffer that keeps the log-probability of each action under the policy that acted."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.log_probs = np.zeros((self.buffer_size, self.n_envs), np.float32)

    def add_log_prob(self, log_prob: np.ndarray) -> None:
        """
        Record the log-probabilities of the actions that ``add`` records next.

        :param log_prob: log μ(a|s), ``(E,)``
        """
        self.log_probs[self.pos] = log_prob

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        # SB3's buffers choose a sub-environment for each row first of all: drawn again, it is the same one.
        before = np.random.get_state()  # noqa: NPY002  the generator that SB3 draws from
        samples = super()._get_samples(batch_inds, env)
        after = np.random.get_state()  # noqa: NPY002
        np.random.set_state(before)  # noqa: NPY002
        env_indices = np.random.randint(0, self.n_envs, size=len(batch_inds))  # noqa: NPY002
        np.random.set_state(after)  # noqa: NPY002
        log_prob = self.to_torch(self.log_probs[batch_inds, env_indices])
        return LogProbSamples(*samples[:5], getattr(samples, "discounts", None), log_prob)


class LogProbReplayBuffer(_KeepsLogProb, ReplayBuffer):
    """SB3's ``ReplayBuffer`` with the log-probabilities of the actions: ``log_probs``, ``(size, E)``."""


class DictLogProbReplayBuffer(_KeepsLogProb, DictReplayBuffer):
    """SB3's ``DictReplayBuffer`` with ``log_probs``."""


class NStepLogProbReplayBuffer(_KeepsLogProb, NStepReplayBuffer):
    """SB3's ``NStepReplayBuffer`` with ``log_probs``."""
