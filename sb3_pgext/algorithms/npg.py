"""NPG: the natural policy gradient, and TRPO as its line search."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.distributions import (
    any_distribution,
    distribution_parameters,
    fisher_metric,
    kl_divergence,
    log_prob_and_entropy,
)
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.arguments import require, require_bool, require_count, require_number, require_one_of, require_positive
from sb3_pgext.engine import rows, whole_update
from sb3_pgext.estimators.natural import (
    Metric,
    Tangents,
    conjugate_gradients,
    euclidean_metric,
    trust_region_scale,
)
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.estimators.surrogates import unclipped_surrogate
from sb3_pgext.rollouts import Rollout

__all__ = ["NPG"]

TOLERATED_KL = 1.5
"""Without a line search, a step may lead to this multiple of ``target_kl``."""

MAX_TRIES = 10
"""Lengths that are tried for that, without a line search."""


class Steps(NamedTuple):
    """
    The M steps that the policy's step looks at.

    :param observations: ``(M, *observation shape)``, or a dict of such tensors
    :param actions: ``(M, …)``
    :param old_log_prob: of the policy that acted, ``(M,)``
    :param advantages: Ψ, ``(M,)``
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor


class Objective(NamedTuple):
    """
    :param total: what is to be made larger, scalar
    :param surrogate: the same without the entropy bonus, scalar
    :param entropy: mean entropy, scalar
    """

    total: th.Tensor
    surrogate: th.Tensor
    entropy: th.Tensor


