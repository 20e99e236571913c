"""Storage of rollouts: recorded while acting, handed over once as flat tensors on the model's device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

__all__ = ["EpisodeBatch", "EpisodeBuffer", "Rollout", "StepBuffer"]


@dataclass(frozen=True)
class EpisodeBatch:
    """
    N whole episodes, flat: M steps in all, the steps of an episode next to each other and in order of time.

    :param observations: s_t, ``(M, *observation shape)``; a dict of such tensors for Dict spaces
    :param actions: a_t as the policy drew them (not clipped), ``(M,)`` for Discrete, else ``(M, action dim)``
    :param rewards: r_t as the VecEnv gave them, ``(M,)``
    :param values: V(s_t) of the critic that was there while acting, ``(M,)``; 0 without a critic
    :param episode: episode of each step, 0 … N-1, ``(M,)``, int64
    :param time: time index within the episode, ``(M,)``, int64
    :param lengths: number of steps of each episode, ``(N,)``, int64
    :param truncated: whether the episode was cut by a limit instead of ending, ``(N,)``, bool
    :param bootstrap_values: V(s_T) of the truncated episodes if they are bootstrapped, else 0, ``(N,)``
    :param final_observations: s_T of the truncated episodes if they are bootstrapped, in their order, ``(K,
        *observation shape)``; None if there are none, or nobody knows
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor
    values: th.Tensor
    episode: th.Tensor
    time: th.Tensor
    lengths: th.Tensor
    truncated: th.Tensor
    bootstrap_values: th.Tensor
    final_observations: PyTorchObs | None = None

    @property
    def n_episodes(self) -> int:
        """N, the number of episodes."""
        return len(self.lengths)

    def __len__(self) -> int:
        """M, the number of steps."""
        return len(self.rewards)


