"""Fixed-length collection: the rollouts of SB3's ``OnPolicyAlgorithm``, to the bit, with less work per step.

Actions, values and log-probabilities come from one pass of the policy, in SB3's order, so that a seed draws the same
actions. What SB3 does step by step but nobody needs before the rollout is complete is done once, at its end: copies
into storage and transfers.
"""

from typing import ClassVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
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
from sb3_pgext.rollouts.buffers import Rollout, StepBuffer

__all__ = ["FixedLengthAlgorithm"]


class FixedLengthAlgorithm(ActingAlgorithm):
    """
    An SB3 on-policy algorithm that learns from ``n_steps`` steps of each sub-environment.

    After the collection they lie in ``rollout``.
    """

    batch_argument: ClassVar[str] = "n_steps"
    """The argument that says how much is collected for an update."""

    rollout_buffer: StepBuffer  # type: ignore[assignment]
    rollout: Rollout

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = StepBuffer  # type: ignore[assignment]
        super()._setup_model()

    @afresh_after_failure
    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: StepBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Play ``n_rollout_steps`` steps of each sub-environment and store them in ``self.rollout``.

        The callbacks see what they see in SB3, with the same names in their ``locals``.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: number of vector steps
        :return: False if the callback ended the training; the steps so far are dropped
        :raises ValueError: an observation, action or reward is not finite; it names the sub-environment and the step
        """
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        rollout_buffer.single_precision = takes_single_precision(self.policy)
        self._require_finite_parameters()
        require_observations(env, self._last_obs, 0)
        # Before anything is drawn for this rollout: a checkpoint that is written here has all of it still to come.
        callback.on_rollout_start()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        policy = self._acting_policy()

        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)

            # The environment may write its next observation into the same memory, hence the copy.
            obs_tensor = obs_as_tensor(copy_of(self._last_obs), self.device)
            with drawing_actions(self.policy, obs_tensor, n_steps):
                action_tensor, values, log_probs = policy(obs_tensor)
            actions = action_tensor.cpu().numpy()
            require_finite("action", actions, n_steps)
            clipped_actions = environment_actions(self, actions)

            new_obs, rewards, dones, infos = step_of(env, clipped_actions, n_steps)

            self.num_timesteps += env.num_envs
            # Before the callbacks: who saves on a step must not save what a NaN has spoilt.
            require_step(env, new_obs, rewards, n_steps)
            callback.update_locals(locals())
            if not callback.on_step():
                self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
                return False

            self._update_info_buffer(infos, dones)
            rollout_buffer.add(obs_tensor, action_tensor, values, log_probs, rewards.copy(), dones.copy())
            # One at a time, and below all at once, as SB3 does: a matrix product rounds by the number of its rows.
            for e in np.flatnonzero(dones):
                if infos[e].get("TimeLimit.truncated", False) and infos[e].get("terminal_observation") is not None:
                    final_obs = infos[e]["terminal_observation"]
                    require_observation(self.observation_space, final_obs, n_steps + 1, int(e))
                    value = self._values(self.policy.obs_to_tensor(final_obs)[0])[0]
                    rollout_buffer.add_continuation(int(e), final_obs, value)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]

        last_obs = copy_of(new_obs)
        values = self._values(obs_as_tensor(last_obs, self.device))
        for e in np.flatnonzero(~dones):
            rollout_buffer.add_continuation(int(e), observation_of(last_obs, int(e)), values[e])
        self.rollout = rollout_buffer.rollout()
        n_steps = n_rollout_steps  # what callbacks find in SB3
        callback.update_locals(locals())
        callback.on_rollout_end()
        rollout_buffer.reset()
        return True

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rollout"]
