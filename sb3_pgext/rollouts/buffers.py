"""Storage of rollouts: SB3's buffers for a fixed number of steps, and one for whole episodes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_pgext.vec_envs.observations import each

__all__ = ["DictStepBuffer", "EpisodeBatch", "EpisodeBuffer", "Rollout", "StepBuffer", "episode_indices"]


@dataclass(frozen=True)
class Rollout:
    """
    A fixed number of steps of each sub-environment, flat: M steps in all, sorted by sub-environment, then time.

    :param observations: s_t, ``(M, *observation shape)``; a dict of such tensors for Dict spaces
    :param actions: a_t as the policy drew them (not clipped), ``(M,)`` for Discrete, else ``(M, action dim)``
    :param values: V(s_t) of the critic that was there while acting, ``(M,)``
    :param log_prob: log π(a_t|s_t) of the policy that acted, ``(M,)``
    :param advantages: Ψ_t, ``(M,)``
    :param returns: the critic's target y_t, ``(M,)``
    """

    observations: PyTorchObs
    actions: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor

    @classmethod
    def of(cls, buffer: RolloutBuffer, device: th.device) -> "Rollout":
        """
        Flatten a full buffer.

        :param buffer: SB3's, or a subclass of it
        :param device: where the tensors are to be
        :return: the rollout
        """

        def flat(array: np.ndarray) -> th.Tensor:
            # SB3's get(), which a callback may have called, leaves flat arrays behind.
            return th.as_tensor(array if buffer.generator_ready else buffer.swap_and_flatten(array), device=device)

        actions = flat(buffer.actions)
        columns = (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
        return cls(
            each(flat, buffer.observations),
            actions.long().flatten() if isinstance(buffer.action_space, spaces.Discrete) else actions.float(),
            *(flat(column).flatten() for column in columns),
        )

    def __len__(self) -> int:
        """M, the number of steps."""
        return len(self.values)


_COLUMNS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
"""What a buffer has of each step beside observations."""


class _Storage(RolloutBuffer):
    """
    SB3's rollout buffer with its names, shapes, dtypes and order in memory, in less time.

    Values and log-probabilities leave the device once per rollout.
    """

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._on_device: list[tuple[th.Tensor, th.Tensor]] = []

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        Record one vector step.

        :param obs: ``(E, *observation shape)``, or a dict of such arrays
        :param action: ``(E, …)``
        :param reward: ``(E,)``
        :param episode_start: whether the observation is the first of its episode, ``(E,)``
        :param value: V, ``(E, 1)``
        :param log_prob: log π, ``(E,)``
        """
        t = self.pos
        columns: Any = self.observations
        if isinstance(columns, dict):
            for key, column in columns.items():
                column[t] = obs[key].reshape(column.shape[1:])
        else:
            columns[t] = obs.reshape(columns.shape[1:])
        self.actions[t] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[t] = reward
        self.episode_starts[t] = episode_start
        if value.device.type == "cpu" and isinstance(self.values, np.ndarray):
            self.values[t] = value.numpy().ravel()
            self.log_probs[t] = log_prob.numpy().ravel()
        else:
            self._on_device.append((value.detach().flatten(), log_prob.detach().flatten()))
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            if self._on_device:
                both = th.stack([th.stack(column) for column in zip(*self._on_device, strict=True)])
                self.values[:], self.log_probs[:] = both.to(th.as_tensor(self.values).device)
                self._on_device = []

    def to_device(self, device: th.device) -> None:
        """
        Keep the columns of this rollout as tensors.

        :param device: where
        """
        for name in ("observations", *_COLUMNS):
            setattr(
                self, name, each(lambda column: th.zeros_like(th.as_tensor(column), device=device), vars(self)[name])
            )

    def end(self) -> None:
        """Take the steps so far for the whole rollout."""
        self.buffer_size, self.full = self.pos, True
        for name in ("observations", *_COLUMNS):
            setattr(self, name, each(lambda column: column[: self.pos], getattr(self, name)))

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        """
        Generalised advantages and TD(λ) returns: SB3's numbers to the bit, without its work in each step.

        :param last_values: V of what follows the last step, ``(E, 1)``
        :param dones: whether an episode ended with the last step, ``(E,)``
        """
        last: Any = last_values.detach().reshape(1, -1)
        ended: Any = th.as_tensor(dones, dtype=th.float32, device=last.device).reshape(1, -1)
        together: Any = th.cat
        if isinstance(self.values, np.ndarray):  # with which so many small steps take a tenth of the time
            last, ended, together = last.numpy(force=True), ended.numpy(force=True), np.concatenate
        continues = 1.0 - together([self.episode_starts[1:], ended])
        delta = self.rewards + self.gamma * together([self.values[1:], last]) * continues - self.values
        decay = self.gamma * self.gae_lambda * continues
        total: Any = 0.0
        for t in reversed(range(self.buffer_size)):
            total = delta[t] + decay[t] * total
            self.advantages[t] = total
        self.returns[:] = self.advantages + self.values


class StepBuffer(_Storage, RolloutBuffer):
    """
    The ``rollout_buffer`` of algorithms that learn from a fixed number of steps: SB3's, with the same arrays.

    Its constructor is that of SB3's ``RolloutBuffer``.
    """


class DictStepBuffer(_Storage, DictRolloutBuffer):
    """:class:`StepBuffer` for Dict observations: ``observations`` is a dict of arrays."""


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


