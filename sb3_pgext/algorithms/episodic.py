"""Algorithms that learn from whole episodes: their baselines, and the score-function gradient."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch as th

from sb3_pgext.algorithms.on_policy import OnPolicyGradientAlgorithm
from sb3_pgext.arguments import require, require_bool, require_count, require_one_of
from sb3_pgext.estimators.baselines import constant_baseline, time_baseline
from sb3_pgext.estimators.returns import (
    critic_targets,
    discount_weights,
    discounted_returns,
    trajectory_returns,
)
from sb3_pgext.estimators.score_function import optimal_baseline_gradient, score_function_surrogate
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.rollouts import EpisodeBatch, EpisodeBuffer, EpisodeCollector

__all__ = ["BASELINES", "Baseline", "EpisodicAlgorithm"]

Baseline = Callable[[EpisodeBatch, th.Tensor], th.Tensor]
"""A baseline of the user's own: (the batch, G_t ``(M,)``) → b_t ``(M,)``. See :class:`~sb3_pgext.REINFORCE`."""


class _Baseline(NamedTuple):
    """
    One value of ``baseline=``.

    :param function: (algorithm, batch, G_t ``(M,)``, group of each episode ``(N,)`` or None) → b_t ``(M,)``
    :param looks_at_others: whether it is computed from several episodes, so that ``leave_one_out`` matters
    :param per_parameter: whether each parameter has a baseline of its own, which no advantage can carry
    """

    function: Callable[["EpisodicAlgorithm", EpisodeBatch, th.Tensor, th.Tensor | None], th.Tensor]
    looks_at_others: bool = False
    per_parameter: bool = False


def _nothing(model: "EpisodicAlgorithm", episodes: EpisodeBatch, returns: th.Tensor, group: Any) -> th.Tensor:
    return th.zeros_like(returns)


def _constant(model: "EpisodicAlgorithm", episodes: EpisodeBatch, returns: th.Tensor, group: Any) -> th.Tensor:
    def baseline(returns: th.Tensor, episode: th.Tensor, group: th.Tensor | None) -> th.Tensor:
        return constant_baseline(returns, episode, model.leave_one_out, group)

    if model.credit == "reward_to_go":
        return model.ranks.together(baseline, returns, model.ranks.numbered(episodes.episode), group)
    each = model.ranks.numbered(th.arange(episodes.n_episodes, device=returns.device))
    of_episodes = trajectory_returns(returns, episodes.time)
    return model.ranks.together(baseline, of_episodes, each, group)[episodes.episode]


def _time(model: "EpisodicAlgorithm", episodes: EpisodeBatch, returns: th.Tensor, group: Any) -> th.Tensor:
    def baseline(returns: th.Tensor, time: th.Tensor, group: th.Tensor | None) -> th.Tensor:
        return time_baseline(returns, time, model.leave_one_out, group)

    of_steps = None if group is None else group[episodes.episode]
    return model.ranks.together(baseline, returns, episodes.time, of_steps)


def _state(model: "EpisodicAlgorithm", episodes: EpisodeBatch, returns: th.Tensor, group: Any) -> th.Tensor:
    return episodes.values


BASELINES: dict[str, _Baseline] = {
    "none": _Baseline(_nothing),
    "constant": _Baseline(_constant, looks_at_others=True),
    "time": _Baseline(_time, looks_at_others=True),
    "optimal": _Baseline(_nothing, looks_at_others=True, per_parameter=True),
    "state": _Baseline(_state),
}
"""The values of ``baseline=``."""


