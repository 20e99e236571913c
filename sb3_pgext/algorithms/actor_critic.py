"""What the actor-critic algorithms share that take one policy step per rollout: VPG and NPG."""

import torch as th

from sb3_pgext.algorithms.base import PolicyGradientAlgorithm, check_step_buffer, standardize
from sb3_pgext.arguments import require, require_bool, require_count, require_one_of
from sb3_pgext.estimators.returns import critic_targets, generalized_advantages
from sb3_pgext.rollouts import FixedLengthAlgorithm

__all__ = ["ActorCriticAlgorithm"]


class ActorCriticAlgorithm(PolicyGradientAlgorithm, FixedLengthAlgorithm):
    """Fixed-length rollouts, advantages from the critic that acted, and the critic fitted after the policy's step."""

    batch_size: int
    n_critic_updates: int
    critic_target: str
    normalize_advantage: bool

    def _advantages(self) -> th.Tensor:
        """Ψ_t of the rollout, ``(M,)``, not normalised: generalised advantages unless a subclass has others."""
        rollout = self.rollout
        return generalized_advantages(
            rollout.rewards, rollout.values, rollout.segment, self.gamma, self.gae_lambda, rollout.bootstrap_values
        )

    def _normalized(self, advantages: th.Tensor) -> th.Tensor:
        return standardize(advantages) if self.normalize_advantage else advantages

    def _fit_critic_to_rollout(self) -> None:
        """V is fitted to ``critic_target``."""
        rollout = self.rollout
        targets = critic_targets(
            self.critic_target,
            rollout.rewards,
            rollout.values,
            rollout.segment,
            self.gamma,
            self.gae_lambda,
            rollout.bootstrap_values,
        )
        self._fit_critic(rollout.observations, targets, rollout.values, self.n_critic_updates, self.batch_size)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for argument in ("n_steps", "batch_size", "n_critic_updates"):
            require_count(argument, getattr(self, argument))
        require_one_of("critic_target", self.critic_target, ("mc", "td", "lambda"))
        require_bool("normalize_advantage", self.normalize_advantage)
        if self.normalize_advantage:
            enough = self.n_steps * self.n_envs > 1
            require(enough, "n_steps", self.n_steps, "at least 2 steps in a rollout with normalize_advantage=True")
        check_step_buffer(self)