def episode_indices(lengths: th.Tensor) -> dict[str, th.Tensor]:
    """
    Numbers of the steps of whole episodes, one after the other.

    :param lengths: number of steps of each episode, ``(N,)``, int64
    :return: ``episode`` and ``time`` of each step, ``(M,)`` each
    """
    episode = th.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    time = th.arange(len(episode), device=lengths.device) - (lengths.cumsum(0) - lengths)[episode]
    return {"episode": episode, "time": time}


class EpisodeBuffer(BaseBuffer):
    """
    Records vector steps and cuts the whole episodes of a batch out of them.

    Steps are kept as they come (a list, since nobody knows how long the episodes will be); :meth:`episodes` gathers
    those that belong to the batch. From then on ``observations``, ``actions``, ``rewards``, ``values`` and
    ``episode_starts`` are arrays of its M steps, as in SB3's buffers but flat; rewards that are written there are
    learnt from.

    :param buffer_size: number of episodes of a batch, N
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: device of the gathered tensors
    :param gae_lambda: accepted because SB3 passes it to every rollout buffer; the estimators take it from the model
    :param gamma: as ``gae_lambda``
    :param n_envs: Number of parallel environments, E
    """

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    episode_starts: np.ndarray

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

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._steps: list[tuple[PyTorchObs, th.Tensor]] = []
        self._outcomes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._original_rewards: list[np.ndarray] = []
        self._values: list[th.Tensor] = []
        self._final_observations: dict[tuple[int, int], Any] = {}

    def size(self) -> int:
        """Number of vector steps recorded since the last reset."""
        return len(self._steps)

    def add(
        self,
        observations: PyTorchObs,
        actions: th.Tensor,
        rewards: np.ndarray,
        original_rewards: np.ndarray,
        recording: np.ndarray,
        ended: np.ndarray,
        values: th.Tensor | None = None,
    ) -> None:
        """
        Record one vector step. The caller hands over what is not written to again.

        :param observations: ``(E, *observation shape)``, or a dict of such tensors
        :param actions: ``(E, …)``
        :param rewards: ``(E,)``
        :param original_rewards: the same before any normalisation, ``(E,)``
        :param recording: which sub-environments are playing an episode of the batch, ``(E,)``, bool
        :param ended: which of those episodes ended with this step, ``(E,)``, bool
        :param values: V, ``(E, 1)``; None where it is computed at once for the whole batch
        """
        self._steps.append((observations, actions))
        self._outcomes.append((rewards, recording, ended))
        self._original_rewards.append(original_rewards)
        if values is not None:
            self._values.append(values.flatten().float())

    def add_final_observation(self, env_index: int, observation: Any) -> None:
        """
        Record the observation in which the step just added truncated an episode.

        :param env_index: sub-environment
        :param observation: s_T, not batched
        """
        self._final_observations[env_index, self.size() - 1] = observation

    def original_return(self, env_index: int, n_steps: int) -> float:
        """
        Sum of the last rewards of a sub-environment, before any normalisation.

        :param env_index: sub-environment
        :param n_steps: how many rewards
        :return: the sum
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
        # A sub-environment's recorded steps end with the end of an episode, so the distances of ends are the lengths.
        last = ended[recording]
        lengths = self._tensor(np.diff(np.flatnonzero(last), prepend=-1))
        truncated = np.zeros_like(recording)
        for key in self._final_observations:
            truncated[key] = True

        selected = th.as_tensor(recording, device=self.device)
        all_observations, all_actions = zip(*self._steps, strict=True)
        observations = _gather(all_observations, selected)
        of_truncated = self._tensor(truncated[recording][last])
        bootstrap_values, final_observations = th.zeros(len(lengths), dtype=th.float32, device=self.device), None
        if bootstrap and self._final_observations:
            assert value_function is not None
            final = [self._final_observations[key] for key in sorted(self._final_observations)]
            final_observations = each(lambda *rows: self._tensor(np.stack(rows)), *final)
            bootstrap_values[of_truncated] = value_function(final_observations)
        values = th.zeros(len(last), dtype=th.float32, device=self.device)
        if self._values:
            values = _gather(tuple(self._values), selected)
        elif value_function is not None:
            values = value_function(observations)
        batch = EpisodeBatch(
            observations=observations,
            actions=_flat_actions(_gather(all_actions, selected), self.action_space),
            rewards=self._tensor(rewards[recording].astype(np.float32)),
            values=values,
            **episode_indices(lengths),
            lengths=lengths,
            truncated=of_truncated,
            bootstrap_values=bootstrap_values,
            final_observations=final_observations,
        )
        for name in ("observations", "actions", "rewards", "values"):
            setattr(self, name, each(lambda x: x.numpy(force=True), getattr(batch, name)))
        self.episode_starts = (batch.time == 0).float().numpy(force=True)
        return batch

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, device=self.device)

    def _get_samples(self, batch_inds: np.ndarray, env: object = None) -> None:  # type: ignore[override]
        raise NotImplementedError("EpisodeBuffer hands out whole batches: use episodes()")


def _gather(steps: tuple[Any, ...], selected: th.Tensor) -> Any:
    """
    The selected rows of all vector steps, flat and sorted by sub-environment, then time.

    :param steps: of each vector step a tensor ``(E, …)`` or a dict of such tensors, T of them
    :param selected: ``(E, T)``, bool
    :return: ``(M, …)``
    """
    return each(lambda *columns: th.stack(columns, dim=1)[selected], *steps)


def _flat_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """Actions of any shape as SB3's distributions take them: ``(M,)`` for Discrete, else ``(M, action dim)``."""
    return actions if isinstance(space, spaces.Discrete) else actions.reshape(len(actions), -1)
