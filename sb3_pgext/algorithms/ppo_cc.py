"""PPO with a clipped critic: SB3's PPO, and the other surrogates of its paper."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule

from sb3_pgext.algorithms.base import (
    CompilingAlgorithm,
    check_step_buffer,
    critic_parameters,
    explained_variance,
    forget_dependencies,
    minibatch_means,
    policy_parameters,
    require_finite_losses,
    standardize,
)
from sb3_pgext.algorithms.distributions import distribution_parameters, kl_divergence
from sb3_pgext.arguments import (
    python_number,
    require,
    require_bool,
    require_count,
    require_effective,
    require_number,
    require_one_of,
    require_positive,
    require_schedule,
)
from sb3_pgext.engine.descent import Step, descending
from sb3_pgext.engine.evaluation import any_distribution, evaluated
from sb3_pgext.engine.nested import minibatches, rows
from sb3_pgext.engine.whole_updates import require_finite_state, whole_update
from sb3_pgext.estimators.returns import rollout_advantages
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
from sb3_pgext.rollouts import FixedLengthAlgorithm, StepBuffer

__all__ = ["ClippedCriticPPO"]

SelfClippedCriticPPO = TypeVar("SelfClippedCriticPPO", bound="ClippedCriticPPO")


class Steps(NamedTuple):
    """
    What an update needs to know of B steps, flat.

    :param observations: ``(B, *observation shape)``, or a dict of such tensors
    :param actions: ``(B, …)``
    :param old_values: V_old of the critic that was there while acting, ``(B,)``
    :param old_log_prob: of the policy that acted, ``(B,)``
    :param advantages: Ψ, ``(B,)``
    :param targets: y, ``(B,)``
    :param old_distribution: parameters of π_old, ``(B, …)`` each; empty where the surrogate has no divergence
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    targets: th.Tensor
    old_distribution: tuple[th.Tensor, ...]


class Coefficients(NamedTuple):
    """The numbers of an update that schedules or adaptation change: ε, ε̂ (∞ without clipping) and β."""

    clip_range: float
    clip_range_vf: float
    kl_coef: float


class Terms(NamedTuple):
    """What a minibatch leaves for the log, constant: the terms of its loss, scalars, and vectors of its B steps."""

    policy_gradient_loss: th.Tensor
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    loss: th.Tensor
    log_ratio: th.Tensor
    values: th.Tensor


class TermsOfEpoch:
    """
    The terms of an epoch's minibatches, copied to one place: as they come they lie scattered between what the steps
    have needed, and keep that from being used again.

    :param n_steps: of the epoch, M
    :param batch_size: of its minibatches, B
    :param device: of the terms
    """

    def __init__(self, n_steps: int, batch_size: int, device: th.device):
        scalars = (*Terms._fields[:4], "grad_norm")
        n_minibatches = math.ceil(n_steps / batch_size)
        self._scalars = dict(zip(scalars, th.empty(len(scalars), n_minibatches, device=device), strict=True))
        self._log_ratio, self._values = th.empty(2, n_steps, device=device)
        vectors = (self._log_ratio, self._values)
        places = [column.unbind() for column in self._scalars.values()] + [x.split(int(batch_size)) for x in vectors]
        self._places = zip(*places, strict=True)
        self.sizes: list[int] = []
        self._n_taken = 0

    def add(self, terms: Terms, gradient_norm: th.Tensor | None) -> None:
        """
        :param terms: of the next minibatch
        :param gradient_norm: of its step, or None if that was not taken
        """
        norm = terms.loss if gradient_norm is None else gradient_norm  # what stands for None is not looked at
        th._foreach_copy_(next(self._places), (*terms[:4], norm, *terms[4:]))
        self.sizes.append(len(terms.values))
        self._n_taken += gradient_norm is not None

    @property
    def scalars(self) -> dict[str, th.Tensor]:
        """By the names that they are logged by, ``(K,)`` each; a last step that was not taken has no norm."""
        scalars = {name: column[: len(self.sizes)] for name, column in self._scalars.items()}
        return scalars | {"grad_norm": self._scalars["grad_norm"][: self._n_taken]}

    @property
    def log_ratio(self) -> th.Tensor:
        """``(M,)``, or as many steps as there have been."""
        return self._log_ratio[: sum(self.sizes)]

    @property
    def values(self) -> th.Tensor:
        """``(M,)``, or as many steps as there have been."""
        return self._values[: sum(self.sizes)]