class NPG(FixedLengthAlgorithm):
    r"""
    Natural policy gradient (Kakade 2001; lectures 002, 003, 004): one step per rollout along :math:`x = F^{-1} \hat g`,

    .. math:: \theta \leftarrow \theta + \eta x \quad \text{or} \quad
        \theta \leftarrow \theta + \sqrt{2\delta / x^\top F x} \; x,

    where F is the policy's Fisher matrix. ``line_search=True`` makes it TRPO (Schulman et al. 2015); the arguments have
    the names of sb3-contrib's.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_steps: steps of each sub-environment per update
    :param batch_size: Minibatch size when fitting the critic
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: trade-off of bias against variance of the advantages, in [0, 1]
    :param step_rule: how long the step is: ``"trust_region"`` (the quadratic model of the divergence is ``target_kl``)
        or ``"fixed"`` (``step_size`` times x)
    :param target_kl: δ, the divergence from the policy that acted, of a step: at most that with ``line_search``, at
        most 1.5 times that without (for ``step_rule="trust_region"``, or with ``line_search``)
    :param step_size: η of ``step_rule="fixed"``
    :param fisher: ``"exact"`` (expectation over actions in closed form) or ``"empirical"`` (the sampled actions)
    :param cg_max_steps: maximum number of steps of the conjugate gradients
    :param cg_damping: multiple of the identity that is added to F when solving for x
    :param cg_tolerance: the conjugate gradients stop when the squared norm of their residual is below this share of the
        gradient's (of 1 in sb3-contrib's TRPO, where the scale of the rewards matters)
    :param line_search: shorten the step until the surrogate improves and the divergence is at most ``target_kl``
    :param line_search_shrinking_factor: how much shorter it gets each time
    :param line_search_max_iter: how many lengths are tried; if none will do, the policy stays as it is
    :param n_critic_updates: passes over the rollout when fitting the critic
    :param critic_target: what the critic is fitted to: ``"mc"`` (G_t), ``"td"`` (r_t + γV(s_{t+1})) or ``"lambda"``
        (TD(λ))
    :param normalize_advantage: Whether to normalize the advantages over the steps that are looked at
    :param sub_sampling_factor: k: the policy's step, and its divergence, look at a random k-th of the rollout only
    :param ent_coef: coefficient of the mean entropy in the objective
    :param action_std: σ of the actions on a Box, instead of learning it; can be a function of the remaining progress
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If None, it will be automatically selected
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting, the products with F, what a step leads to, and the steps of the critic's fit: the
        same results up to rounding, in less time (a product in 0.6 of it)
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 1024,
        batch_size: int = 128,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        step_rule: str = "trust_region",
        target_kl: float = 0.01,
        step_size: float = 0.1,
        fisher: str = "exact",
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        cg_tolerance: float = 1e-10,
        line_search: bool = False,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        critic_target: str = "lambda",
        normalize_advantage: bool = True,
        sub_sampling_factor: int = 1,
        ent_coef: float = 0.0,
        action_std: float | Schedule | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        super().__init__(**given(locals()), vf_coef=0.0, max_grad_norm=None, supported_action_spaces=ACTION_SPACES)

    @whole_update
    def train(self) -> None:
        """Take one natural step with the policy, then fit the critic."""
        self._begin_update()
        rollout = self.rollout  # with Ψ_t and y_t of V as it acted

        parameters = list(policy_parameters(self.policy).values())
        if parameters:  # not all frozen
            self._natural_step(self._sampled_steps(rollout), parameters)

        self._fit_critic(rollout.observations, rollout.returns, rollout.values)

    def _natural_step(self, steps: Steps, parameters: list[th.nn.Parameter]) -> None:
        """θ ← θ + η x with x = (F + damping)⁻¹ ĝ, or a part of it, or nothing where that will not do."""
        objective, fisher = self._objective_and_fisher(steps, parameters)
        gradient = self.ranks.sum(flat_gradient(objective.total, parameters))
        norm = gradient.norm().item()
        require(math.isfinite(norm), "policy gradient norm", norm, f"a finite number (update {self._n_updates})")
        direction, residual, n_products = conjugate_gradients(
            lambda v: fisher(v) + self.cg_damping * v, gradient, self.cg_max_steps, self.cg_tolerance
        )
        curvature = direction @ fisher(direction)
        fixed = self.step_rule == "fixed"
        scale = self.step_size if fixed else trust_region_scale(curvature, self.target_kl)
        step = scale * direction

        fraction, kl, surrogate = 0.0, 0.0, objective.surrogate.item()
        if curvature > 0 and bool(step.isfinite().all()):
            fraction, kl, surrogate = self._move(step, steps, parameters)
        else:
            self._warn_of_refusal("the Fisher matrix shows no curvature along it")

        self.logger.record("train/entropy_loss", -objective.entropy.item())
        self.logger.record("train/policy_gradient_loss", -surrogate)
        self.logger.record("train/grad_norm", norm)
        self.logger.record("train/cg_iterations", n_products)
        self.logger.record("train/cg_residual", residual.item())
        self.logger.record("train/step_norm", fraction * step.norm().item() if fraction else 0.0)
        quadratic = float(0.5 * (fraction * scale) ** 2 * curvature) if fraction else 0.0
        self.logger.record("train/kl_quadratic", quadratic)
        self.logger.record("train/kl", kl)
        if self.line_search:
            self.logger.record("train/is_line_search_success", float(fraction > 0))
        self._log_std()

    def _sampled_steps(self, rollout: Rollout) -> Steps:
        """Every k-th step of the rollout, at random, with Ψ_t standardised or as it is."""
        steps = Steps(rollout.observations, rollout.actions, rollout.log_prob, rollout.advantages)
        if self.sub_sampling_factor > 1:
            steps = rows(steps, th.randperm(len(rollout), device=self.device)[:: self.sub_sampling_factor])
        if self.normalize_advantage:
            steps = steps._replace(advantages=self.ranks.standardized(steps.advantages)[0])
        return steps

    def _objective_and_fisher(
        self, steps: Steps, parameters: list[th.nn.Parameter]
    ) -> tuple[Objective, Callable[[th.Tensor], th.Tensor]]:
        """The objective, to be made larger, differentiable, and v → F v."""
        log_prob, entropy = self._evaluate(steps.observations, steps.actions, in_parts=False)
        fisher = self.engine.fisher(parameters, self._geometry, (steps.observations, steps.actions), self.fisher)
        objective = self._objective(log_prob, entropy, steps)  # mean ρ_t Ψ_t + c mean H
        return objective, lambda v: self.ranks.mean(fisher(v), len(steps.advantages))

    def _geometry(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[Tangents, Metric]:
        """The numbers z that the action probabilities depend on, and the metric, which make up F."""
        distribution = self.policy.get_distribution(observations)
        if self.fisher == "empirical":
            return (distribution.log_prob(actions),), euclidean_metric
        return distribution_parameters(distribution), fisher_metric(distribution)

    def _objective(self, log_prob: th.Tensor, entropy: th.Tensor, steps: Steps) -> Objective:
        surrogate = unclipped_surrogate((log_prob - steps.old_log_prob).exp(), steps.advantages)
        surrogate, entropy = self.ranks.mean(th.stack([surrogate, entropy]), len(steps.advantages))
        return Objective(surrogate + self.ent_coef * entropy, surrogate, entropy)

    def _move(self, step: th.Tensor, steps: Steps, parameters: list[th.nn.Parameter]) -> tuple[float, float, float]:
        """
        Take the step, or the first of its fractions that will do. Otherwise nothing moves.

        :param step: ``(P,)``
        :return: the fraction that was taken, from 0 to 1, the mean divergence that it led to, and the surrogate there
        """
        start = th.cat([p.detach().flatten() for p in parameters])
        old, old_objective, old_surrogate = self._measured(steps)
        like = any_distribution(self.policy, steps.observations)
        fraction, finite = 1.0, False
        for _ in range(self.line_search_max_iter if self.line_search else MAX_TRIES):
            _set(parameters, start + fraction * step)  # θ ← θ + Δ, on trial
            new, objective, surrogate = self._measured(steps)
            kl = self.ranks.mean(kl_divergence(old, new, like, "old_new").mean(), len(steps.advantages)).item()
            if self._acceptable(kl, objective, old_objective):
                return fraction, kl, surrogate
            finite = finite or (math.isfinite(kl) and math.isfinite(objective))
            fraction *= self._shortening(kl)
            if fraction == 0:
                break
        _set(parameters, start)
        if not finite:
            self._warn_of_refusal("it leads to a divergence or an objective that is not finite")
        elif not self.line_search:  # a line search that finds nothing is part of the method, and logged
            self._warn_of_refusal("its divergence is far above target_kl, however short it is made")
        return 0.0, 0.0, old_surrogate

    def _acceptable(self, kl: float, objective: float, old_objective: float) -> bool:
        if self.line_search:
            return kl <= self.target_kl and objective > old_objective
        near = self.step_rule == "fixed" or kl <= TOLERATED_KL * self.target_kl
        return near and math.isfinite(kl) and math.isfinite(objective)

    def _shortening(self, kl: float) -> float:
        """
        The factor by which a refused step is shortened. Where the policy is nearly deterministic, F is far below the
        damping, x is no longer F⁻¹g, and the quadratic model leads much too far; the divergence says how much.
        """
        if self.step_rule == "fixed" and not self.line_search:
            return 0.0
        to_target = math.sqrt(self.target_kl / kl) if math.isfinite(kl) and kl > self.target_kl else 1.0
        if self.line_search:
            return min(self.line_search_shrinking_factor, to_target)
        return to_target if to_target < 1.0 else 0.5  # 0.5: not finite

    def _measured(self, steps: Steps) -> tuple[tuple[th.Tensor, ...], float, float]:
        """The policy as it acts, without dropout: its distributions, its objective, and the surrogate in that."""

        def of_rows(observations: PyTorchObs, actions: th.Tensor) -> tuple[Any, ...]:
            distribution = self.policy.get_distribution(observations)
            return distribution_parameters(distribution), *log_prob_and_entropy(distribution, actions)

        batch = (steps.observations, steps.actions)
        parameters, log_prob, entropy = self.engine.evaluate(of_rows, batch, key="measured")
        objective = self._objective(log_prob, entropy.mean(), steps)
        return parameters, objective.total.item(), objective.surrogate.item()

    def _warn_of_refusal(self, cause: str) -> None:
        # The same words each time, so that Python shows them once.
        warnings.warn(f"NPG refuses a step and leaves the policy as it was: {cause}", stacklevel=2)

    def _check_arguments(self) -> None:
        require_one_of("step_rule", self.step_rule, ("trust_region", "fixed"))
        require_one_of("fisher", self.fisher, ("exact", "empirical"))
        for argument in ("target_kl", "step_size"):
            require_positive(argument, getattr(self, argument))
        for argument in (
            "batch_size",
            "n_critic_updates",
            "cg_max_steps",
            "line_search_max_iter",
            "sub_sampling_factor",
        ):
            require_count(argument, getattr(self, argument))
        for argument in ("cg_damping", "cg_tolerance"):
            require_number(argument, getattr(self, argument), "a number >= 0", at_least=0.0)
        factor = self.line_search_shrinking_factor
        require_number("line_search_shrinking_factor", factor, "a number in (0, 1)", math.ulp(0.0), 1 - 2**-53)
        for argument in ("line_search", "normalize_advantage"):
            require_bool(argument, getattr(self, argument))
        super()._check_arguments()
        if self.normalize_advantage:
            self._require_several_steps()
            enough = self.sub_sampling_factor < self.n_steps * self.n_envs
            allowed = "one that leaves at least 2 steps of a rollout"
            require(enough, "sub_sampling_factor", self.sub_sampling_factor, allowed)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.step_rule == "trust_region":
            arguments["step_size"] = (0.1, "(the default) with step_rule='trust_region': only 'fixed' uses it")
        elif not self.line_search:
            reason = "(the default) with step_rule='fixed' and line_search=False, which do not look at the divergence"
            arguments["target_kl"] = (0.01, reason)
        if not self.line_search:
            reason = "(the default) without line_search=True"
            arguments["line_search_shrinking_factor"] = (0.8, reason)
            arguments["line_search_max_iter"] = (10, reason)
        elif self.line_search_max_iter == 1:
            reason = "(the default) with line_search_max_iter=1: no second length is tried"
            arguments["line_search_shrinking_factor"] = (0.8, reason)
        return arguments


def _set(parameters: list[th.nn.Parameter], values: th.Tensor) -> None:
    """Give the parameters these values, ``(P,)``."""
    for p, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        p.data.copy_(part.view_as(p))
