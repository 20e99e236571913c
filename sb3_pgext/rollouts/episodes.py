"""Whole-episode collection: exactly N episodes are started and every one of them is finished.

Taking the first N episodes that happen to *finish* would favour short ones. Here each sub-environment has a fixed
share of the N episodes, settled before the first step, so that nothing depends on which episode ends first.
A sub-environment that is done with its share idles until the others are done: the VecEnv goes on stepping it, these
steps count in ``num_timesteps``, but nothing is learnt from them.
"""

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.rollouts.acting import copied
from sb3_pgext.rollouts.buffers import EpisodeBuffer
from sb3_pgext.rollouts.checks import require_observation
from sb3_pgext.rollouts.collector import Collector
from sb3_pgext.rollouts.halves import vector_steps
from sb3_pgext.vec_envs.observations import each

__all__ = ["EpisodeCollector", "EpisodeSchedule", "begin_episodes"]

MAX_STEPS_WITHOUT_END = 1_000_000
"""An episode longer than this, where the user gave no limit, is taken to have no end."""

WARN_AFTER = 10_000
"""Steps of one episode, where the user gave no limit, after which a warning says what to set."""


class EpisodeSchedule:
    """
    Keeps account of who plays an episode of the batch, and of when the batch is complete.

    Sub-environment e plays ⌈(N - e) / E⌉ episodes, one after the other.

    :param n_episodes: number of episodes of the batch, N
    :param n_envs: number of sub-environments, E
    :param max_episode_steps: episodes are cut after this many steps; None for no limit
    """

    def __init__(self, n_episodes: int, n_envs: int, max_episode_steps: int | None = None):
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self._remaining = np.array([len(range(e, n_episodes, n_envs)) for e in range(n_envs)])
        self._started = np.zeros(n_envs, dtype=np.int64)
        self._nowhere = np.zeros(n_envs, dtype=bool)
        self._n_steps = 0
        self.restart()

    def restart(self) -> None:
        """Every sub-environment is at the start of an episode."""
        self._started[:] = self._n_steps
        self._set_recording(self._remaining > 0)

    def _set_recording(self, recording: np.ndarray) -> None:
        self.recording = recording
        self._oldest_start = self._started[recording].min(initial=self._n_steps)

    @property
    def complete(self) -> bool:
        """True when every episode of the batch is finished."""
        return not self._remaining.any()

    @property
    def stalled(self) -> bool:
        """True when episodes are left, but nobody plays one: all wait in an episode that was cut."""
        return not self.recording.any() and not self.complete

    def goes_on(self, dones: np.ndarray) -> bool:
        """
        Ask whether some of the first sub-environments go on with the batch after a step, whatever the others do.

        :param dones: which of the first ones ended an episode with it, ``(K,)``, bool
        :return: True where that is sure
        """
        some = slice(0, len(dones))
        plays_on = self.recording[some] & (~dones | (self._remaining[some] > 1))
        return bool(plays_on.any()) and self._n_steps + 1 - self._oldest_start < self._limit

    def step(self, dones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Account for one vector step.

        :param dones: which sub-environments ended an episode and are at the start of the next, ``(E,)``, bool
        :return: which episodes of the batch ended with this step, and which of these because they reached
            ``max_episode_steps``, each ``(E,)``, bool
        :raises RuntimeError: an episode has neither an end nor a limit
        """
        self._n_steps += 1
        longest = self._n_steps - self._oldest_start
        if longest == WARN_AFTER and math.isinf(self._limit):
            warnings.warn(
                f"A sub-environment has been in the same episode for {WARN_AFTER:,} steps, and an update waits for its "
                "end. If it has none, set `max_episode_steps`, or wrap it in gymnasium.wrappers.TimeLimit",
                stacklevel=2,
            )
        if math.isinf(self._limit) and longest > MAX_STEPS_WITHOUT_END:
            raise RuntimeError(
                f"A sub-environment has been in the same episode for more than {MAX_STEPS_WITHOUT_END:,} steps: the "
                "environment seems to have no end and no limit, and whole episodes are needed here. Wrap it in "
                "gymnasium.wrappers.TimeLimit, or set `max_episode_steps`."
            )
        at_limit = longest >= self._limit
        if not at_limit and not dones.any():
            return self._nowhere, self._nowhere

        cut = self._nowhere
        if at_limit:
            cut = self.recording & ~dones & (self._n_steps - self._started >= self._limit)
        ended = self.recording & (dones | cut)
        self._remaining = self._remaining - ended
        self._started[dones] = self._n_steps
        # After a cut the sub-environment is still inside its episode: it waits for its end, or for a reset.
        self._set_recording(np.where(dones, self._remaining > 0, self.recording & ~cut))
        return ended, cut


def begin_episodes(model: Any, env: VecEnv) -> None:
    """
    Reset the environment, unless every sub-environment is at the start of an episode.

    :param model: has the last observations
    :param env: the environment
    """
    if not np.all(model._last_episode_starts):
        model._last_obs = env.reset()
    # Whatever ends this rollout early, what follows must not take the middle of an episode for its start.
    model._last_episode_starts = np.zeros(env.num_envs, dtype=bool)


class EpisodeCollector(Collector):
    """
    Plays N whole episodes; the batch lies in ``model.episodes`` afterwards.

    The callbacks find in their ``locals`` what they find in SB3, except ``values`` and ``log_probs``, which are None: V
    is computed for the whole batch at once. Rewards that they write into the buffer when the rollout ends are learnt
    from.

    The model says whether it ``has_critic`` and ``bootstraps``. An episode with neither an end nor a limit raises a
    RuntimeError.
    """

    def _begin(self, model: Any, env: VecEnv) -> None:
        begin_episodes(model, env)

    def _play(
        self, model: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: EpisodeBuffer, seen: dict[str, Any]
    ) -> bool:
        # At once for the whole batch saves a third of the time of acting, unless policy and critic share features that
        # cost to compute.
        costly = model.policy.share_features_extractor and list(model.policy.features_extractor.parameters())
        with_values = bool(model.has_critic and costly)
        act, normalizer = model.engine.acting(with_values), model._vec_normalize_env
        schedule = EpisodeSchedule(seen["n_rollout_steps"], env.num_envs, model.max_episode_steps)
        steps = vector_steps(model, env, act, lambda _, dones: schedule.goes_on(dones))
        for n_steps, (actions, (new_obs, rewards, dones, infos)) in enumerate(steps):
            seen.update(n_steps=n_steps, obs_tensor=actions.observations, actions=actions.drawn)
            seen.update(clipped_actions=actions.clipped, new_obs=new_obs, rewards=rewards, dones=dones, infos=infos)
            callback.update_locals(seen)
            if not callback.on_step():
                return False

            recording = schedule.recording
            ended, cut = schedule.step(dones)
            rewards = rewards.copy()
            original_rewards = rewards if normalizer is None else normalizer.get_original_reward()
            outcome = rewards, original_rewards, recording, ended
            rollout_buffer.add(actions.observations, actions.tensor, *outcome, actions.values if with_values else None)
            if ended.any():
                self._finish_episodes(model, rollout_buffer, ended, cut, new_obs, infos)
            model._last_obs = new_obs
            if schedule.stalled:
                model._last_obs = env.reset()
                schedule.restart()
            if schedule.complete:
                break
        model._last_episode_starts = dones
        return True

    def _finish(self, model: Any, callback: BaseCallback, rollout_buffer: EpisodeBuffer, seen: dict[str, Any]) -> None:
        n_steps = rollout_buffer.size() * model.n_envs
        model.episodes = rollout_buffer.episodes(model._values if model.has_critic else None, model.bootstraps)
        model.logger.record("rollout/idle_fraction", 1 - len(model.episodes) / n_steps)
        callback.update_locals(seen | {"n_steps": rollout_buffer.size()})
        callback.on_rollout_end()
        rewards = th.as_tensor(rollout_buffer.rewards, device=model.device)  # on the CPU the same memory
        model.episodes = replace(model.episodes, rewards=rewards)

    def _finish_episodes(
        self, model: Any, rollout_buffer: EpisodeBuffer, ended: np.ndarray, cut: np.ndarray, new_obs: Any, infos: Any
    ) -> None:
        """Note the statistics of the batch's episodes that ended, and the last observation of those truncated."""
        # Episodes of idling sub-environments stay out of the statistics: the short ones among them finish more often.
        finished = np.flatnonzero(ended)
        of_finished = [infos[e] for e in finished]
        for k, e in enumerate(finished):
            if cut[e]:
                length = model.max_episode_steps
                episode_return = rollout_buffer.original_return(int(e), length)
                statistics = {"r": episode_return, "l": length, "t": (time.time_ns() - model.start_time) / 1e9}
                of_finished[k] = {**infos[e], "episode": statistics}  # of which a Monitor knows nothing
                final = each(lambda rows, e=e: rows[e], new_obs)
            elif infos[e].get("TimeLimit.truncated", False) and infos[e].get("terminal_observation") is not None:
                final = infos[e]["terminal_observation"]
            else:
                continue
            require_observation(model.observation_space, final, rollout_buffer.size(), int(e))
            rollout_buffer.add_final_observation(int(e), copied(model, final))
        model._update_info_buffer(of_finished, ended[finished])