Measurements = dict[str, th.Tensor]
"""What is logged of the K minibatches of an epoch, ``(K,)`` each."""


class ClippedCriticPPO(CompilingAlgorithm, FixedLengthAlgorithm, PPO):
    r"""
    Proximal policy optimisation (Schulman et al. 2017; lectures 002, 004): a drop-in replacement of SB3's PPO, which
    adds the clipped critic of the lecture and the original implementations, and the KL-penalised surrogates.

    With ``value_clip="none"`` it is SB3's PPO with ``clip_range_vf=None``, with ``value_clip="clip"`` SB3's PPO with
    that ``clip_range_vf``: same seed, same parameters, to the bit (with ``compile=True`` up to rounding).

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: can be a function of the remaining progress (from 1 to 0)
    :param n_steps: steps of each sub-environment per update
    :param batch_size: Minibatch size
    :param n_epochs: passes over the rollout per update
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: trade-off of bias against variance of the advantages, in [0, 1]
    :param clip_range: ε of ``surrogate="clip"``; can be a function of the remaining progress
    :param clip_range_vf: ε̂ of the clipped critic, in the units of the returns; can be a function of the remaining
        progress. Not used by ``value_clip="none"``
    :param normalize_advantage: standardise the advantages over each ``"minibatch"`` (True means the same), over the
        whole ``"rollout"``, or not at all (False)
    :param ent_coef: coefficient of the mean entropy in the objective
    :param vf_coef: coefficient of the critic's loss
    :param max_grad_norm: The maximum norm of the gradient of a step; None for no limit
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param rollout_buffer_class: None, or a subclass of :class:`~sb3_pgext.rollouts.StepBuffer`
    :param rollout_buffer_kwargs: additional arguments of its constructor
    :param target_kl: end the update where the estimated divergence from the policy that acted exceeds 1.5 times this
        (one device synchronisation per minibatch); None for no limit
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param value_clip: the critic's loss, with L1 = (y - V)² and L2 = (y - V_old - clip(V - V_old, -ε̂, ε̂))²:
        ``"max"`` (mean of the larger one), ``"clip"`` (L2 alone, which is what SB3's ``clip_range_vf`` does) or
        ``"none"`` (L1 alone)
    :param surrogate: ``"clip"`` (min(ρΨ, clip(ρ, 1-ε, 1+ε)Ψ)), ``"kl"`` (ρΨ - β KL), ``"adaptive_kl"`` (the same, with
        β halved or doubled after each update) or ``"none"`` (ρΨ)
    :param kl_coef: β of ``"kl"``, the first one of ``"adaptive_kl"``
    :param kl_target: the mean divergence per update that ``"adaptive_kl"`` aims at
    :param kl_direction: ``"old_new"`` for KL(π_old ‖ π_θ), as in the paper, or ``"new_old"`` for KL(π_θ ‖ π_old), as in
        lecture 004 (for ``"kl"`` and ``"adaptive_kl"``)
    :param recompute_advantage: compute advantages and targets anew with the current critic before each epoch but the
        first (Andrychowicz et al. 2021); V_old stays
    :param compile: compile acting, the update of a minibatch of ``batch_size`` steps, and what the divergence is
        measured by (some seconds, once): the same results up to rounding, in less time. Where that is not possible, a
        warning says why, and it runs as it is
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    clip_range: Any
    clip_range_vf: Any
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
        clip_range_vf: float | Schedule | None = 0.2,
        normalize_advantage: bool | str = "minibatch",
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[StepBuffer] | None = None,
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
        kl_target: float = 0.01,
        kl_direction: str = "old_new",
        recompute_advantage: bool = False,
        compile: bool = False,
    ):
        require_count("batch_size", batch_size)  # SB3 divides by it
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=python_number(clip_range),
            clip_range_vf=python_number(clip_range_vf),
            normalize_advantage=False,  # Ours is set, and checked, below.
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.normalize_advantage = normalize_advantage
        self.value_clip = value_clip
        self.surrogate = surrogate
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        self.kl_direction = kl_direction
        self.recompute_advantage = recompute_advantage
        self.compile = compile

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.value_clip == "none":
            self.clip_range_vf = None

    @property
    def penalizes_kl(self) -> bool:
        """Whether the surrogate contains a divergence."""
        return self.surrogate in ("kl", "adaptive_kl")

    @whole_update
    def train(self) -> None:
        """Epochs of minibatch steps along the surrogate of the rollout just collected, the critic's loss beside it."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        coefficients = self._coefficients()
        forget_dependencies(self.policy)
        used = policy_parameters(self.policy).keys() | critic_parameters(self.policy).keys()
        parameters = [p for name, p in self.policy.named_parameters() if name in used]
        old_distribution = self._distribution_parameters()
        steps = self._steps(old_distribution)
        measured: list[Measurements] = []

        with self._descending(parameters) as descend:
            for steps_of_epoch, order in self._epochs(steps):
                of_epoch, is_near = self._epoch(descend, rows(steps_of_epoch, order), coefficients)
                measured.append(of_epoch)
                if not is_near:
                    break

        require_finite_losses("loss", th.cat([m["loss"] for m in measured]), self._n_updates)
        require_finite_state(self)
        kl = self._mean_kl(old_distribution)
        self._log(steps, measured, coefficients, kl)
        if self.surrogate == "adaptive_kl":
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, self.kl_target)

    def _epoch(self, descend: Step, epoch: Steps, coefficients: Coefficients) -> tuple[Measurements, bool]:
        """One pass over the shuffled steps, as far as the policy stays near the one that acted (``target_kl``)."""
        terms = TermsOfEpoch(len(epoch.targets), self.batch_size, self.device)
        for minibatch in minibatches(epoch, self.batch_size):
            left, gradient_norm, taken = descend(minibatch, coefficients)
            terms.add(left, gradient_norm)
            if not taken:
                break
        return self._measurements(epoch, terms, coefficients), taken

    def _descending(self, parameters: list[th.nn.Parameter]) -> AbstractContextManager[Step]:
        """An update's steps: minibatch and coefficients → terms of the loss, norm of the gradient, whether taken."""
        constants = ("surrogate", "kl_direction", "value_clip", "normalize_advantage", "ent_coef", "vf_coef")
        return descending(
            self.policy,
            self.policy.optimizer,
            parameters,
            self._loss,
            math.inf if self.max_grad_norm is None else self.max_grad_norm,
            None if self.target_kl is None else self._is_near,
            key=self._graph_key(*(getattr(self, name) for name in constants)),
            compile=self.compile,
        )

    def _is_near(self, terms: Terms) -> th.Tensor:
        """Whether the estimated divergence from the policy that acted is within ``target_kl``."""
        assert self.target_kl is not None
        return ~(approximate_kl(terms.log_ratio).mean() > 1.5 * self.target_kl)  # SB3 goes on with a NaN

    def _coefficients(self) -> Coefficients:
        progress = self._current_progress_remaining
        clip_range_vf = math.inf if self.clip_range_vf is None else self.clip_range_vf(progress)
        return Coefficients(self.clip_range(progress), clip_range_vf, self.kl_coef)

    def _steps(self, old_distribution: tuple[th.Tensor, ...]) -> Steps:
        """The rollout, with the advantages and targets of the critic that acted."""
        rollout = self.rollout
        advantages, targets = self._advantages(rollout.values, rollout.bootstrap_values)
        return Steps(
            rollout.observations,
            rollout.actions,
            rollout.values,
            rollout.log_prob,
            advantages,
            targets,
            old_distribution if self.penalizes_kl else (),
        )

    def _advantages(self, values: th.Tensor, bootstrap_values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param values: V on the rollout, ``(M,)``
        :param bootstrap_values: V of what follows its segments, ``(N,)``
        :return: Ψ and the critic's target y = Ψ + V, each ``(M,)``; Ψ standardised if that is done once per rollout
        """
        advantages = rollout_advantages(
            self.rollout.rewards,
            values,
            self.rollout.segment,
            self.gamma,
            self.gae_lambda,
            bootstrap_values,
            self.n_envs,
        )
        targets = advantages + values
        return standardize(advantages) if self.normalize_advantage == "rollout" else advantages, targets

    def _recomputed_advantages(self) -> tuple[th.Tensor, th.Tensor]:
        """Ψ and y of the current critic, each ``(M,)``."""
        bootstrap_values = th.zeros_like(self.rollout.bootstrap_values)
        if self.rollout.final_observations is not None:
            bootstrap_values[self.rollout.continues] = self._values(self.rollout.final_observations)
        return self._advantages(self._values(self.rollout.observations), bootstrap_values)

    def _epochs(self, steps: Steps) -> Iterator[tuple[Steps, th.Tensor]]:
        """Of each epoch the steps, and the order to take them in, drawn as SB3 draws it."""
        n_steps = len(steps.targets)
        for epoch in range(self.n_epochs):
            if self.recompute_advantage and epoch > 0:
                advantages, targets = self._recomputed_advantages()
                steps = steps._replace(advantages=advantages, targets=targets)
            self._n_updates += 1
            order = np.random.permutation(n_steps)  # noqa: NPY002  the generator that SB3 draws from
            yield steps, th.as_tensor(order, device=self.device)

    def _loss(self, minibatch: Steps, coefficients: Coefficients) -> tuple[th.Tensor, Terms]:
        """
        What the step descends: a function of the policy's parameters, the minibatch and the coefficients alone.

        :param minibatch: B steps
        :param coefficients: the update's
        :return: the loss, differentiable, and its terms
        """
        values, log_prob, entropy = self.policy.evaluate_actions(minibatch.observations, minibatch.actions)
        values = values.flatten()
        log_ratio = log_prob - minibatch.old_log_prob
        ratio = log_ratio.exp()
        advantages = minibatch.advantages
        if self.normalize_advantage in (True, "minibatch"):
            advantages = standardize(advantages)

        policy_gradient_loss = -self._surrogate(ratio, advantages, minibatch.old_distribution, coefficients)
        critic_loss = value_loss(
            values, minibatch.targets, minibatch.old_values, self.value_clip, coefficients.clip_range_vf
        )
        entropy_loss = -(-log_prob if entropy is None else entropy).mean()

        loss = policy_gradient_loss
        if self.ent_coef:
            loss = loss + self.ent_coef * entropy_loss
        loss = loss + self.vf_coef * critic_loss
        scalars = (policy_gradient_loss, critic_loss, entropy_loss, loss)
        return loss, Terms(*(x.detach() for x in (*scalars, log_ratio, values)))

    def _surrogate(
        self,
        ratio: th.Tensor,
        advantages: th.Tensor,
        old_distribution: tuple[th.Tensor, ...],
        coefficients: Coefficients,
    ) -> th.Tensor:
        """Of the policy that has just been evaluated."""
        if self.surrogate == "clip":
            return clipped_surrogate(ratio, advantages, coefficients.clip_range)
        if self.surrogate == "none":
            return unclipped_surrogate(ratio, advantages)
        distribution = self.policy.action_dist
        new_distribution = distribution_parameters(distribution)
        kl = kl_divergence(old_distribution, new_distribution, distribution, self.kl_direction)
        return kl_penalized_surrogate(ratio, advantages, kl, coefficients.kl_coef)

    def _distribution_parameters(self) -> tuple[th.Tensor, ...]:
        """Those of π_θ on the rollout, constant."""

        def parameters(observations: PyTorchObs) -> tuple[th.Tensor, ...]:
            distribution = self.policy.get_distribution(observations)
            require(
                not self.penalizes_kl or distribution is self.policy.action_dist,
                "surrogate",
                self.surrogate,
                "'clip' or 'none' with a policy that does not keep its distribution in `action_dist`",
            )
            return distribution_parameters(distribution)

        return evaluated(self.policy, parameters, (self.rollout.observations,), self._evaluation_key("distribution"))

    def _mean_kl(self, old_distribution: tuple[th.Tensor, ...]) -> float:
        """The mean divergence on the rollout between the policy that acted and the current one."""
        new_distribution = self._distribution_parameters()
        like = any_distribution(self.policy, self.rollout.observations)
        return kl_divergence(old_distribution, new_distribution, like, self.kl_direction).mean().item()

    def _measurements(self, epoch: Steps, terms: TermsOfEpoch, coefficients: Coefficients) -> Measurements:
        """What is logged of an epoch's minibatches, one number for each of them."""
        measurements, sizes = terms.scalars, terms.sizes
        measurements["approx_kl"] = minibatch_means(approximate_kl(terms.log_ratio), sizes)
        if self.surrogate == "clip":
            clipped = clipped_ratios(terms.log_ratio.exp(), coefficients.clip_range)
            measurements["clip_fraction"] = minibatch_means(clipped, sizes)
        if self.value_clip != "none":
            values, n = terms.values, sum(sizes)
            clip = self.value_clip, coefficients.clip_range_vf
            clipped = clipped_values(values, epoch.targets[:n], epoch.old_values[:n], *clip)
            measurements["value_clip_fraction"] = minibatch_means(clipped, sizes)
        return measurements

    def _log(self, steps: Steps, measured: list[Measurements], coefficients: Coefficients, kl: float) -> None:
        """SB3's keys and ours, means over the minibatches; ``approx_kl`` of the last epoch, ``loss`` the last."""
        columns = {name: th.cat([of_epoch[name] for of_epoch in measured]) for name in measured[-1]}
        means = {name: column.mean() for name, column in columns.items() if len(column)}  # no norm without a step
        means["approx_kl"] = measured[-1]["approx_kl"].mean()
        means["loss"] = measured[-1]["loss"][-1]
        means["explained_variance"] = explained_variance(steps.old_values, steps.targets)
        if hasattr(self.policy, "log_std"):
            means["std"] = self.policy.log_std.detach().exp().mean()
        logged = dict(zip(means, th.stack(list(means.values())).tolist(), strict=True)) | {"kl": kl}
        if self.surrogate == "clip":
            logged["clip_range"] = coefficients.clip_range
        if self.value_clip != "none":
            logged["clip_range_vf"] = coefficients.clip_range_vf
        if self.penalizes_kl:
            logged["kl_coef"] = coefficients.kl_coef
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for argument in ("n_steps", "batch_size", "n_epochs"):
            require_count(argument, getattr(self, argument))
        check_step_buffer(self)
        require_one_of("value_clip", self.value_clip, ("max", "clip", "none"))
        require_one_of("surrogate", self.surrogate, ("clip", "kl", "adaptive_kl", "none"))
        require_one_of("kl_direction", self.kl_direction, ("old_new", "new_old"))
        require_one_of("normalize_advantage", self.normalize_advantage, ("minibatch", True, "rollout", False))
        if self.normalize_advantage in (True, "minibatch"):
            require_count("batch_size", self.batch_size, at_least=2)
        require_number("vf_coef", self.vf_coef, "a finite number")
        require_bool("recompute_advantage", self.recompute_advantage)
        require_schedule("clip_range", self.clip_range, above_0=True)
        if self.value_clip != "none":
            require_schedule("clip_range_vf", self.clip_range_vf, above_0=True)
        require_positive("kl_coef", self.kl_coef)
        require_positive("kl_target", self.kl_target)
        if self.target_kl is not None:
            require_positive("target_kl", self.target_kl)
        require_effective(self, self.ineffective_arguments())

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """
        The arguments that would be ignored beside the others, which is why no other value of them is accepted.

        :return: name → the value that they must have, and the reason
        """
        arguments: dict[str, tuple[Any, str]] = {}
        of_surrogate = f"(the default) with surrogate={self.surrogate!r}"
        if self.surrogate != "clip":
            arguments["clip_range"] = (0.2, f"{of_surrogate}: only 'clip' uses it")
        if not self.penalizes_kl:
            arguments["kl_coef"] = (1.0, f"{of_surrogate}: only 'kl' and 'adaptive_kl' use it")
            arguments["kl_direction"] = ("old_new", f"{of_surrogate}: only 'kl' and 'adaptive_kl' use it")
        if self.surrogate != "adaptive_kl":
            arguments["kl_target"] = (0.01, f"{of_surrogate}: only 'adaptive_kl' uses it")
        if self.value_clip == "none" and self.clip_range_vf is not None:
            arguments["clip_range_vf"] = (0.2, "(the default) or None with value_clip='none', which does not use it")
        if self.n_epochs == 1:
            arguments["recompute_advantage"] = (False, "with n_epochs=1: there is no second epoch")
        return arguments

    def learn(
        self: SelfClippedCriticPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "ClippedCriticPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfClippedCriticPPO:
        """SB3's ``learn``."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
