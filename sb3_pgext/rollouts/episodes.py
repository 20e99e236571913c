"""Whole-episode collection: exactly N episodes are started and every one of them is finished.

Taking the first N episodes that happen to *finish* would favour short ones. Here each sub-environment has a fixed
share of the N episodes, settled before the first step, so that nothing depends on which episode ends first.
A sub-environment that is done with its share idles until the others are done: the VecEnv goes on stepping it, these
steps count in ``num_timesteps``, but nothing is learnt from them.
"""

import math
import time
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.rollouts.acting import (
    ActingAlgorithm,
    afresh_after_failure,
    copy_of,
    drawing_actions,
    environment_actions,
    observation_of,
    require_finite,
    require_observation,
    require_observations,
    require_step,
    step_of,
    takes_single_precision,
)
from sb3_pgext.rollouts.buffers import EpisodeBatch, EpisodeBuffer

__all__ = ["EpisodeSchedule", "EpisodicAlgorithm"]

MAX_STEPS_WITHOUT_END = 1_000_000
"""An episode longer than this, where the user gave no limit, is taken to have no end."""

_NEVER_LOOK = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "sb3_pgext")
"""Packages whose callbacks do not read values or log-probabilities."""


class EpisodeSchedule:
    """
    Which sub-environments are playing an episode of the batch, and when the batch is complete.

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
        """Whether every episode of the batch is finished."""
        return not self._remaining.any()

    @property
    def stalled(self) -> bool:
        """Whether episodes are left, but nobody plays one: all wait in an episode that was cut."""
        return not self.recording.any() and not self.complete

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


class EpisodicAlgorithm(ActingAlgorithm):
    """
    An SB3 on-policy algorithm that learns from batches of whole episodes.

    A subclass sets ``n_episodes`` and ``max_episode_steps`` before :meth:`_setup_model` and says whether it
    :attr:`has_critic` and :attr:`bootstraps`. After a rollout the batch lies in ``episodes``.
    """

    batch_argument: ClassVar[str] = "n_episodes"
    """The argument that says how much is collected for an update."""

    n_episodes: int
    max_episode_steps: int | None
    rollout_buffer: EpisodeBuffer  # type: ignore[assignment]
    episodes: EpisodeBatch

    @property
    def has_critic(self) -> bool:
        """Whether V is learnt and used."""
        raise NotImplementedError

    @property
    def bootstraps(self) -> bool:
        """Whether an episode cut by a time limit is continued by V(s_T)."""
        raise NotImplementedError

    @property
    def n_steps(self) -> int:
        """SB3's name for what a rollout collects: here episodes."""
        return self.n_episodes

    @n_steps.setter
    def n_steps(self, n_episodes: int) -> None:
        self.n_episodes = n_episodes

    def _setup_model(self) -> None:
        self.rollout_buffer_class = EpisodeBuffer  # type: ignore[assignment]
        super()._setup_model()

    @afresh_after_failure
    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: EpisodeBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Play ``n_rollout_steps`` whole episodes with the current policy and store them in ``self.episodes``.

        The callbacks see what they see in SB3, with the same names in their ``locals``.

        :param env: the training environment
        :param callback: called at each vector step, and at the beginning and end of the rollout
        :param rollout_buffer: where steps are recorded
        :param n_rollout_steps: number of *episodes*; named as in SB3
        :return: False if the callback ended the training early, else True
        :raises ValueError: an observation, an action, a reward or a parameter of the policy is NaN or infinite
        :raises RuntimeError: an episode has neither an end nor a limit
        """
        assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation"
        self.policy.set_training_mode(False)
        self._require_finite_parameters()
        rollout_buffer.reset()
        rollout_buffer.single_precision = takes_single_precision(self.policy)
        # Before anything is drawn for this rollout: a checkpoint that is written here has all of it still to come.
        callback.on_rollout_start()
        if not np.all(self._last_episode_starts):
            self._last_obs = env.reset()  # type: ignore[assignment]
        # Whatever ends this rollout early, what follows must not take the middle of an episode for its start.
        self._last_episode_starts = np.zeros(env.num_envs, dtype=bool)
        require_observations(env, self._last_obs, 0)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)

        n_steps = 0
        policy = self._acting_policy()
        values_while_acting = self._values_while_acting
        values_in_locals = policy is not self.policy or values_while_acting or _may_look_at_values(callback)
        schedule = EpisodeSchedule(n_rollout_steps, env.num_envs, self.max_episode_steps)
        while not schedule.complete:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)

            # The environment may write its next observation into the same memory, hence the copy.
            obs_tensor = obs_as_tensor(copy_of(self._last_obs), self.device)
            with drawing_actions(self.policy, obs_tensor, n_steps):
                if values_in_locals:
                    action_tensor, values, log_probs = policy(obs_tensor)
                else:
                    action_tensor = self.policy.get_distribution(obs_tensor).get_actions()
            action_tensor = action_tensor.reshape(-1, *self.action_space.shape)  # type: ignore[misc]
            actions = action_tensor.cpu().numpy()
            require_finite("action", actions, n_steps)
            clipped_actions = environment_actions(self, actions)

            new_obs, rewards, dones, infos = step_of(env, clipped_actions, n_steps)

            self.num_timesteps += env.num_envs
            require_step(env, new_obs, rewards, n_steps)
            callback.update_locals(locals())
            if not callback.on_step():
                return False

            recording = schedule.recording
            ended, cut = schedule.step(dones)
            rewards = rewards.copy()
            normalizer = self._vec_normalize_env
            original_rewards = rewards if normalizer is None else normalizer.get_original_reward()
            rollout_buffer.add(obs_tensor, action_tensor, rewards, original_rewards, recording, ended)
            if values_while_acting:
                rollout_buffer.add_values(values)
            if ended.any():
                self._finish_episodes(ended, cut, new_obs, infos)
            n_steps += 1
            self._last_obs = new_obs  # type: ignore[assignment]
            if schedule.stalled:
                self._last_obs = env.reset()  # type: ignore[assignment]
                schedule.restart()

        self._last_episode_starts = dones
        self.episodes = rollout_buffer.episodes(self._values if self.has_critic else None, self.bootstraps)
        self.logger.record("rollout/idle_fraction", 1 - len(self.episodes) / (n_steps * env.num_envs))
        callback.update_locals(locals())
        callback.on_rollout_end()
        rollout_buffer.reset()
        return True

    @property
    def _values_while_acting(self) -> bool:
        """
        Whether V is computed with the actions, not for the whole batch at once.

        At once saves a third of the time of acting, unless policy and critic share features that cost to compute.
        """
        learnable = len(list(self.policy.features_extractor.parameters())) > 0
        return self.has_critic and self.policy.share_features_extractor and learnable

    def _finish_episodes(self, ended: np.ndarray, cut: np.ndarray, new_obs: Any, infos: list[dict[str, Any]]) -> None:
        """Note the statistics of the batch's episodes that ended, and the last observation of those truncated."""
        # Episodes of idling sub-environments stay out of the statistics: the short ones among them finish more often.
        finished = np.flatnonzero(ended)
        of_finished = [infos[e] for e in finished]
        for k, e in enumerate(finished):
            if cut[e]:
                of_finished[k] = {**infos[e], "episode": self._cut_episode_info(int(e))}
                final = observation_of(new_obs, int(e))
            elif infos[e].get("TimeLimit.truncated", False) and infos[e].get("terminal_observation") is not None:
                final = infos[e]["terminal_observation"]
            else:
                continue
            require_observation(self.observation_space, final, self.rollout_buffer.size(), int(e))
            self.rollout_buffer.add_final_observation(int(e), copy_of(final))
        self._update_info_buffer(of_finished, ended[finished])

    def _cut_episode_info(self, env_index: int) -> dict[str, float]:
        """What a Monitor would have said of an episode that was cut here, of which it knows nothing."""
        assert self.max_episode_steps is not None
        episode_return = self.rollout_buffer.original_return(env_index, self.max_episode_steps)
        return {"r": episode_return, "l": self.max_episode_steps, "t": (time.time_ns() - self.start_time) / 1e9}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "episodes"]


def _may_look_at_values(callback: BaseCallback | None) -> bool:
    """Whether a callback may read ``values`` or ``log_probs`` in its locals; those of SB3 do not."""
    if isinstance(callback, CallbackList):
        return any(map(_may_look_at_values, callback.callbacks))
    if isinstance(callback, ConvertCallback):
        return callback.callback is not None
    if callback is None or type(callback).__module__.split(".")[0] in _NEVER_LOOK:
        children = (getattr(callback, name, None) for name in ("callback", "callback_on_new_best"))
        return any(_may_look_at_values(child) for child in children if child is not None)
    return True