class EpisodicAlgorithm(OnPolicyGradientAlgorithm):
    """An algorithm that learns from ``n_episodes`` whole episodes per update; they are in ``episodes``."""

    batch_argument: ClassVar[str] = "n_episodes"
    overridden_together: ClassVar[Mapping[str, str]] = {
        **OnPolicyGradientAlgorithm.overridden_together,
        "forward": "get_distribution",
    }
    estimate_options: ClassVar[tuple[str, ...]] = (
        "n_episodes",
        "gamma",
        "credit",
        "baseline",
        "leave_one_out",
        "discount_weighting",
        "truncation",
        "max_episode_steps",
        "normalize_advantage",
        "ent_coef",
        "sde_sample_freq",
    )
    """The arguments that the estimate depends on while the parameters stay as they are."""

    n_episodes: int
    credit: str
    baseline: str | Baseline
    leave_one_out: bool
    discount_weighting: bool
    critic_target: str
    truncation: str | None
    max_episode_steps: int | None
    normalize_advantage: bool
    rollout_buffer: EpisodeBuffer  # type: ignore[assignment]
    episodes: EpisodeBatch

    @property
    def n_steps(self) -> int:
        """SB3's name for the size of a rollout: here episodes."""
        return self.n_episodes

    @n_steps.setter
    def n_steps(self, n_episodes: int) -> None:
        self.n_episodes = n_episodes

    @property
    def has_critic(self) -> bool:
        """True if V is learnt and used."""
        return isinstance(self.baseline, str) and self.baseline == "state"

    @property
    def bootstraps(self) -> bool:
        """True if an episode cut by a time limit is continued by V(s_T)."""
        return self.has_critic if self.truncation is None else self.truncation == "bootstrap"

    @property
    def _of_table(self) -> _Baseline | None:
        """The baseline's row in the table; None for one of the user's own."""
        return BASELINES.get(self.baseline) if isinstance(self.baseline, str) else None

    @property
    def _is_per_parameter(self) -> bool:
        return self._of_table is not None and self._of_table.per_parameter

    @property
    def _leaves_out(self) -> bool:
        return self.leave_one_out and self._of_table is not None and self._of_table.looks_at_others

    def _setup_model(self) -> None:
        self.rollout_buffer_class = EpisodeBuffer  # type: ignore[assignment]
        self.collector = EpisodeCollector()
        super()._setup_model()

    def _returns(self, episodes: EpisodeBatch) -> th.Tensor:
        """G_t, ``(M,)``."""
        return discounted_returns(episodes.rewards, episodes.episode, self.gamma, episodes.bootstrap_values)

    def _advantages(self, episodes: EpisodeBatch, returns: th.Tensor, group: th.Tensor | None = None) -> th.Tensor:
        """
        Ψ_t: G_t - b_t, or R(τ) - b_t, normalised or not.

        :param episodes: the batch
        :param returns: its G_t, ``(M,)``
        :param group: of each episode: which are left out together, ``(N,)``; None for one each
        :return: ``(M,)``; without the baseline where each parameter has one of its own
        """
        credit = returns
        if self.credit == "trajectory":
            credit = trajectory_returns(returns, episodes.time)[episodes.episode]
        advantages = credit - self._baseline(episodes, returns, group)
        return self.ranks.standardized(advantages)[0] if self.normalize_advantage else advantages

    def _baseline(self, episodes: EpisodeBatch, returns: th.Tensor, group: th.Tensor | None = None) -> th.Tensor:
        """
        b_t, ``(M,)``; the arguments are those of :meth:`_advantages`.

        :raises ValueError: a baseline of the user's own is not finite, or not one number per step
        """
        if self._of_table is not None:
            everywhere = None if group is None else self.ranks.numbered(group)
            return self._of_table.function(self, episodes, returns, everywhere)
        values = self.baseline(episodes, returns)  # type: ignore[operator]
        require(isinstance(values, th.Tensor), "baseline", values, "a callable that returns a tensor")
        values = values.detach().to(self.device)
        require(values.shape == returns.shape, "shape of the baseline", tuple(values.shape), f"({len(returns)},)")
        require(bool(values.isfinite().all()), "baseline", values, "finite numbers")
        return values

    def _with_present_values(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """
        The same episodes with the values of the critic as it is, if there is one.

        Under the balance heuristic a baseline cancels in the mean over all policies, not in that over each: all batches
        need the same V. The V(s_T) where nobody knows s_T stay.
        """
        if not self.has_critic:
            return episodes
        episodes = replace(episodes, values=self._values(episodes.observations))
        if episodes.final_observations is None:
            return episodes
        bootstrap_values = episodes.bootstrap_values.clone()
        bootstrap_values[episodes.truncated] = self._values(episodes.final_observations)
        return replace(episodes, bootstrap_values=bootstrap_values)

    def _score_function_gradient(
        self,
        episodes: EpisodeBatch,
        advantages: th.Tensor,
        parameters: list[th.nn.Parameter],
        importance: th.Tensor | None = None,
        group: th.Tensor | None = None,
    ) -> th.Tensor:
        r"""
        :math:`\hat g = \frac1N \sum_i \sum_t w_t \nabla\log\pi(a_t|s_t) \Psi_t`, plus that of the entropy bonus.

        :param episodes: the batch
        :param advantages: Ψ_t, ``(M,)``
        :param parameters: the policy's, P numbers in all
        :param importance: the weights that are in Ψ_t, which an optimal baseline gets too, ``(M,)``; None means 1
        :param group: of each episode: which are left out together, ``(N,)``; None for one each
        :return: ``(P,)``
        """
        # In parts no gradient of a single episode is to be had.
        log_prob, entropy = self._evaluate(episodes.observations, episodes.actions, in_parts=not self._is_per_parameter)
        entropy = self.ranks.mean(entropy, len(episodes))
        self.logger.record("train/entropy_loss", -entropy.item())
        weights = discount_weights(episodes.time, self.gamma) if self.discount_weighting else None
        bonus = self.ent_coef * entropy
        if self._is_per_parameter:
            of_batch = episodes.episode, episodes.n_episodes, parameters, self.leave_one_out
            others = self.ranks.elsewhere
            gradient = optimal_baseline_gradient(log_prob, advantages, *of_batch, weights, importance, group, others)
            gradient = self.ranks.mean(gradient, episodes.n_episodes)
            return gradient + self.ranks.sum(flat_gradient(bonus, parameters)) if self.ent_coef else gradient
        surrogate = score_function_surrogate(log_prob, advantages, episodes.n_episodes, weights)
        surrogate = self.ranks.mean(surrogate, episodes.n_episodes)
        self.logger.record("train/policy_gradient_loss", -surrogate.item())
        return self.ranks.sum(flat_gradient(surrogate + bonus if self.ent_coef else surrogate, parameters))

    def _fit_baseline(self, episodes: EpisodeBatch, returns: th.Tensor) -> None:
        """
        Fit the critic, or a baseline of the user's own that can be fitted.

        :param episodes: the batch
        :param returns: its G_t, ``(M,)``
        """
        if self.has_critic:
            steps = episodes.rewards, episodes.values, episodes.episode, self.gamma, self.gae_lambda
            targets = critic_targets(self.critic_target, *steps, episodes.bootstrap_values)
            self._fit_critic(episodes.observations, targets, episodes.values)
        elif hasattr(self.baseline, "fit"):
            self.baseline.fit(episodes, returns)

    def _check_arguments(self) -> None:
        require_one_of("credit", self.credit, ("reward_to_go", "trajectory"))
        if not callable(self.baseline):
            require_one_of("baseline", self.baseline, tuple(BASELINES))
        require_one_of("critic_target", self.critic_target, ("mc", "td", "lambda"))
        require_one_of("truncation", self.truncation, (None, "bootstrap", "terminal"))
        for argument in ("leave_one_out", "discount_weighting", "normalize_advantage"):
            require_bool(argument, getattr(self, argument))
        for argument in ("n_critic_updates", "batch_size"):
            require_count(argument, getattr(self, argument))
        if self.max_episode_steps is not None:
            require_count("max_episode_steps", self.max_episode_steps)
        super()._check_arguments()
        if self._leaves_out:
            require_count("n_episodes", self.n_episodes, at_least=2)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self._of_table is None or not self._of_table.looks_at_others:
            able = [name for name, row in BASELINES.items() if row.looks_at_others]
            reason = f"with baseline={self.baseline!r}: only {', '.join(map(repr, able))} look at other episodes"
            arguments["leave_one_out"] = (True, reason)
        if self.credit == "trajectory":
            reason = "with credit='trajectory', whose return carries the discounts already"
            arguments["discount_weighting"] = (False, reason)
        if self._is_per_parameter:
            reason = f"with baseline={self.baseline!r}, where each parameter has an advantage of its own"
            arguments["normalize_advantage"] = (False, reason)
        if self.critic_target != "lambda":
            reason = f"(the default) with critic_target={self.critic_target!r}: only 'lambda' uses it"
            arguments["gae_lambda"] = (0.95, reason)
        if not self.has_critic:
            reason = f"(the default) with baseline={self.baseline!r}: only the critic of baseline='state' uses it"
            arguments |= {
                "n_critic_updates": (5, reason),
                "batch_size": (256, reason),
                "critic_target": ("mc", reason),
            }
            reason = f"with baseline={self.baseline!r}: anything else needs the critic of baseline='state'"
            arguments["truncation"] = (None if self.truncation is None else "terminal", reason)
        return arguments

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "episodes", "collector"]
