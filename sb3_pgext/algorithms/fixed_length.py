"""Algorithms that learn from a fixed number of steps: SB3's rollout buffer, advantages and targets."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.distributions import JointActions
from sb3_pgext.algorithms.on_policy import OnPolicyGradientAlgorithm
from sb3_pgext.algorithms.policies import QCriticPolicy, with_critic
from sb3_pgext.arguments import require, require_count, require_one_of
from sb3_pgext.estimators.returns import critic_advantages, critic_targets
from sb3_pgext.rollouts import DictStepBuffer, Rollout, Segments, StepBuffer, StepCollector
from sb3_pgext.rollouts.tensors import TensorCollector, speaks_tensors

__all__ = ["FixedLengthAlgorithm", "by_step"]


class FixedLengthAlgorithm(OnPolicyGradientAlgorithm):
    """An algorithm that learns from ``n_steps`` steps of each sub-environment, in a kind of SB3's ``RolloutBuffer``."""

    critic: str = "v"
    n_action_samples: int | None = None
    advantage: str = "gae"
    lookahead: int = 5
    critic_target: str = "lambda"
    collector: StepCollector

    critic_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {"v": ("mc", "td", "lambda")}
    """The critics that there are, and what each may be fitted to."""

    def _setup_model(self) -> None:
        require_one_of("critic", self.critic, tuple(self.critic_targets))
        self.policy_class = with_critic(self.policy_class, self.critic)
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = DictStepBuffer if self._has_dict_observations else StepBuffer
        self.collector = StepCollector()
        super()._setup_model()

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """See :meth:`Collector.collect <sb3_pgext.rollouts.collector.Collector.collect>`."""
        if not self.collector.until_done and isinstance(self.collector, TensorCollector) != speaks_tensors(env):
            self.collector = TensorCollector() if speaks_tensors(env) else StepCollector()
        if self.n_action_samples is not None:
            policy: Any = self.policy
            policy.n_action_samples = self.n_action_samples
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    @property
    def rollout(self) -> Rollout:
        """The full rollout buffer, flat; a ValueError if it is not full."""
        require(self.rollout_buffer.full, "rollout_buffer", "not full", "one that learn() has filled")
        return Rollout.of(self.rollout_buffer, self.device)

    def _q_values(self, rollout: Rollout) -> th.Tensor:
        """Q(s_t, a_t) of the current critic, ``(M,)``, constant."""
        policy: Any = self.policy
        return self.engine.evaluate(policy.q_values, (rollout.observations, rollout.actions), key="q_values").float()

    def _compute_returns_and_advantage(
        self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray
    ) -> None:
        """
        Fill the buffer's ``advantages`` with Ψ_t and its ``returns`` with the critic's targets y_t.

        SB3's buffer computes generalised advantages and TD(λ) returns; what else is asked for replaces them.

        :param rollout_buffer: full
        :param last_values: V of what follows the last step, ``(E,)``
        :param dones: whether an episode ended with the last step, ``(E,)``
        """
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        if (self.advantage, self.critic_target) == ("gae", "lambda"):
            return
        rewards, values, segment, following = Segments.of(rollout_buffer, last_values, dones)
        q = self._q_values(Rollout.of(rollout_buffer, self.device)).cpu() if self.critic == "q" else values
        if self.critic_target != "lambda":
            steps = rewards, values, segment, self.gamma, self.gae_lambda, following
            targets = critic_targets(self.critic_target, *steps, q, self.lookahead)
            rollout_buffer.returns[:] = by_step(targets, rollout_buffer)
        if self.advantage != "gae":
            steps_of_q = rewards, values, q, segment, self.gamma, self.lookahead, following
            advantages = critic_advantages(self.advantage, *steps_of_q)
            rollout_buffer.advantages[:] = by_step(advantages, rollout_buffer)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_one_of("critic", self.critic, tuple(self.critic_targets))
        require_one_of("critic_target", self.critic_target, self.critic_targets[self.critic])
        of_q = issubclass(with_critic(self.policy_class, self.critic), QCriticPolicy)
        allowed = "a QCriticPolicy class with critic='q'" if self.critic == "q" else "no QCriticPolicy with critic='v'"
        require(of_q == (self.critic == "q"), "policy", self.policy_class.__name__, allowed)
        if hasattr(self, "policy"):
            made = "q" if isinstance(self.policy, QCriticPolicy) else "v"
            require(self.critic == made, "critic", self.critic, f"{made!r}, as the policy was made")
        space = getattr(self, "action_space", None)  # nobody knows it where a configuration is checked
        draws = self.critic == "q" and space is not None and JointActions.of(space) is None
        needed = f"a whole number >= 2 with critic='q' over {space}"
        require(not draws or self.n_action_samples is not None, "n_action_samples", None, needed)
        if self.n_action_samples is not None:
            require_count("n_action_samples", self.n_action_samples, at_least=2)
        kind = DictRolloutBuffer if self._has_dict_observations else RolloutBuffer
        buffer = self.rollout_buffer_class
        suitable = buffer is None or (isinstance(buffer, type) and issubclass(buffer, kind))
        require(suitable, "rollout_buffer_class", buffer, f"None or a subclass of {kind.__name__}")
        own = [name for name in ("get", "_get_samples") if getattr(buffer or kind, name) is not getattr(kind, name)]
        allowed = f"one that leaves {' and '.join(own)} alone: the arrays are read"
        require(not own, "rollout_buffer_class", buffer, allowed)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        enumerated = JointActions.of(getattr(self, "action_space", None)) is not None
        if self.critic == "v" or enumerated:
            beside = f"with critic={self.critic!r}" + (", as all actions are enumerated" if enumerated else "")
            arguments["n_action_samples"] = (None, beside)
        return arguments

    @property
    def _has_dict_observations(self) -> bool:
        return isinstance(getattr(self, "observation_space", None), spaces.Dict)

    def _require_several_steps(self) -> None:
        """Advantages are standardised over a rollout."""
        several = self.n_steps * self.n_envs > 1
        require(several, "n_steps", self.n_steps, "at least 2 steps in a rollout with normalize_advantage=True")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "collector"]


def by_step(flat: th.Tensor, rollout_buffer: Any) -> th.Tensor:
    """Numbers of all steps, ``(M,)``, in the order of the buffer's columns, ``(T, E)``."""
    return flat.reshape(rollout_buffer.n_envs, rollout_buffer.buffer_size).T
