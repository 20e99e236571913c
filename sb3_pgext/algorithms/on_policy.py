"""The two gradient steps of on-policy methods: along the policy gradient, and by regression with the critic."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.action_std import set_action_std
from sb3_pgext.algorithms.base import PolicyGradientAlgorithm
from sb3_pgext.algorithms.distributions import log_prob_and_entropy
from sb3_pgext.algorithms.parameters import critic_parameters, forget_dependencies
from sb3_pgext.algorithms.policies import QCriticPolicy
from sb3_pgext.arguments import require, require_count, require_fraction, require_number, require_positive
from sb3_pgext.engine import Engine, regress, require_finite_losses
from sb3_pgext.estimators.statistics import explained_variance
from sb3_pgext.estimators.surrogates import adapted_factor, approximate_kl
from sb3_pgext.parallel.rollouts import of_all_ranks
from sb3_pgext.rollouts.acting import unvalidated_distributions
from sb3_pgext.rollouts.collector import Collector

__all__ = ["OnPolicyGradientAlgorithm"]


class OnPolicyGradientAlgorithm(PolicyGradientAlgorithm, OnPolicyAlgorithm):
    """
    An algorithm with one optimizer for the policy's and the critic's steps, each of which moves its own parameters.

    (An optimizer leaves parameters without a gradient alone.)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    overridden_together: ClassVar[Mapping[str, str]] = {
        "evaluate_actions": "get_distribution",
        "get_distribution": "forward",
    }
    """Methods of the policy → the one that acts or learns in its place."""

    collector: Collector
    max_grad_norm: float | None  # type: ignore[assignment]
    n_critic_updates: int
    batch_size: int
    learning_rate_kl_target: float | None = None
    learning_rate_factor: float = 1.0
    """What ``learning_rate_kl_target`` has made of the learning rate: a factor of what the schedule says."""

    def __init__(self, policy: Any, env: Any, **arguments: Any):
        require_count(self.batch_argument, arguments["n_steps"])
        super().__init__(policy, env, **arguments)

    def _check_arguments(self) -> None:
        policy = self.policy_class
        suitable = isinstance(policy, type) and issubclass(policy, ActorCriticPolicy)
        suitable = suitable and not issubclass(policy, RecurrentActorCriticPolicy)
        name = getattr(policy, "__name__", policy)
        require(suitable, "policy", name, "an ActorCriticPolicy class that is not recurrent")
        for method, other in self.overridden_together.items():
            alone = _overrides(policy, method) and not _overrides(policy, other)
            require(not alone, "policy", name, f"one that overrides {other} beside {method}: both are called")
        require_count(self.batch_argument, getattr(self, self.batch_argument))
        require_fraction("gamma", self.gamma)
        require_fraction("gae_lambda", self.gae_lambda)
        require_number("ent_coef", self.ent_coef, "a finite number")
        if self.learning_rate_kl_target is not None:
            require_positive("learning_rate_kl_target", self.learning_rate_kl_target)
        if self.max_grad_norm is not None:
            require_number("max_grad_norm", self.max_grad_norm, "None or a number > 0", at_least=math.ulp(0.0))
        if not (isinstance(self.sde_sample_freq, int) and self.sde_sample_freq == -1):
            require_count("sde_sample_freq", self.sde_sample_freq)
            require(self.use_sde, "sde_sample_freq", self.sde_sample_freq, "-1 without use_sde=True")
        super()._check_arguments()

    @of_all_ranks
    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """See :meth:`Collector.collect <sb3_pgext.rollouts.collector.Collector.collect>`."""
        set_action_std(self)
        return self.collector.collect(self, env, callback, rollout_buffer, n_rollout_steps)

    def _values(self, observations: PyTorchObs) -> th.Tensor:
        """V of the current critic, ``(K,)``, in single precision as SB3's buffers keep it, constant."""
        return Engine(self.policy).evaluate(self.policy.predict_values, (observations,)).flatten().float()

    def _begin_update(self) -> None:
        """Training mode and learning rate, as SB3's algorithms do first of all."""
        forget_dependencies(self.policy)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _evaluate(self, observations: PyTorchObs, actions: th.Tensor, in_parts: bool = True) -> tuple[th.Tensor, ...]:
        """
        Log-probabilities and entropy of the current policy on the steps of a batch.

        :param observations: ``(M, *observation shape)``
        :param actions: ``(M, …)``
        :param in_parts: whether a large batch may go through the networks in parts; for one gradient only
        :return: log π(a_t|s_t), ``(M,)``, and the mean entropy, a scalar, both differentiable
        """

        def of_rows(observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            return log_prob_and_entropy(self.policy.get_distribution(observations), actions)

        batch = (observations, actions)
        log_prob, entropy = self.engine.differentiable(of_rows, batch) if in_parts else of_rows(*batch)
        return log_prob, entropy.mean()

    def _log_prob(self, batch: Any) -> th.Tensor:
        """log π(a_t|s_t) of the policy as it acts, without dropout, on a rollout or episodes, ``(M,)``, constant."""

        def log_prob(observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
            return self.policy.get_distribution(observations).log_prob(actions)

        with unvalidated_distributions():
            return self.engine.evaluate(log_prob, (batch.observations, batch.actions))

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.learning_rate_kl_target is not None:
            learning_rate = self.learning_rate_factor * self.lr_schedule(self._current_progress_remaining)
            self.logger.record("train/learning_rate", learning_rate)
            update_learning_rate(self.policy.optimizer, learning_rate)

    @contextmanager
    def _adapting_learning_rate(self, batch: Any) -> Iterator[None]:
        """Around the policy's steps: how far they move it on a rollout or episodes sets the next learning rate."""
        if self.learning_rate_kl_target is None:
            yield
            return
        log_prob = self._log_prob(batch)
        yield
        kl = approximate_kl(self._log_prob(batch) - log_prob).mean()
        mean_kl = self.ranks.mean(kl, len(log_prob)).item()
        self.logger.record("train/kl", mean_kl)
        self._adapt_learning_rate(mean_kl)

    def _adapt_learning_rate(self, kl: float) -> None:
        """Adapt the next update's learning rate to the mean divergence that this one has led to."""
        if self.learning_rate_kl_target is not None:
            self.learning_rate_factor = adapted_factor(self.learning_rate_factor, kl, self.learning_rate_kl_target)

    def _ascend(self, gradient: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        super()._ascend(gradient, parameters)
        self._log_std()

    def _log_std(self) -> None:
        """Log SB3's ``train/std``, of policies that have one."""
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())

    def _fit_critic(
        self, observations: PyTorchObs, targets: th.Tensor, values: th.Tensor, actions: th.Tensor | None = None
    ) -> None:
        """
        Fit the critic to its targets: ``n_critic_updates`` passes over the batch in minibatches of ``batch_size``.

        :param observations: ``(M, *observation shape)``
        :param targets: y_t, ``(M,)``
        :param values: V(s_t), or Q(s_t, a_t), before the fit, ``(M,)``, for the log
        :param actions: ``(M, …)``, of a critic of Q; None of one of V
        :raises ValueError: the loss is not finite
        """
        parameters = list(critic_parameters(self.policy).values())
        if not parameters:  # all frozen
            return
        passes = (self.n_critic_updates, self.batch_size, self.max_grad_norm)
        n_minibatches = self.ranks.largest(-(-len(targets) // self.batch_size))
        losses = regress(self.engine, parameters, observations, targets, *passes, actions, n_minibatches)
        require_finite_losses("value loss", losses, self._n_updates)
        self.logger.record("train/value_loss", losses.mean().item())
        self.logger.record("train/explained_variance", self._explained_variance(values, targets).item())

    def _explained_variance(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """The share of the targets' variance, over all ranks, that values explain."""
        return explained_variance(*self.ranks.gathered(th.stack([values, targets], dim=1)).unbind(1))


def _overrides(policy: type, method: str) -> bool:
    base = QCriticPolicy if issubclass(policy, QCriticPolicy) else ActorCriticPolicy
    return getattr(policy, method) is not getattr(base, method)
