"""Algorithms that learn from a fixed number of steps: SB3's rollout buffer, advantages and targets."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_pgext.algorithms.on_policy import OnPolicyGradientAlgorithm
from sb3_pgext.arguments import require, require_one_of
from sb3_pgext.estimators.returns import critic_targets
from sb3_pgext.rollouts import DictStepBuffer, Rollout, Segments, StepBuffer, StepCollector

__all__ = ["FixedLengthAlgorithm", "by_step"]


class FixedLengthAlgorithm(OnPolicyGradientAlgorithm):
    """``n_steps`` steps of each sub-environment per update, stored in a subclass of SB3's ``RolloutBuffer``."""

    critic_target: str = "lambda"
    collector: StepCollector

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = DictStepBuffer if self._has_dict_observations else StepBuffer
        self.collector = StepCollector()
        super()._setup_model()

    @property
    def rollout(self) -> Rollout:
        """The full rollout buffer, flat; a ValueError if it is not full."""
        require(self.rollout_buffer.full, "rollout_buffer", "not full", "one that learn() has filled")
        return Rollout.of(self.rollout_buffer, self.device)

    def _compute_returns_and_advantage(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray
    ) -> None:
        """
        Fill the buffer's ``advantages`` with Ψ_t and its ``returns`` with the critic's targets y_t.

        SB3's buffer computes generalised advantages and TD(λ) returns; other targets replace the latter.

        :param rollout_buffer: full
        :param last_values: V of what follows the last step, ``(E,)``
        :param dones: whether an episode ended with the last step, ``(E,)``
        """
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        if self.critic_target != "lambda":
            rewards, values, segment, bootstrap_values = Segments.of(rollout_buffer, last_values, dones)
            targets = critic_targets(
                self.critic_target, rewards, values, segment, self.gamma, self.gae_lambda, bootstrap_values
            )
            rollout_buffer.returns[:] = by_step(targets, rollout_buffer)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_one_of("critic_target", self.critic_target, ("mc", "td", "lambda"))
        kind = DictRolloutBuffer if self._has_dict_observations else RolloutBuffer
        buffer = self.rollout_buffer_class
        suitable = buffer is None or (isinstance(buffer, type) and issubclass(buffer, kind))
        require(suitable, "rollout_buffer_class", buffer, f"None or a subclass of {kind.__name__}")
        own = [name for name in ("get", "_get_samples") if getattr(buffer or kind, name) is not getattr(kind, name)]
        allowed = f"one that leaves {' and '.join(own)} alone: the arrays are read"
        require(not own, "rollout_buffer_class", buffer, allowed)

    @property
    def _has_dict_observations(self) -> bool:
        return isinstance(getattr(self, "observation_space", None), spaces.Dict)

    def _require_several_steps(self) -> None:
        """Advantages are standardised over a rollout."""
        several = self.n_steps * self.n_envs > 1
        require(several, "n_steps", self.n_steps, "at least 2 steps in a rollout with normalize_advantage=True")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "collector"]


def by_step(flat: th.Tensor, rollout_buffer: Any) -> np.ndarray:
    """Numbers of all steps, ``(M,)``, in the order of the buffer's arrays, ``(T, E)``."""
    return flat.numpy().reshape(rollout_buffer.n_envs, rollout_buffer.buffer_size).T