class StepRecorder(BaseBuffer):
    """
    Keeps vector steps as they come; a subclass says what is kept in ``reset`` and ``add``.

    :param buffer_size: how much a rollout collects: vector steps, or episodes
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: device of the tensors handed out
    :param gae_lambda: accepted because SB3 passes it to every rollout buffer; the estimators take it from the model
    :param gamma: as ``gae_lambda``
    :param n_envs: Number of parallel environments, E
    """

    _steps: list[Any]
    single_precision: bool = False
    """Whether observations in double precision are kept in single: they take half the memory, see
    :func:`~sb3_pgext.rollouts.acting.takes_single_precision`."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ):
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.reset()

    def size(self) -> int:
        """Number of vector steps recorded since the last reset."""
        return len(self._steps)

    def _kept(self, observations: PyTorchObs) -> PyTorchObs:
        return _in_single_precision(observations) if self.single_precision else observations


class EpisodeBuffer(StepRecorder):
    """
    Records vector steps and cuts the whole episodes of a batch out of them.

    Steps are kept as they come (a list, since nobody knows how long the episodes will be); :meth:`episodes` gathers
    those that belong to the batch.

    :param buffer_size: number of episodes of a batch, N
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: device of the gathered tensors
    :param gae_lambda: accepted because SB3 passes it to every rollout buffer; the estimators take it from the model
    :param gamma: as ``gae_lambda``
    :param n_envs: Number of parallel environments, E
    """

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._steps: list[tuple[PyTorchObs, th.Tensor]] = []
        self._outcomes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._original_rewards: list[np.ndarray] = []
        self._values: list[th.Tensor] = []
        self._final_observations: dict[tuple[int, int], Any] = {}

    def add(
        self,
        observations: PyTorchObs,
        actions: th.Tensor,
        rewards: np.ndarray,
        original_rewards: np.ndarray,
        recording: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """
        Record one vector step. The caller hands over what is not written to again.

        :param observations: ``(E, *observation shape)``, or a dict of such tensors
        :param actions: ``(E, …)``
        :param rewards: ``(E,)``
        :param original_rewards: the same before any normalisation, ``(E,)``
        :param recording: which sub-environments are playing an episode of the batch, ``(E,)``, bool
        :param ended: which of those episodes ended with this step, ``(E,)``, bool
        """
        self._steps.append((self._kept(observations), actions))
        self._outcomes.append((rewards, recording, ended))
        self._original_rewards.append(original_rewards)

    def add_values(self, values: th.Tensor) -> None:
        """
        Record the values of the step just added, where they are not computed at once for the whole batch.

        :param values: ``(E, 1)``
        """
        self._values.append(values.flatten().float())

    def add_final_observation(self, env_index: int, observation: dict | np.ndarray) -> None:
        """
        Record the observation in which the step just added truncated an episode.

        :param env_index: sub-environment
        :param observation: s_T, not batched
        """
        self._final_observations[env_index, self.size() - 1] = observation

    def original_return(self, env_index: int, n_steps: int) -> float:
        """
        :param env_index: sub-environment
        :param n_steps: how many
        :return: the sum of its last rewards, before any normalisation
        """
        return float(sum(rewards[env_index] for rewards in self._original_rewards[-n_steps:]))

    def episodes(self, value_function: Callable[[PyTorchObs], th.Tensor] | None, bootstrap: bool) -> EpisodeBatch:
        """
        The batch of whole episodes, numbered by sub-environment and then by time.

        :param value_function: observations ``(K, …)`` → V ``(K,)``; None without a critic
        :param bootstrap: whether truncated episodes get the value of their last observation
        :return: the batch
        """
        rewards, recording, ended = (np.stack(column, axis=1) for column in zip(*self._outcomes, strict=True))  # (E, T)
        # A sub-environment's recorded steps end with the end of an episode, so counting ends numbers the episodes.
        last = ended[recording]
        episode = np.cumsum(last) - last
        ends = np.flatnonzero(last) + 1
        lengths = np.diff(ends, prepend=0)
        time = np.arange(len(last)) - (ends - lengths)[episode]
        truncated = np.zeros_like(recording)
        for key in self._final_observations:
            truncated[key] = True

        selected = th.as_tensor(recording, device=self.device)
        all_observations, all_actions = zip(*self._steps, strict=True)
        observations = _gather(all_observations, selected)
        of_truncated = self.to_torch(truncated[recording][last])
        bootstrap_values, final_observations = th.zeros(len(ends), dtype=th.float32, device=self.device), None
        if bootstrap and self._final_observations:
            assert value_function is not None
            final = [self._final_observations[key] for key in sorted(self._final_observations)]
            final_observations = self._kept(_stacked(final, self.device))
            bootstrap_values[of_truncated] = value_function(final_observations)
        values = th.zeros(len(last), dtype=th.float32, device=self.device)
        if self._values:
            values = _gather(tuple(self._values), selected)
        elif value_function is not None:
            values = value_function(observations)
        return EpisodeBatch(
            observations=observations,
            actions=_flat_actions(_gather(all_actions, selected)),
            rewards=self.to_torch(rewards[recording].astype(np.float32)),
            values=values,
            episode=self.to_torch(episode),
            time=self.to_torch(time),
            lengths=self.to_torch(lengths),
            truncated=of_truncated,
            bootstrap_values=bootstrap_values,
            final_observations=final_observations,
        )

    def _get_samples(self, batch_inds: np.ndarray, env: object = None) -> None:  # type: ignore[override]
        raise NotImplementedError("EpisodeBuffer hands out whole batches: use episodes()")


@dataclass(frozen=True)
class Rollout:
    """
    A fixed number of steps of each sub-environment, flat: M steps in all, sorted by sub-environment, then time.

    They fall into N segments: consecutive steps of one episode. A segment ends where its episode does, or where the
    rollout does.

    :param observations: s_t, ``(M, *observation shape)``; a dict of such tensors for Dict spaces
    :param actions: a_t as the policy drew them (not clipped), ``(M,)`` for Discrete, else ``(M, action dim)``
    :param rewards: r_t as the VecEnv gave them, ``(M,)``
    :param values: V(s_t) of the critic that was there while acting, ``(M,)``
    :param log_prob: log π(a_t|s_t) of the policy that acted, ``(M,)``
    :param segment: segment of each step, 0 … N-1, ``(M,)``, int64
    :param continues: which segments' episodes did not end in a terminal state, ``(N,)``, bool, K of them
    :param final_observations: the observation that follows their last step, ``(K, *observation shape)``
    :param bootstrap_values: V of it, of the critic that was there while acting; 0 for the other segments, ``(N,)``
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    segment: th.Tensor
    continues: th.Tensor
    final_observations: PyTorchObs | None
    bootstrap_values: th.Tensor

    def __len__(self) -> int:
        """M, the number of steps."""
        return len(self.rewards)


