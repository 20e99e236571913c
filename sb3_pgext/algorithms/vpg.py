"""VPG: the vanilla actor-critic policy gradient with a choice of advantage estimators."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.distributions import drawn_actions, log_prob_and_entropy
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import policy_parameters
from sb3_pgext.arguments import require_bool, require_count, require_one_of
from sb3_pgext.engine import whole_update
from sb3_pgext.estimators.q_critics import all_action_surrogate, drawn_action_surrogate
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.rollouts import Rollout

__all__ = ["VPG"]


class VPG(FixedLengthAlgorithm):
    r"""
    The vanilla actor-critic (lectures 000, 002, 004): one gradient step per rollout of M steps along

    .. math:: \hat g = \frac1M \sum_t \nabla_\theta \log \pi_\theta(a_t|s_t) \, \Psi_t,

    or, over all actions instead of those that were taken, along :math:`\frac1M \sum_t \sum_a \nabla_\theta
    \pi_\theta(a|s_t) \, Q(s_t, a)`; then the fit of the critic. The mean is over steps: their number is fixed, unlike
    that of whole episodes.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class; with
        ``critic="q"`` a subclass of :class:`~sb3_pgext.algorithms.policies.QCriticPolicy`)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy and of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_steps: steps of each sub-environment per update
    :param batch_size: minibatch size when fitting the critic; the policy's step is along the gradient of all M steps
    :param gamma: Discount factor, in [0, 1]
    :param critic: the critic that is learnt: ``"v"`` (V(s)) or ``"q"`` (Q(s, a); then V is its mean over the policy's
        actions: all of them, enumerated up to 256 joint actions, or ``n_action_samples`` draws)
    :param gradient: ``"sampled"``, ∇log π(a_t|s_t) Ψ_t of the action that was taken, or ``"all_action"``,
        Σ_a ∇π(a|s_t) Q(s_t, a), for ``critic="q"``: no advantage is used, nor what a callback writes into the buffer's
        ``advantages``
    :param n_action_samples: with ``critic="q"`` and actions that are not enumerated, the draws of the policy in each
        state that stand for all actions, at least 2
    :param advantage: Ψ_t, which a log-probability is multiplied by; the critic is the one that was there while acting,
        and a sum is cut at the end of the episode, or of the rollout, where V continues it:

        * ``"mc"``: G_t - V(s_t), no bias but at the rollout's end, high variance
        * ``"td"``: r_t + γV(s_{t+1}) - V(s_t), low variance, the bias of V; r_t + γQ(s_{t+1}, a_{t+1}) - V(s_t) with Q
        * ``"n_step"``: n rewards, then V, or Q of the action that was taken
        * ``"gae"``: Σ_k (γλ)^k δ_{t+k}, the mean of all n with weights (1-λ)λ^{n-1}
        * ``"q"`` (for ``critic="q"``): Q(s_t, a_t) - V(s_t), no reward but through the critic
    :param lookahead: the n of ``advantage="n_step"`` and of ``critic_target="n_step"``
    :param gae_lambda: the λ of ``advantage="gae"`` and of ``critic_target="lambda"``, in [0, 1]
    :param critic_target: what the critic is fitted to: ``"mc"`` (G_t), ``"td"`` (r_t + γV(s_{t+1}), for ``critic="v"``)
        or ``"lambda"`` (TD(λ)); for ``critic="q"`` also ``"sarsa"`` (r_t + γQ(s_{t+1}, a_{t+1})), ``"expected_sarsa"``
        (r_t + γV(s_{t+1})) or ``"n_step"`` (n rewards, then Q)
    :param n_critic_updates: passes over the rollout when fitting the critic
    :param normalize_advantage: Whether to normalize Ψ_t over the rollout
    :param ent_coef: coefficient of the mean entropy in the objective
    :param max_grad_norm: The maximum norm of the gradient of a step, of the policy and of the critic; None for no limit
    :param learning_rate_kl_target: mean KL per update that the learning rate adapts to, by factors of 1.5; or None
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
    :param compile: compile acting and the steps of the critic's fit: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    estimate_options: ClassVar[tuple[str, ...]] = (
        "n_steps",
        "gamma",
        "critic",
        "gradient",
        "n_action_samples",
        "advantage",
        "lookahead",
        "gae_lambda",
        "normalize_advantage",
        "ent_coef",
        "sde_sample_freq",
    )
    """The arguments that the estimate depends on while the parameters stay as they are."""

    suboptions: ClassVar[Mapping[str, str]] = {
        "lookahead": "advantage",
        "gae_lambda": "advantage",
        "advantage": "gradient",
        "n_action_samples": "critic",
    }

    critic_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "v": ("mc", "td", "lambda"),
        "q": ("mc", "lambda", "sarsa", "expected_sarsa", "n_step"),
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 1024,
        batch_size: int = 128,
        gamma: float = 0.99,
        critic: str = "v",
        gradient: str = "sampled",
        n_action_samples: int | None = None,
        advantage: str = "gae",
        lookahead: int = 5,
        gae_lambda: float = 0.95,
        critic_target: str = "lambda",
        n_critic_updates: int = 10,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        max_grad_norm: float | None = None,
        learning_rate_kl_target: float | None = None,
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
        super().__init__(**given(locals()), vf_coef=0.0, supported_action_spaces=ACTION_SPACES)

    @whole_update
    def train(self) -> None:
        """Take one step along the policy gradient of the rollout just collected, then fit the critic."""
        self._begin_update()
        rollout = self.rollout  # with Ψ_t and y_t of V as it acted, see _compute_returns_and_advantage

        parameters = list(policy_parameters(self.policy).values())
        if parameters:  # not all frozen
            with self._adapting_learning_rate(rollout):
                self._ascend(self._policy_gradient(rollout, parameters), parameters)

        critic = (rollout.values,) if self.critic == "v" else (self._q_values(rollout), rollout.actions)
        self._fit_critic(rollout.observations, rollout.returns, *critic)

    def _policy_gradient(self, rollout: Rollout, parameters: list[th.nn.Parameter]) -> th.Tensor:
        """ĝ of the critic as it acted, plus the gradient of the entropy bonus, ``(P,)``."""
        of_gradient = self._sampled if self.gradient == "sampled" else self._all_action
        objective, entropy = (self.ranks.mean(x, len(rollout)) for x in of_gradient(rollout))
        self.logger.record("train/policy_gradient_loss", -objective.item())
        self.logger.record("train/entropy_loss", -entropy.item())
        objective = objective + self.ent_coef * entropy if self.ent_coef else objective
        return self.ranks.sum(flat_gradient(objective, parameters))

    def _sampled(self, rollout: Rollout) -> tuple[th.Tensor, th.Tensor]:
        """The surrogate of the mean over steps of ∇log π(a_t|s_t) Ψ_t, and the mean entropy."""
        advantages = rollout.advantages
        if self.normalize_advantage:
            (advantages,) = self.ranks.standardized(advantages)
        log_prob, entropy = self._evaluate(rollout.observations, rollout.actions)
        return (log_prob * advantages).mean(), entropy

    def _all_action(self, rollout: Rollout) -> tuple[th.Tensor, th.Tensor]:
        """The surrogate of the mean over steps of Σ_a ∇π(a|s_t) Q(s_t, a), and the mean entropy."""
        policy: Any = self.policy
        if policy.joint_actions is None:
            return self._drawn_actions(rollout)

        def of_rows(observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
            distribution = policy.get_distribution(observations)
            return policy.joint_actions.log_probs(distribution), distribution.entropy()

        q = self.engine.evaluate(policy.q_values, (rollout.observations,), key="q_values")
        log_probs, entropy = self.engine.differentiable(of_rows, (rollout.observations,))
        return all_action_surrogate(log_probs, q), entropy.mean()

    def _drawn_actions(self, rollout: Rollout) -> tuple[th.Tensor, th.Tensor]:
        """The same from ``n_action_samples`` draws of the policy in each state."""
        policy: Any = self.policy

        def draw(observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
            assert self.n_action_samples is not None
            actions = drawn_actions(policy.get_distribution(observations), self.n_action_samples)
            return actions.transpose(0, 1), th.stack([policy.q_values(observations, a) for a in actions], dim=1)

        def of_rows(observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
            distribution = policy.get_distribution(observations)
            of_draws = [log_prob_and_entropy(distribution, of_draw) for of_draw in actions.unbind(1)]
            return tuple(th.stack(column, dim=1) for column in zip(*of_draws, strict=True))

        actions, q = self.engine.evaluate(draw, (rollout.observations,))
        log_probs, entropies = self.engine.differentiable(of_rows, (rollout.observations, actions))
        return drawn_action_surrogate(log_probs.T, q.T), entropies.mean()

    def estimate_gradient(self) -> th.Tensor:
        r"""
        The gradient that :meth:`train` would step along, without stepping.

        :return: :math:`\hat g` of ``self.rollout``, plus the gradient of the entropy bonus, ``(P,)``, in the order of
            :func:`~sb3_pgext.algorithms.parameters.policy_parameters`
        """
        self.policy.set_training_mode(True)
        return self._policy_gradient(self.rollout, list(policy_parameters(self.policy).values()))

    def _check_arguments(self) -> None:
        require_one_of("gradient", self.gradient, ("sampled", "all_action"))
        of_q = ("q",) if self.critic == "q" else ()
        require_one_of("advantage", self.advantage, ("mc", "td", "n_step", "gae", *of_q))
        for argument in ("batch_size", "n_critic_updates", "lookahead"):
            require_count(argument, getattr(self, argument))
        require_bool("normalize_advantage", self.normalize_advantage)
        super()._check_arguments()
        if self.normalize_advantage:
            self._require_several_steps()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments: dict[str, tuple[Any, str]] = {}
        used = {self.critic_target, self.advantage if self.gradient == "sampled" else None}
        beside = f"(the default) with advantage={self.advantage!r} and critic_target={self.critic_target!r}"
        if self.gradient == "all_action":
            beside = f"(the default) with gradient='all_action' and critic_target={self.critic_target!r}"
            arguments["critic"] = ("q", "with gradient='all_action': V says nothing about actions")
            for argument, default in (("advantage", "gae"), ("normalize_advantage", False)):
                arguments[argument] = (default, "(the default) with gradient='all_action', which has no advantages")
        if "n_step" not in used:
            arguments["lookahead"] = (5, f"{beside}: only 'n_step' uses it")
        if not used & {"gae", "lambda"}:
            arguments["gae_lambda"] = (0.95, f"{beside}: only 'gae' and 'lambda' use it")
        return arguments | super().ineffective_arguments()
