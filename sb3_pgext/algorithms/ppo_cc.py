"""PPO with a clipped critic: SB3's PPO, and the other surrogates of its paper."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.distributions import any_distribution, distribution_parameters, kl_divergence
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import moved_parameters
from sb3_pgext.arguments import (
    require,
    require_bool,
    require_count,
    require_number,
    require_one_of,
    require_positive,
    require_schedule,
)
from sb3_pgext.engine import foreign_part, minibatches, require_finite_losses, rows, whole_update
from sb3_pgext.estimators.statistics import standardize
from sb3_pgext.estimators.surrogates import (
    adapted_kl_coef,
    approximate_kl,
    clipped_ratios,
    clipped_surrogate,
    clipped_values,
    kl_penalized_surrogate,
    unclipped_surrogate,
    value_loss,
)
from sb3_pgext.rollouts import Rollout

__all__ = ["ClippedCriticPPO"]

LOSS, APPROX_KL = 0, 1
"""Their places in the vector of a minibatch's numbers for the log."""


class Steps(NamedTuple):
    """
    B steps of a rollout, as the loss takes them.

    :param observations: ``(B, *observation shape)``, or a dict of such tensors
    :param actions: ``(B, …)``
    :param old_values: V_old of the critic that was there while acting, ``(B,)``
    :param old_log_prob: of the policy that acted, ``(B,)``
    :param advantages: Ψ, ``(B,)``
    :param returns: the critic's target y, ``(B,)``
    :param old_distribution: parameters of π_old, ``(B, …)`` each; empty where the surrogate has no divergence
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    old_distribution: tuple[th.Tensor, ...]


class Coefficients(NamedTuple):
    """Numbers that schedules or adaptation change: ε, ε̂ (∞ without clipping) and β."""

    clip_range: float
    clip_range_vf: float
    kl_coef: float


class ClippedCriticPPO(FixedLengthAlgorithm, PPO):
    r"""
    Proximal policy optimisation (Schulman et al. 2017; lectures 002, 004): a drop-in replacement of SB3's PPO, which
    adds the clipped critic of the lecture and the original implementations, and the KL-penalised surrogates.

    With its defaults it is SB3's PPO, with ``value_clip="clip"`` SB3's PPO with that ``clip_range_vf``: same seed, same
    parameters, to the bit (with ``compile=True`` up to rounding).

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: can be a function of the remaining progress (from 1 to 0)
    :param n_steps: steps of each sub-environment per update
    :param batch_size: Minibatch size
    :param n_epochs: passes over the rollout per update
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: trade-off of bias against variance of the advantages, in [0, 1]
    :param clip_range: ε of ``surrogate="clip"``; can be a function of the remaining progress
    :param clip_range_vf: ε̂ of the clipped critic, in the units of the returns; can be a function as well, or None
    :param normalize_advantage: standardise advantages over each ``"minibatch"`` (or True), the ``"rollout"``, or not
    :param ent_coef: coefficient of the mean entropy in the objective
    :param vf_coef: coefficient of the critic's loss
    :param max_grad_norm: The maximum norm of the gradient of a step; None for no limit
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: with gSDE, sample new noise every n steps of a rollout (-1: only at its beginning)
    :param rollout_buffer_class: Rollout buffer class to use. If None, it will be automatically selected
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: end the update where the divergence from the policy that acted exceeds 1.5 times this; or None
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param value_clip: the critic's loss, with L1 = (y - V)² and L2 = (y - V_old - clip(V - V_old, -ε̂, ε̂))²:
        ``"max"`` (mean of the larger one) or ``"clip"`` (L2 alone, which is what SB3's ``clip_range_vf`` does); without
        ``clip_range_vf`` it is L1 alone
    :param surrogate: ``"clip"`` (min(ρΨ, clip(ρ, 1-ε, 1+ε)Ψ)), ``"kl"`` (ρΨ - β KL), ``"adaptive_kl"`` (the same, with
        β halved or doubled after each update) or ``"none"`` (ρΨ)
    :param kl_coef: β of ``"kl"``, the first one of ``"adaptive_kl"``
    :param desired_kl: the mean divergence per update that ``"adaptive_kl"`` aims at
    :param kl_direction: ``"old_new"``, KL(π_old ‖ π_θ), as in the paper; ``"new_old"``, KL(π_θ ‖ π_old), of lecture 004
    :param recompute_advantage: compute advantages and targets anew with the current critic before each epoch but the
        first (Andrychowicz et al. 2021); V_old stays, a callback's advantages do not
    :param learning_rate_kl_target: mean KL per update that the learning rate adapts to, by factors of 1.5; or None
    :param action_std: σ of the actions on a Box, instead of learning it; can be a function of the remaining progress
    :param compile: compile acting and updates (some seconds, once): the same results up to rounding, in less time
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    overridden_together: ClassVar[Mapping[str, str]] = {}
    passed_to_losses: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "action_std", "clip_range", "clip_range_vf", "kl_coef"),
    )

    clip_range: Any
    clip_range_vf: Any
    kl_coef: float
    normalize_advantage: bool | str  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | str = "minibatch",
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        value_clip: str = "max",
        surrogate: str = "clip",
        kl_coef: float = 1.0,
        desired_kl: float = 0.01,
        kl_direction: str = "old_new",
        recompute_advantage: bool = False,
        learning_rate_kl_target: float | None = None,
        action_std: float | Schedule | None = None,
        compile: bool = False,
    ):
        arguments = given(locals())
        require_count("batch_size", batch_size)  # SB3 divides by it
        # SB3 knows normalisation of minibatches, or none.
        of_minibatches = normalize_advantage is True or str(normalize_advantage) == "minibatch"
        of_sb3 = {"normalize_advantage": of_minibatches, "_init_setup_model": False}
        super().__init__(**arguments | of_sb3)
        self.normalize_advantage = normalize_advantage
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if isinstance(self.clip_range_vf, (float, int)):  # as SB3 says it, before our checks
            assert self.clip_range_vf > 0, "`clip_range_vf` must be positive, pass `None` to deactivate vf clipping"
        super()._setup_model()

    @property
    def penalizes_kl(self) -> bool:
        """True if the surrogate contains a divergence."""
        return self.surrogate in ("kl", "adaptive_kl")

    @whole_update
    def train(self) -> None:
        """Take epochs of minibatch steps along the surrogate of the rollout just collected, and the critic's loss."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        coefficients, rollout = self._coefficients(), self.rollout  # with Ψ_t, y_t, log π_old and V_old
        old_distribution = self._distribution_parameters(rollout) if self.penalizes_kl else ()
        steps = self._steps(rollout, old_distribution)

        parameters = self._moved_parameters(steps, coefficients)
        if not parameters:  # all frozen
            return
        log, near = [], True
        with self.engine.descending(
            self.policy.optimizer,
            parameters,
            self._loss,
            max_norm=math.inf if self.max_grad_norm is None else self.max_grad_norm,
            proceed=None if self.target_kl is None else self._within_target_kl,
        ) as descend:  # gradient of the loss, clipping, step
            for epoch in range(self.n_epochs):
                if self.recompute_advantage and epoch > 0:
                    steps = self._with_recomputed_advantages(steps)
                self._n_updates += 1
                order = np.random.permutation(len(rollout))  # noqa: NPY002  the generator that SB3 draws from
                of_epoch = []
                for minibatch in self._minibatches(rows(steps, th.as_tensor(order, device=self.device))):
                    terms, gradient_norm, near = descend(minibatch, coefficients)
                    of_epoch.append((terms, gradient_norm))
                    if not near:
                        break
                log.append(of_epoch)
                if not near:
                    break

        approx_kl = self._log(rollout, log, coefficients)
        kl = self._mean_kl(rollout, old_distribution) if self.penalizes_kl else approx_kl
        self.logger.record("train/kl", kl)
        if self.surrogate == "adaptive_kl":
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, self.desired_kl)
        self._adapt_learning_rate(kl)

    def _loss(self, minibatch: Steps, coefficients: Coefficients) -> tuple[th.Tensor, th.Tensor]:
        """The loss that a step descends, of these arguments and the parameters alone; and a vector for the log."""
        values, log_prob, entropy = self.policy.evaluate_actions(minibatch.observations, minibatch.actions)
        values = values.flatten()
        log_ratio = log_prob - minibatch.old_log_prob
        ratio = log_ratio.exp()
        normalizes = self.normalize_advantage in (True, "minibatch") and not self.ranks.several
        advantages = standardize(minibatch.advantages) if normalizes else minibatch.advantages

        policy_gradient_loss = -self._surrogate(ratio, advantages, minibatch.old_distribution, coefficients)
        clip = "none" if self.clip_range_vf is None else self.value_clip, coefficients.clip_range_vf
        critic_loss = value_loss(values, minibatch.returns, minibatch.old_values, *clip)
        entropy_loss = -(-log_prob if entropy is None else entropy).mean()
        loss = policy_gradient_loss
        if self.ent_coef:
            loss = loss + self.ent_coef * entropy_loss
        loss = loss + self.vf_coef * critic_loss

        with th.no_grad():
            terms = [loss, approximate_kl(log_ratio).mean(), policy_gradient_loss, critic_loss, entropy_loss]
            if self.surrogate == "clip":
                terms.append(clipped_ratios(ratio, coefficients.clip_range).float().mean())
            if self.clip_range_vf is not None:
                terms.append(clipped_values(values, minibatch.returns, minibatch.old_values, *clip).float().mean())
            return loss, th.stack(terms)

    @property
    def _logged(self) -> list[str]:
        """The names of the numbers of a minibatch for the log."""
        clipped = {"clip_fraction": self.surrogate == "clip", "value_clip_fraction": self.clip_range_vf is not None}
        always = "loss", "approx_kl", "policy_gradient_loss", "value_loss", "entropy_loss"
        return [*always, *(name for name, logged in clipped.items() if logged)]

    def _surrogate(
        self,
        ratio: th.Tensor,
        advantages: th.Tensor,
        old_distribution: tuple[th.Tensor, ...],
        coefficients: Coefficients,
    ) -> th.Tensor:
        """The surrogate of the policy that has just been evaluated, to be made larger."""
        if self.surrogate == "clip":
            return clipped_surrogate(ratio, advantages, coefficients.clip_range)
        if self.surrogate == "none":
            return unclipped_surrogate(ratio, advantages)
        new = self.policy.action_dist
        kl = kl_divergence(old_distribution, distribution_parameters(new), new, self.kl_direction)
        return kl_penalized_surrogate(ratio, advantages, kl, coefficients.kl_coef)

    def _within_target_kl(self, terms: th.Tensor) -> th.Tensor:
        """True if the estimated divergence from the policy that acted is within ``target_kl``."""
        assert self.target_kl is not None
        return ~(terms[APPROX_KL] > 1.5 * self.target_kl)  # SB3 goes on with a NaN

    def _moved_parameters(self, steps: Steps, coefficients: Coefficients) -> list[th.nn.Parameter]:
        """The parameters that the loss depends on; where a user has changed it, by a look at one minibatch."""
        changed = self._overridden() or foreign_part(self.policy)
        first = rows(steps, slice(self.batch_size))
        return moved_parameters(self.policy, (lambda: self._loss(first, coefficients)[0]) if changed else None)

    def _coefficients(self) -> Coefficients:
        progress = self._current_progress_remaining
        ranges = (math.inf if x is None else x for x in (self.clip_range, self.clip_range_vf))
        clip_range, clip_range_vf = (x(progress) if callable(x) else x for x in ranges)
        return Coefficients(clip_range, clip_range_vf, self.kl_coef)

    def _steps(self, rollout: Rollout, old_distribution: tuple[th.Tensor, ...]) -> Steps:
        """The rollout; Ψ standardised if that is done once."""
        acted = rollout.observations, rollout.actions, rollout.values, rollout.log_prob
        return Steps(*acted, self._normalized(rollout.advantages), rollout.returns, old_distribution)

    def _normalized(self, advantages: th.Tensor) -> th.Tensor:
        return self.ranks.standardized(advantages)[0] if self.normalize_advantage == "rollout" else advantages

    def _minibatches(self, steps: Steps) -> list[Steps]:
        """The minibatches of an epoch; with several ranks Ψ is standardised here, for all of them by two messages."""
        of_epoch = [*minibatches(steps, self.batch_size)]
        if self.normalize_advantage not in (True, "minibatch") or not self.ranks.several:
            return of_epoch
        standardized = self.ranks.standardized(*(minibatch.advantages for minibatch in of_epoch))
        return [minibatch._replace(advantages=x) for minibatch, x in zip(of_epoch, standardized, strict=True)]

    def _with_recomputed_advantages(self, steps: Steps) -> Steps:
        """The same steps with Ψ and y of the current critic."""
        values = self._values(steps.observations)
        advantages = self.collector.recomputed_advantages(self, self.rollout_buffer, values).to(self.device)
        return steps._replace(advantages=self._normalized(advantages), returns=advantages + values)

    def _distribution_parameters(self, rollout: Rollout) -> tuple[th.Tensor, ...]:
        """The parameters of π_θ on the rollout, constant."""

        def parameters(observations: PyTorchObs) -> tuple[th.Tensor, ...]:
            distribution = self.policy.get_distribution(observations)
            kept = distribution is self.policy.action_dist
            allowed = "'clip' or 'none' with a policy that does not keep its distribution in `action_dist`"
            require(kept, "surrogate", self.surrogate, allowed)
            return distribution_parameters(distribution)

        return self.engine.evaluate(parameters, (rollout.observations,), key="distribution")

    def _mean_kl(self, rollout: Rollout, old_distribution: tuple[th.Tensor, ...]) -> float:
        """The mean divergence on the rollout between the policy that acted and the current one."""
        like = any_distribution(self.policy, rollout.observations)
        new_distribution = self._distribution_parameters(rollout)
        kl = kl_divergence(old_distribution, new_distribution, like, self.kl_direction).mean()
        return self.ranks.mean(kl, len(rollout)).item()

    def _log(self, rollout: Rollout, log: list[list[tuple[Any, Any]]], coefficients: Coefficients) -> float:
        """Log SB3's keys and ours: means over the minibatches; return ``approx_kl``, that over the last epoch."""
        terms = th.stack([terms for of_epoch in log for terms, _ in of_epoch])
        require_finite_losses("loss", terms[:, LOSS], self._n_updates)
        norms = [norm for of_epoch in log for _, norm in of_epoch if norm is not None]
        means = dict(zip(self._logged, terms.mean(0), strict=True))
        means["approx_kl"] = terms[-len(log[-1]) :, APPROX_KL].mean()
        means["loss"] = terms[-1, LOSS]
        means["explained_variance"] = self._explained_variance(rollout.values, rollout.returns)
        means |= {"grad_norm": th.stack(norms).mean()} if norms else {}
        if hasattr(self.policy, "log_std"):
            means["std"] = self.policy.log_std.detach().exp().mean()
        logged = dict(zip(means, th.stack([x.float() for x in means.values()]).tolist(), strict=True))
        logged |= {"clip_range": coefficients.clip_range} if self.surrogate == "clip" else {}
        logged |= {"clip_range_vf": coefficients.clip_range_vf} if self.clip_range_vf is not None else {}
        logged |= {"kl_coef": coefficients.kl_coef} if self.penalizes_kl else {}
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        return logged["approx_kl"]

    def _check_arguments(self) -> None:
        for argument in ("batch_size", "n_epochs"):
            require_count(argument, getattr(self, argument))
        require_one_of("value_clip", self.value_clip, ("max", "clip"))
        require_one_of("surrogate", self.surrogate, ("clip", "kl", "adaptive_kl", "none"))
        require_one_of("kl_direction", self.kl_direction, ("old_new", "new_old"))
        require_one_of("normalize_advantage", self.normalize_advantage, ("minibatch", True, "rollout", False))
        require_number("vf_coef", self.vf_coef, "a finite number")
        require_bool("recompute_advantage", self.recompute_advantage)
        require_schedule("clip_range", self.clip_range, above_0=True)
        if self.clip_range_vf is not None:
            require_schedule("clip_range_vf", self.clip_range_vf, above_0=True)
        require_positive("kl_coef", self.kl_coef)
        require_positive("desired_kl", self.desired_kl)
        if self.target_kl is not None:
            require_positive("target_kl", self.target_kl)
        super()._check_arguments()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        of_surrogate = f"(the default) with surrogate={self.surrogate!r}"
        if self.surrogate != "clip":
            arguments["clip_range"] = (0.2, f"{of_surrogate}: only 'clip' uses it")
        if not self.penalizes_kl:
            arguments["kl_coef"] = (1.0, f"{of_surrogate}: only 'kl' and 'adaptive_kl' use it")
            arguments["kl_direction"] = ("old_new", f"{of_surrogate}: only 'kl' and 'adaptive_kl' use it")
        if self.surrogate != "adaptive_kl":
            arguments["desired_kl"] = (0.01, f"{of_surrogate}: only 'adaptive_kl' uses it")
        if self.clip_range_vf is None:
            arguments["value_clip"] = ("max", "(the default) with clip_range_vf=None, which clips no values")
        if self.n_epochs == 1:
            arguments["recompute_advantage"] = (False, "with n_epochs=1: there is no second epoch")
        return arguments
