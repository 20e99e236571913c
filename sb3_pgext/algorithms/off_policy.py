"""The frame of off-policy methods: SB3's loop of collecting and training, with checked arguments and numbers."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.action_std import set_action_std
from sb3_pgext.algorithms.base import PolicyGradientAlgorithm
from sb3_pgext.algorithms.distributions import largest_entropy
from sb3_pgext.algorithms.q_policies import action_distribution
from sb3_pgext.arguments import require, require_bool, require_count, require_fraction
from sb3_pgext.engine import has_sb3s
from sb3_pgext.parallel.rollouts import of_all_ranks
from sb3_pgext.rollouts.acting import (
    copied,
    fresh_after_failure,
    require_finite_parameters,
    unvalidated_distributions,
)
from sb3_pgext.rollouts.checks import require_finite, require_observation
from sb3_pgext.rollouts.transitions import CheckedVecEnv, Transitions

__all__ = ["OffPolicyGradientAlgorithm"]

Self = TypeVar("Self", bound="OffPolicyGradientAlgorithm")


class OffPolicyGradientAlgorithm(PolicyGradientAlgorithm, OffPolicyAlgorithm):
    """
    An algorithm with a replay buffer, which SB3's own loop fills.

    A subclass says how an action is drawn (``_draw``) and trains.
    """

    batch_argument = "train_freq"

    def _setup_model(self) -> None:
        self._checked_env: CheckedVecEnv | None = None
        # SB3 would warn that n_steps is ignored, which it is not.
        require_count("n_steps", self.n_steps)
        buffer, n_steps = self.replay_buffer_class, self.n_steps
        if isinstance(buffer, type) and issubclass(buffer, NStepReplayBuffer) and n_steps > 1:
            self.replay_buffer_kwargs = {"n_steps": n_steps, "gamma": self.gamma} | self.replay_buffer_kwargs
            self.n_steps = 1
        super()._setup_model()
        self.n_steps = n_steps

    def _draw(self, observations: Any) -> tuple[th.Tensor, ...]:
        """
        Draw actions.

        :param observations: ``(E, *observation shape)``
        :return: the actions, and their log-probabilities, ``(E,)``, where these are kept
        """
        raise NotImplementedError

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """SB3's ``learn``: ``log_interval`` counts episodes."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_learn(self, *arguments: Any, **options: Any) -> tuple[int, BaseCallback]:
        """SB3's. Later on, actions and each update show whether the parameters are finite."""
        require_finite_parameters(self.policy)
        if hasattr(self.replay_buffer, "add_log_prob"):
            allowed = "SB3's `predict` where the replay keeps log-probabilities: another one's are not known"
            require(_predicts_as_sb3(self), "policy", type(self.policy).__name__, allowed)
        return super()._setup_learn(*arguments, **options)

    @of_all_ranks
    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        *arguments: Any,
        **options: Any,
    ) -> RolloutReturn:
        """SB3's, over an environment whose answers are checked before callbacks and the replay see them."""
        if self._checked_env is None or self._checked_env.venv is not env:
            self._checked_env = CheckedVecEnv(env)
        self._checked_env.n_steps = 0
        with fresh_after_failure(self):
            set_action_std(self)
            self._act = self.engine.acting(draw=self._draw)
            self.policy.set_training_mode(False)
            callback.on_rollout_start()  # here, before SB3 draws gSDE's noise: a resumed training draws it again
            vars(callback)["on_rollout_start"] = lambda: None
            try:
                return super().collect_rollouts(
                    self._checked_env, callback, train_freq, replay_buffer, *arguments, **options
                )
            finally:
                del vars(callback)["on_rollout_start"]

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """SB3's: uniform at first, then the policy's, with noise; also notes the log-probabilities."""
        explores = self.num_timesteps < learning_starts and not (self.use_sde and self.use_sde_at_warmup)
        self._log_prob_of_actions = np.full(n_envs, -largest_entropy(self.action_space), np.float32)
        if explores or not _predicts_as_sb3(self):
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._checked_env is not None
        observations = obs_as_tensor(copied(self, self._last_obs), self.device)
        try:
            drawn, *log_prob = self._act(observations)
        except RuntimeError:  # from probabilities that are NaN torch draws nothing, and does not say whose they are
            with th.no_grad(), unvalidated_distributions():
                distribution = action_distribution(self.actor, observations)
                of_mode = distribution.log_prob(distribution.mode())
            require_finite("log-probability", of_mode.cpu().numpy(), self._checked_env.n_steps)
            raise
        shape: Any = self.action_space.shape
        actions = drawn.cpu().numpy().reshape(-1, *shape)
        require_finite("action", actions, self._checked_env.n_steps)
        if log_prob:
            self._log_prob_of_actions = log_prob[0].cpu().numpy()
        if not isinstance(self.action_space, spaces.Box):
            return actions, actions
        scaled = self.policy.scale_action(self.policy.unscale_action(actions))  # rounded as SB3's are
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1, 1)
        return self.policy.unscale_action(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        n_steps = 0 if self._checked_env is None else self._checked_env.n_steps
        for e in np.flatnonzero(dones):
            final_obs = infos[e].get("terminal_observation")
            if final_obs is not None:
                require_observation(self.observation_space, final_obs, n_steps, int(e))
        if hasattr(replay_buffer, "add_log_prob"):
            replay_buffer.add_log_prob(self._log_prob_of_actions)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def save_replay_buffer(self, path: Any) -> None:
        """SB3's, where the other ranks have files of their own beside that of rank 0."""
        super().save_replay_buffer(self.ranks.own_file(path))

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """SB3's, of this rank's own file."""
        super().load_replay_buffer(self.ranks.own_file(path), truncate_last_traj)

    def _sample(self, batch_size: int) -> Transitions:
        """A minibatch of the replay; also rewards of several steps are discounted with γ as it is now."""
        buffer = self.replay_buffer
        assert buffer is not None
        if isinstance(buffer, NStepReplayBuffer):
            buffer.gamma = self.gamma
        samples = buffer.sample(batch_size, env=self._vec_normalize_env)
        return Transitions.of(samples, self.gamma, self.action_space)

    def _check_arguments(self) -> None:
        for argument in ("buffer_size", "batch_size"):
            require_count(argument, getattr(self, argument))
        starts_at_0 = not np.any(getattr(self.action_space, "start", 0))
        require(starts_at_0, "action_space", self.action_space, "one whose actions start at 0, as a policy draws them")
        require_count("learning_starts", self.learning_starts, at_least=0)
        allowed = f"less than the buffer's size, buffer_size={self.buffer_size}"
        require(self.learning_starts < self.buffer_size, "learning_starts", self.learning_starts, allowed)
        require_count("gradient_steps", self.gradient_steps, at_least=-1)
        require_fraction("tau", self.tau)
        require_fraction("gamma", self.gamma)
        require_count("n_steps", self.n_steps)
        require_bool("optimize_memory_usage", self.optimize_memory_usage)
        given: Any = self.train_freq
        train_freq = given if isinstance(given, tuple) and len(given) == 2 else (given, "step")
        require_count("train_freq", train_freq[0])
        named = [getattr(unit, "value", unit) for unit in train_freq[1:]] in (["step"], ["episode"])
        require(named, "train_freq", self.train_freq, "a number of steps, or (number, 'step' or 'episode')")
        buffer = self.replay_buffer_class
        suitable = buffer is None or (isinstance(buffer, type) and issubclass(buffer, ReplayBuffer))
        require(suitable, "replay_buffer_class", buffer, "None or a subclass of SB3's ReplayBuffer")
        if self.n_steps > 1:
            has_parts = isinstance(self.observation_space, spaces.Dict)
            require(not has_parts, "n_steps", self.n_steps, "1 with Dict observations")
            adds_up = buffer is None or issubclass(buffer, NStepReplayBuffer)
            require(adds_up, "n_steps", self.n_steps, f"1 with {buffer}: only SB3's NStepReplayBuffer adds rewards up")
            allowed = f"False with n_steps={self.n_steps}"
            require(not self.optimize_memory_usage, "optimize_memory_usage", self.optimize_memory_usage, allowed)
        noise = self.action_noise
        require(noise is None or isinstance(noise, ActionNoise), "action_noise", noise, "None or SB3's ActionNoise")
        if not (isinstance(self.sde_sample_freq, int) and self.sde_sample_freq == -1):
            require_count("sde_sample_freq", self.sde_sample_freq)
            require(self.use_sde, "sde_sample_freq", self.sde_sample_freq, "-1 without use_sde=True")
        require_bool("use_sde_at_warmup", self.use_sde_at_warmup)
        super()._check_arguments()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if not self.use_sde:
            arguments["use_sde_at_warmup"] = (False, "without use_sde=True")
        return arguments

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_checked_env", "_act", "_log_prob_of_actions"]


def _predicts_as_sb3(model: Any) -> bool:
    """True if neither a model nor its policy has a ``predict`` of a user's own, which SB3 acts by."""
    return has_sb3s(model, BaseAlgorithm, "predict") and has_sb3s(model.policy, BasePolicy, "predict")