class StepBuffer(StepRecorder):
    """
    Records vector steps and hands them out as one :class:`Rollout`.

    :param buffer_size: number of vector steps of a rollout
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: device of the tensors
    :param gae_lambda: accepted because SB3 passes it to every rollout buffer; the estimators take it from the model
    :param gamma: as ``gae_lambda``
    :param n_envs: Number of parallel environments, E
    """

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._steps: list[tuple[PyTorchObs, th.Tensor, th.Tensor, th.Tensor]] = []
        self._outcomes: list[tuple[np.ndarray, np.ndarray]] = []
        self._continuations: dict[tuple[int, int], tuple[Any, th.Tensor]] = {}

    def add(
        self,
        observations: PyTorchObs,
        actions: th.Tensor,
        values: th.Tensor,
        log_prob: th.Tensor,
        rewards: np.ndarray,
        dones: np.ndarray,
    ) -> None:
        """
        Record one vector step. The caller hands over what is not written to again.

        :param observations: ``(E, *observation shape)``, or a dict of such tensors
        :param actions: ``(E, …)``
        :param values: ``(E, 1)``
        :param log_prob: ``(E,)``
        :param rewards: ``(E,)``
        :param dones: which episodes ended with this step, ``(E,)``, bool
        """
        self._steps.append((self._kept(observations), actions, values.float(), log_prob.float()))
        self._outcomes.append((rewards, dones))

    def add_continuation(self, env_index: int, observation: Any, value: th.Tensor) -> None:
        """
        Record what follows the step just added, where its episode did not end in a terminal state.

        :param env_index: sub-environment
        :param observation: not batched
        :param value: V of it, a scalar
        """
        self._continuations[env_index, self.size() - 1] = observation, value

    def rollout(self) -> Rollout:
        """Everything recorded since the last reset."""
        observations, actions, values, log_prob = zip(*self._steps, strict=True)
        rewards, ends = (np.stack(column, axis=1) for column in zip(*self._outcomes, strict=True))  # (E, T)
        ends[:, -1] = True
        continues = np.zeros_like(ends)
        for key in self._continuations:
            continues[key] = True
        of_segments = self.to_torch(continues[ends])
        bootstrap_values = th.zeros(len(of_segments), dtype=th.float32, device=self.device)
        final, final_observations = [self._continuations[key] for key in sorted(self._continuations)], None
        if final:
            bootstrap_values[of_segments] = th.stack([value for _, value in final])
            final_observations = self._kept(_stacked([observation for observation, _ in final], self.device))
        return Rollout(
            observations=_flat(observations),
            actions=_flat_actions(_flat(actions)),
            rewards=self.to_torch(rewards.astype(np.float32).ravel()),
            values=_flat(values).flatten(),
            log_prob=_flat(log_prob),
            segment=self.to_torch(np.cumsum(ends) - ends.ravel()),
            continues=of_segments,
            final_observations=final_observations,
            bootstrap_values=bootstrap_values,
        )

    def _get_samples(self, batch_inds: np.ndarray, env: object = None) -> None:  # type: ignore[override]
        raise NotImplementedError("StepBuffer hands out whole rollouts: use rollout()")


def _in_single_precision(observations: PyTorchObs) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: x.float() if x.dtype == th.float64 else x for key, x in observations.items()}
    return observations.float() if observations.dtype == th.float64 else observations


def _stacked(observations: list[Any], device: th.device) -> PyTorchObs:
    """Single observations as a batch."""
    if isinstance(observations[0], dict):
        return {key: _stacked([obs[key] for obs in observations], device) for key in observations[0]}  # type: ignore[misc]
    return th.as_tensor(np.stack(observations), device=device)


def _flat(steps: tuple[Any, ...]) -> Any:
    """
    :param steps: of each vector step a tensor ``(E, …)`` or a dict of such tensors, T of them
    :return: flat and sorted by sub-environment, then time, ``(M, …)``
    """
    if isinstance(steps[0], dict):
        return {key: _flat(tuple(step[key] for step in steps)) for key in steps[0]}
    return th.stack(steps, dim=1).flatten(0, 1)


def _gather(steps: tuple[Any, ...], selected: th.Tensor) -> Any:
    """
    :param steps: of each vector step a tensor ``(E, …)`` or a dict of such tensors, T of them
    :param selected: ``(E, T)``, bool
    :return: the selected ones, flat and sorted by sub-environment, then time, ``(M, …)``
    """
    if isinstance(steps[0], dict):
        return {key: _gather(tuple(step[key] for step in steps), selected) for key in steps[0]}
    return th.stack(steps, dim=1)[selected]


def _flat_actions(actions: th.Tensor) -> th.Tensor:
    """Actions of any shape as SB3's distributions take them: ``(M,)`` or ``(M, action dim)``."""
    return actions if actions.ndim == 1 else actions.flatten(1)
