"""Fixed-length collection: the rollouts of SB3's ``OnPolicyAlgorithm``, to the bit."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.estimators.returns import generalized_advantages
from sb3_pgext.rollouts.acting import copied
from sb3_pgext.rollouts.checks import require_observation
from sb3_pgext.rollouts.collector import Collector
from sb3_pgext.rollouts.halves import vector_steps

__all__ = ["Segments", "StepCollector"]


class Segments(NamedTuple):
    """
    The steps of a rollout, flat and on the CPU, as N segments: consecutive steps of one episode. A segment ends where
    its episode does, or where the rollout does.

    :param rewards: r_t, with γV(s_T) where a time limit cut the episode, as SB3 has it, ``(M,)``
    :param values: V(s_t), ``(M,)``
    :param segment: segment of each step, 0 … N-1, ``(M,)``, int64
    :param bootstrap_values: V of what follows a segment that the rollout has cut, 0 for the others, ``(N,)``
    """

    rewards: th.Tensor
    values: th.Tensor
    segment: th.Tensor
    bootstrap_values: th.Tensor

    @classmethod
    def of(cls, buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> "Segments":
        """
        Cut a full buffer into segments.

        :param buffer: SB3's, or a subclass of it
        :param last_values: V of what follows the last step, ``(E,)``
        :param dones: whether an episode ended with the last step, ``(E,)``
        :return: the segments
        """
        starts = th.as_tensor(buffer.episode_starts).numpy(force=True).T.astype(bool)  # (E, T), a copy
        starts[:, 0] = True
        ends = np.roll(starts, -1, axis=1)
        bootstrap_values = np.zeros(starts.shape, np.float32)
        bootstrap_values[:, -1] = np.where(dones, 0.0, last_values.numpy(force=True))
        flat = (buffer.swap_and_flatten(column).ravel() for column in (buffer.rewards, buffer.values))
        numbers = np.cumsum(starts) - 1
        return cls(*(th.as_tensor(x, device="cpu") for x in (*flat, numbers, bootstrap_values[ends])))


class StepCollector(Collector):
    """
    Plays a fixed number of steps of each sub-environment, and computes advantages and returns.

    The callbacks find in their ``locals`` what they find in SB3. What they write into the buffer's ``advantages`` and
    ``returns`` when the rollout ends is learnt from. If they write into ``rewards`` alone, advantages and returns are
    computed again.

    After a rollout, ``final_observations`` has what followed the episodes that a time limit cut: vector step and
    sub-environment → the observation, not batched, and V of it. ``last_obs`` is what followed the last step, with
    ``last_values``, V of it, and ``last_dones``, whether it begins an episode.

    :param until_done: end a rollout early, after the first step that ends an episode
    """

    def __init__(self, until_done: bool = False) -> None:
        self.until_done = until_done
        self.final_observations: dict[tuple[int, int], tuple[Any, float]] = {}
        self.last_obs: Any = None
        self.last_values: Any = None
        self.last_dones: Any = None

    def _play(self, model: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, seen: dict[str, Any]) -> bool:
        self.final_observations = {}
        last = seen["n_rollout_steps"] - 1
        steps = vector_steps(model, env, model.engine.acting(), lambda t, _: t < last and not self.until_done)
        for n_steps, (actions, (new_obs, rewards, dones, infos)) in zip(range(last + 1), steps, strict=False):
            seen.update(n_steps=n_steps, obs_tensor=actions.observations, actions=actions.drawn)
            seen.update(values=actions.values, log_probs=actions.log_probs, clipped_actions=actions.clipped)
            seen.update(new_obs=new_obs, rewards=rewards, dones=dones, infos=infos)
            callback.update_locals(seen)
            if not callback.on_step():
                model._last_obs, model._last_episode_starts = new_obs, dones
                return False

            model._update_info_buffer(infos, dones)
            # One at a time, as SB3 does: a matrix product rounds by the number of its rows.
            for e in np.flatnonzero(dones):
                final_obs = infos[e].get("terminal_observation")
                if final_obs is not None and infos[e].get("TimeLimit.truncated", False):
                    require_observation(model.observation_space, final_obs, n_steps + 1, int(e))
                    value = model._values(model.policy.obs_to_tensor(final_obs)[0])[0]
                    rewards[e] += (model.gamma * value).item()
                    self.final_observations[n_steps, int(e)] = final_obs, value.item()
            starts = model._last_episode_starts
            of_policy = actions.values.float(), actions.log_probs.float()  # in half precision within torch.autocast
            rollout_buffer.add(actions.obs, actions.drawn, rewards, starts, *of_policy)
            model._last_obs, model._last_episode_starts = new_obs, dones
            if self.until_done and dones.any():
                rollout_buffer.end()
                break
        return True

    def _finish(self, model: Any, callback: BaseCallback, rollout_buffer: RolloutBuffer, seen: dict[str, Any]) -> None:
        self.last_obs = copied(model, model._last_obs)
        self.last_dones = model._last_episode_starts.copy()
        self.last_values = model._values(obs_as_tensor(self.last_obs, model.device))
        self.compute_advantages(model, rollout_buffer)
        names = ("rewards", "advantages", "returns")
        before = {name: th.as_tensor(getattr(rollout_buffer, name)).clone() for name in names}
        callback.update_locals(seen | {"values": self.last_values[:, None], "n_steps": seen["n_rollout_steps"]})
        callback.on_rollout_end()
        if rollout_buffer.generator_ready:  # a callback has called get(): its arrays are flat
            return
        changed = {name for name in names if not before[name].equal(th.as_tensor(getattr(rollout_buffer, name)))}
        if changed == {"rewards"}:
            self.compute_advantages(model, rollout_buffer)

    def compute_advantages(self, model: Any, rollout_buffer: RolloutBuffer) -> None:
        """
        Fill the buffer's advantages and returns with those of the last rollout.

        :param model: with the options that they depend on
        :param rollout_buffer: as this collector has filled it
        """
        rollout_buffer.gamma, rollout_buffer.gae_lambda = model.gamma, model.gae_lambda
        model._compute_returns_and_advantage(rollout_buffer, self.last_values, self.last_dones)

    def recomputed_advantages(self, model: Any, rollout_buffer: RolloutBuffer, values: th.Tensor) -> th.Tensor:
        """
        Generalised advantages of the last rollout for another critic.

        :param model: whose critic it is
        :param rollout_buffer: as this collector has filled it
        :param values: V(s_t), ``(M,)``
        :return: Ψ_t, ``(M,)``, on the CPU
        """
        last_values = model._values(obs_as_tensor(self.last_obs, model.device))
        rewards, _, segment, bootstrap_values = Segments.of(rollout_buffer, last_values, self.last_dones)
        rewards = rewards.clone()
        for (t, e), (observation, old_value) in self.final_observations.items():
            value = model._values(model.policy.obs_to_tensor(observation)[0]).item()
            rewards[e * rollout_buffer.buffer_size + t] += model.gamma * (value - old_value)
        steps = rewards, values.cpu(), segment, model.gamma, model.gae_lambda
        return generalized_advantages(*steps, bootstrap_values)
