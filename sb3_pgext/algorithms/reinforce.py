"""REINFORCE: the score-function estimator of the policy gradient with a choice of baselines."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_pgext.algorithms.base import PolicyGradientAlgorithm, flat_gradient, policy_parameters, standardize
from sb3_pgext.arguments import require, require_bool, require_count, require_effective, require_one_of
from sb3_pgext.engine.whole_updates import whole_update
from sb3_pgext.estimators.baselines import constant_baseline, time_baseline
from sb3_pgext.estimators.returns import (
    critic_targets,
    discount_weights,
    discounted_returns,
    trajectory_returns,
)
from sb3_pgext.estimators.score_function import optimal_baseline_gradient, score_function_surrogate
from sb3_pgext.rollouts import EpisodeBatch, EpisodicAlgorithm

__all__ = ["REINFORCE"]

DEFAULT_CRITIC_EPOCHS = 5
DEFAULT_CRITIC_BATCH_SIZE = 256

Baseline = Callable[[EpisodeBatch, th.Tensor], th.Tensor]
"""A baseline of the user's own: (the batch, G_t ``(M,)``) → b_t ``(M,)``. See :class:`REINFORCE`, ``baseline``."""

SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")


class REINFORCE(PolicyGradientAlgorithm, EpisodicAlgorithm):
    r"""
    REINFORCE (Williams 1992; lectures 000, 001, 003, 004): one gradient step per batch of N whole episodes along

    .. math:: \hat g = \frac1N \sum_{i=1}^N \sum_t w_t \nabla_\theta \log \pi_\theta(a_t|s_t) \, (G_t - b_t).

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy and of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_episodes: episodes per update, N. Best a multiple of the number of sub-environments: each plays its share
    :param gamma: Discount factor, in [0, 1]
    :param credit: what a log-probability is multiplied by: ``"reward_to_go"`` (G_t, the return from t on) or
        ``"trajectory"`` (R(τ) = G_0, the return of the whole episode)
    :param baseline: what is subtracted from it:

        * ``"none"``: nothing
        * ``"constant"``: the mean return
        * ``"time"``: the mean return at the same time step
        * ``"optimal"``: for each parameter the constant of minimum variance
        * ``"state"``: the critic's V(s_t)
        * a callable ``baseline(episodes, returns)`` from an :class:`~sb3_pgext.rollouts.EpisodeBatch` and its G_t
          ``(M,)`` to b_t ``(M,)``. If it is an object that also has a method ``fit(episodes, returns)``, that is
          called after each policy step, with the same arguments
    :param leave_one_out: compute an episode's baseline from the other episodes, which keeps ĝ unbiased
        (for ``"constant"``, ``"time"`` and ``"optimal"``; needs N >= 2. With few episodes and continuous actions the
        optimal baseline is a ratio of sums that can be near 0, and its variance large: take 8 or more)
    :param discount_weighting: w_t = γ^t, the gradient of the discounted return, instead of w_t = 1, which everyone
        runs (for ``"reward_to_go"``; ``"trajectory"`` carries the discounts already)
    :param critic_target: what the critic is fitted to (for ``baseline="state"``): ``"mc"`` (G_t), ``"td"``
        (r_t + γV(s_{t+1})) or ``"lambda"`` (TD(λ))
    :param gae_lambda: the λ of ``critic_target="lambda"``
    :param critic_epochs: passes over the batch when fitting the critic; None for 5
    :param critic_batch_size: minibatch size when fitting the critic; None for 256
    :param truncation: an episode cut by a time limit is continued by the critic's V(s_T) (``"bootstrap"``) or taken
        to end there (``"terminal"``); None means ``"bootstrap"`` with a critic, ``"terminal"`` without
    :param max_episode_steps: cut (truncate) longer episodes; None for no limit
    :param normalize_advantage: Whether to normalize G_t - b_t over the batch (not with ``baseline="optimal"``)
    :param ent_coef: coefficient of the mean entropy in the objective
    :param max_grad_norm: The maximum norm of the gradient of a step, of the policy and of the critic; None for no limit
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting and the steps of the critic's fit: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

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

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_episodes: int = 16,
        gamma: float = 0.99,
        credit: str = "reward_to_go",
        baseline: str | Baseline = "state",
        leave_one_out: bool = True,
        discount_weighting: bool = False,
        critic_target: str = "mc",
        gae_lambda: float = 0.95,
        critic_epochs: int | None = None,
        critic_batch_size: int | None = None,
        truncation: str | None = None,
        max_episode_steps: int | None = None,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_episodes,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.n_episodes = n_episodes
        self.credit = credit
        self.baseline = baseline
        self.leave_one_out = leave_one_out
        self.discount_weighting = discount_weighting
        self.critic_target = critic_target
        self.critic_epochs = critic_epochs
        self.critic_batch_size = critic_batch_size
        self.truncation = truncation
        self.max_episode_steps = max_episode_steps
        self.normalize_advantage = normalize_advantage
        self.compile = compile

        if _init_setup_model:
            self._setup_model()

    @property
    def has_critic(self) -> bool:
        """Whether V is learnt and used."""
        return isinstance(self.baseline, str) and self.baseline == "state"

    @property
    def bootstraps(self) -> bool:
        """Whether an episode cut by a time limit is continued by V(s_T)."""
        return self.has_critic if self.truncation is None else self.truncation == "bootstrap"

    @whole_update
    def train(self) -> None:
        """One step along the policy gradient of the episodes just collected, then the fit of the baseline."""
        self._begin_update()
        episodes, returns = self.episodes, self._returns(self.episodes)

        parameters = list(policy_parameters(self.policy).values())
        if parameters:  # not all frozen
            self._ascend(self._policy_gradient(episodes, returns, parameters), parameters)

        self._fit_baseline(episodes, returns)

    def estimate_gradient(self) -> th.Tensor:
        r"""
        What :meth:`train` would step along, without stepping.

        :return: :math:`\hat g` of ``self.episodes``, plus the gradient of the entropy bonus, ``(P,)``, in the order of
            :func:`~sb3_pgext.algorithms.base.policy_parameters`
        """
        self.policy.set_training_mode(True)
        parameters = list(policy_parameters(self.policy).values())
        return self._policy_gradient(self.episodes, self._returns(self.episodes), parameters)

    def _returns(self, episodes: EpisodeBatch) -> th.Tensor:
        """G_t, ``(M,)``."""
        return discounted_returns(episodes.rewards, episodes.episode, self.gamma, episodes.bootstrap_values)

    def _policy_gradient(
        self, episodes: EpisodeBatch, returns: th.Tensor, parameters: list[th.nn.Parameter]
    ) -> th.Tensor:
        log_prob, entropy = self._evaluate_batch(episodes)
        return self._gradient(log_prob, entropy, self._advantages(episodes, returns), episodes, parameters)

    def _evaluate_batch(self, episodes: EpisodeBatch) -> tuple[th.Tensor, th.Tensor]:
        """:meth:`_evaluate` of its steps: whole with the optimal baseline, which needs the gradient of each episode."""
        return self._evaluate(episodes.observations, episodes.actions, in_parts=self.baseline != "optimal")

    def _advantages(self, episodes: EpisodeBatch, returns: th.Tensor, group: th.Tensor | None = None) -> th.Tensor:
        """
        :param episodes: the batch
        :param returns: its G_t, ``(M,)``
        :param group: of each episode: which are left out together, ``(N,)``; None for one each
        :return: Ψ_t: the credit less the baseline, normalised or not; the bare credit with the optimal one, ``(M,)``
        """
        credit = returns
        if self.credit == "trajectory":
            credit = trajectory_returns(returns, episodes.time)[episodes.episode]
        if self.baseline == "optimal":
            return credit
        advantages = credit - self._baseline(episodes, returns, group)
        return standardize(advantages) if self.normalize_advantage else advantages

    def _gradient(
        self,
        log_prob: th.Tensor,
        entropy: th.Tensor,
        advantages: th.Tensor,
        episodes: EpisodeBatch,
        parameters: list[th.nn.Parameter],
        importance: th.Tensor | None = None,
        group: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        :param log_prob: log π(a_t|s_t), ``(M,)``, differentiable
        :param entropy: scalar, differentiable
        :param advantages: Ψ_t, ``(M,)``
        :param episodes: the batch
        :param parameters: the policy's
        :param importance: the weights that are in Ψ_t, which an optimal baseline gets too, ``(M,)``; None means 1
        :param group: of each episode: which are left out together, ``(N,)``; None for one each
        :return: ĝ, ``(P,)``
        """
        self.logger.record("train/entropy", entropy.item())
        bonus = self.ent_coef * entropy
        weights = discount_weights(episodes.time, self.gamma) if self.discount_weighting else None
        n_episodes = episodes.n_episodes
        if self.baseline == "optimal":
            of_batch = episodes.episode, n_episodes, parameters, self.leave_one_out
            gradient = optimal_baseline_gradient(log_prob, advantages, *of_batch, weights, importance, group)
            return gradient + flat_gradient(bonus, parameters) if self.ent_coef else gradient
        surrogate = score_function_surrogate(log_prob, advantages, n_episodes, weights)
        self.logger.record("train/policy_gradient_loss", -surrogate.item())
        return flat_gradient(surrogate + bonus if self.ent_coef else surrogate, parameters)

    def _baseline(self, episodes: EpisodeBatch, returns: th.Tensor, group: th.Tensor | None = None) -> th.Tensor:
        """
        :param episodes: the batch
        :param returns: its G_t, ``(M,)``
        :param group: of each episode: which are left out together, ``(N,)``; None for one each
        :return: b_t, ``(M,)``
        :raises ValueError: a baseline of the user's own is not finite, or not one number per step
        """
        if callable(self.baseline):
            values = self.baseline(episodes, returns)
            require(isinstance(values, th.Tensor), "baseline", values, "a callable that returns a tensor")
            values = values.detach().to(self.device)
            require(values.shape == returns.shape, "shape of the baseline", tuple(values.shape), f"({len(returns)},)")
            require(bool(values.isfinite().all()), "baseline", values, "finite numbers")
            return values
        if self.baseline == "state":
            return episodes.values
        if self.baseline == "time":
            of_steps = None if group is None else group[episodes.episode]
            return time_baseline(returns, episodes.time, self.leave_one_out, of_steps)
        if self.baseline == "constant" and self.credit == "trajectory":
            each = th.arange(episodes.n_episodes, device=self.device)
            of_episodes = trajectory_returns(returns, episodes.time)
            return constant_baseline(of_episodes, each, self.leave_one_out, group)[episodes.episode]
        if self.baseline == "constant":
            return constant_baseline(returns, episodes.episode, self.leave_one_out, group)
        return th.zeros_like(returns)

    def _fit_baseline(self, episodes: EpisodeBatch, returns: th.Tensor) -> None:
        """Fit what is learnt of the baseline, if anything is, to a batch and its G_t ``(M,)``."""
        if self.has_critic:
            self._fit_critic(
                episodes.observations,
                self._critic_targets(episodes),
                episodes.values,
                self.critic_epochs or DEFAULT_CRITIC_EPOCHS,
                self.critic_batch_size or DEFAULT_CRITIC_BATCH_SIZE,
            )
        elif hasattr(self.baseline, "fit"):
            self.baseline.fit(episodes, returns)

    def _critic_targets(self, episodes: EpisodeBatch) -> th.Tensor:
        """y_t, ``(M,)``, from the critic as it was before this batch is fitted."""
        return critic_targets(
            self.critic_target,
            episodes.rewards,
            episodes.values,
            episodes.episode,
            self.gamma,
            self.gae_lambda,
            episodes.bootstrap_values,
        )

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_count("n_episodes", self.n_episodes)
        require_one_of("credit", self.credit, ("reward_to_go", "trajectory"))
        if not callable(self.baseline):
            require_one_of("baseline", self.baseline, ("none", "constant", "time", "optimal", "state"))
        require_one_of("critic_target", self.critic_target, ("mc", "td", "lambda"))
        require_one_of("truncation", self.truncation, (None, "bootstrap", "terminal"))
        for argument in ("leave_one_out", "discount_weighting", "normalize_advantage"):
            require_bool(argument, getattr(self, argument))
        for argument in ("critic_epochs", "critic_batch_size", "max_episode_steps"):
            if getattr(self, argument) is not None:
                require_count(argument, getattr(self, argument))
        if self._looks_at_other_episodes and self.leave_one_out:
            require_count("n_episodes", self.n_episodes, at_least=2)
        require_effective(self, self.ineffective_arguments())

    @property
    def _looks_at_other_episodes(self) -> bool:
        return isinstance(self.baseline, str) and self.baseline in ("constant", "time", "optimal")

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """
        The arguments that would be ignored beside the others, which is why no other value of them is accepted.

        :return: name → the value that they must have, and the reason
        """
        arguments: dict[str, tuple[Any, str]] = {}
        if not self._looks_at_other_episodes:
            reason = f"with baseline={self.baseline!r}: only 'constant', 'time' and 'optimal' look at other episodes"
            arguments["leave_one_out"] = (True, reason)
        if self.credit == "trajectory":
            reason = "with credit='trajectory', whose return carries the discounts already"
            arguments["discount_weighting"] = (False, reason)
        if self.baseline == "optimal":
            reason = "with baseline='optimal', where each parameter has an advantage of its own"
            arguments["normalize_advantage"] = (False, reason)
        if self.critic_target != "lambda":
            reason = f"(the default) with critic_target={self.critic_target!r}: only 'lambda' uses it"
            arguments["gae_lambda"] = (0.95, reason)
        if not self.has_critic:
            reason = f"with baseline={self.baseline!r}: anything else needs the critic of baseline='state'"
            arguments |= dict.fromkeys(("critic_epochs", "critic_batch_size"), (None, reason))
            arguments["critic_target"] = ("mc", reason)
            arguments["truncation"] = (None if self.truncation is None else "terminal", reason)
        return arguments

    def learn(
        self: SelfREINFORCE,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREINFORCE:
        """SB3's ``learn``. The last batch is finished, so a little more than ``total_timesteps`` may be taken."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
