"""The off-policy actor-critic: a replay, critics of Q, and a choice of gradients for the actor."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from stable_baselines3.sac.policies import SACPolicy
from torch.nn import functional as F

from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.distributions import JointActions
from sb3_pgext.algorithms.off_policy import OffPolicyGradientAlgorithm
from sb3_pgext.algorithms.q_policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    action_distribution,
    draw,
    drawn_with_log_prob,
    draws,
    forget_distribution,
    require_policy,
    takes_noise,
)
from sb3_pgext.algorithms.temperature import Temperature, default_target_entropy, require_temperature
from sb3_pgext.arguments import require, require_count, require_positive
from sb3_pgext.engine import Engine, Step, parameters_of, require_finite_losses, whole_update
from sb3_pgext.estimators.q_critics import (
    all_action_surrogate,
    drawn_action_surrogate,
    expected_q,
    minimum,
    reparameterized_surrogate,
    sampled_surrogate,
    td_targets,
    truncated_ratios,
)
from sb3_pgext.rollouts.transitions import (
    DictLogProbReplayBuffer,
    LogProbReplayBuffer,
    NStepLogProbReplayBuffer,
    Transitions,
)

__all__ = ["OffPolicyActorCritic"]

GRADIENTS = ("auto", "all_action", "sampled", "reparameterized")

Noise = tuple[th.Tensor, ...]
"""ε of the actions that are drawn in a loss; none where actions are enumerated, or an actor draws by itself."""


class OffPolicyActorCritic(OffPolicyGradientAlgorithm):
    r"""
    Actor-critic with a replay buffer (lectures 000 and 004): each gradient step fits critics of Q to

    .. math:: y = r + \gamma \, E_{a' \sim \pi}[\min_i Q_i(s', a') - \alpha \log\pi(a'|s')]

    with slow targets, then moves the actor along one of three gradients of :math:`E[Q - \alpha \log\pi]` in the states
    of the replay. With ``gradient="reparameterized"``, the default on a Box, it is SB3's SAC: same seed, same
    parameters, to the bit (with ``compile=True`` up to rounding). On a discrete action space the expectation is exact.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class as SB3's SACPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of actor, critics and temperature; can be a function of the remaining progress (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: steps, with actions drawn uniformly, before learning starts; less than ``buffer_size``
    :param batch_size: Minibatch size of each gradient step
    :param tau: how fast the target critics follow, φ_tar ← τφ + (1-τ)φ_tar, in [0, 1]
    :param gamma: Discount factor, in [0, 1]
    :param train_freq: collect this many steps between updates; or ``(5, "step")``, ``(2, "episode")``
    :param gradient_steps: gradient steps of an update; -1 for as many as steps were collected
    :param action_noise: added to the actions of a Box
    :param replay_buffer_class: Replay buffer class to use. If None, it will be automatically selected
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param optimize_memory_usage: a replay that takes half of the memory, see SB3
    :param n_steps: rewards in a target before Q, with SB3's ``NStepReplayBuffer``
    :param gradient: what the actor moves along:

        * ``"all_action"``: :math:`\sum_a \nabla\pi(a|s) Q(s,a)`, exact over the actions
        * ``"sampled"``: :math:`\rho \nabla\log\pi(a|s) (Q(s,a) - E Q(s,\cdot))` for the action of the replay, with the
          ratio ρ to the policy that took it (Degris et al. 2012)
        * ``"reparameterized"``: ∇Q(s, a_θ(s, ε)), through the action (on a Box)
        * ``"auto"``: reparameterized on a Box, else all_action
    :param n_action_samples: draws in place of the sum over all actions (for ``"all_action"``, 2 or more, and
        ``"sampled"``), on a Box, and needed where there are more than 256 joint actions
    :param weight_clip: larger ρ are cut to this (for ``"sampled"``); None for no limit
    :param ent_coef: α, the coefficient of the entropy; ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on
    :param target_update_interval: gradient steps of an update between two steps of the targets
    :param target_entropy: what ``ent_coef="auto"`` keeps the entropy at. ``"auto"``: -dim of a Box, else 0.98 of the
        largest possible one (Christodoulou 2019)
    :param action_std: σ of the actions on a Box, instead of learning it; can be a function of the remaining progress
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: with gSDE, sample new noise every n steps of a rollout (-1: only at its beginning)
    :param use_sde_at_warmup: act by gSDE instead of uniformly before learning starts
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, ``n_critics`` among them
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting and the steps of critics and actor: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = ACTION_SPACES

    policy: SACPolicy
    actor: Any
    critic: Any
    critic_target: Any
    replay_buffer: ReplayBuffer
    target_entropy: Any
    log_ent_coef: th.nn.Parameter | None
    ent_coef_optimizer: th.optim.Optimizer | None
    target_entropy_share: ClassVar[float] = 0.98
    """What ``target_entropy="auto"`` is of the largest entropy of a discrete action space."""

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        gradient: str = "auto",
        n_action_samples: int | None = None,
        weight_clip: float | None = None,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        action_std: float | Schedule | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        super().__init__(**given(locals()), supported_action_spaces=self.action_spaces, support_multi_env=True)

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None and self.gradient == "sampled":
            dict_or_not = LogProbReplayBuffer if self.n_steps == 1 else NStepLogProbReplayBuffer
            has_parts = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = DictLogProbReplayBuffer if has_parts else dict_or_not
        super()._setup_model()
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self.batch_norm_stats = get_parameters_by_name(self.critic, ["running_"])
        self.batch_norm_stats_target = get_parameters_by_name(self.critic_target, ["running_"])
        self.log_ent_coef = self.ent_coef_optimizer = None
        if isinstance(self.ent_coef, str):
            self._temperature = Temperature(self.ent_coef).to(self.device)
            self.log_ent_coef = self._temperature.log_ent_coef
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
            if self.target_entropy == "auto":
                self.target_entropy = default_target_entropy(self.action_space, self.target_entropy_share)
        else:
            self.ent_coef_tensor = th.tensor(float(self.ent_coef), device=self.device)

    @whole_update
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take gradient steps with the critics, the actor and the temperature on minibatches of the replay."""
        self._begin_update()
        losses, engine, critic, actor = [], self.engine, self.critic, self.actor
        with (
            engine.descending(critic.optimizer, parameters_of(critic), self._critic_loss) as fit_critic,
            engine.descending(actor.optimizer, parameters_of(actor), self._actor_loss) as move_actor,
            self._adapting(engine) as adapt_ent_coef,
        ):  # loss, gradient, step
            for step in range(gradient_steps):
                if self.use_sde:
                    self.actor.reset_noise()
                batch = self._sample(batch_size)
                noise, next_noise = self._noise(batch_size, self._n_draws), self._noise(batch_size)
                ent_coef = self._ent_coef

                critic_loss, _, _ = fit_critic(batch, next_noise, ent_coef)
                (actor_loss, log_prob), _, _ = move_actor(batch, noise, ent_coef)
                ent_coef_loss, _, _ = adapt_ent_coef(log_prob, self.target_entropy)
                if step % self.target_update_interval == 0:
                    self._follow()
                losses.append(th.stack([critic_loss, actor_loss, ent_coef_loss, ent_coef.squeeze()]))
        forget_distribution(self.actor)
        self._n_updates += gradient_steps
        self._log(th.stack(losses))

    def _critic_loss(self, batch: Transitions, noise: Noise, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Half the squared error of each critic on y = r + γ (min Q_tar(s', a') - α log π(a'|s')), summed."""
        with th.no_grad():
            next_values = self._values(batch.next_observations, noise, ent_coef)
            targets = td_targets(batch.rewards, batch.terminated, next_values, batch.discounts)
        estimates = self._q(self.critic, batch.observations, batch.actions)
        loss: th.Tensor = 0.5 * sum(F.mse_loss(q, targets) for q in estimates)  # type: ignore[assignment]
        return loss, loss.detach()

    def _actor_loss(
        self, batch: Transitions, noise: Noise, ent_coef: th.Tensor
    ) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        """The surrogate of ``gradient``, to be made smaller; for the temperature, E log π in each state."""
        if self._gradient == "reparameterized":
            actions, log_prob = draw(self.actor, batch.observations, noise)
            q = minimum(self._q(self.critic, batch.observations, actions))
            surrogate = reparameterized_surrogate(q, log_prob, ent_coef)
        elif self._joint_actions is not None:
            surrogate, log_prob = self._enumerated_surrogate(batch, ent_coef)
        else:
            surrogate, log_prob = self._drawn_surrogate(batch, noise, ent_coef)
        return -surrogate, (-surrogate.detach(), log_prob.detach())

    def _enumerated_surrogate(self, batch: Transitions, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Along all actions, or the one of the replay, with the exact mean of Q."""
        assert self._joint_actions is not None
        log_probs = self._joint_actions.log_probs(self.actor.get_distribution(batch.observations))  # (B, A)
        with th.no_grad():
            q = minimum(self.critic(batch.observations))  # (B, A)
        mean_log_prob = (log_probs.exp() * log_probs).sum(1)
        if self._gradient == "all_action":
            return all_action_surrogate(log_probs, q, ent_coef), mean_log_prob
        taken = self._joint_actions.numbers(batch.actions).unsqueeze(1)
        log_prob, q_of_taken = log_probs.gather(1, taken).squeeze(1), q.gather(1, taken).squeeze(1)
        soft_q, expected = q_of_taken - ent_coef * log_prob.detach(), expected_q(q, log_probs.detach(), ent_coef)
        ratios = truncated_ratios(log_prob, batch.log_prob[0], self.weight_clip)
        return sampled_surrogate(log_prob, soft_q, expected, ratios), mean_log_prob

    def _drawn_surrogate(self, batch: Transitions, noise: Noise, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The same from K draws of the policy in each state."""
        distribution = action_distribution(self.actor, batch.observations)
        actions, of_draws = zip(*draws(distribution, noise, self._n_draws or 1), strict=True)
        log_probs = th.stack(of_draws)  # (K, B)
        with th.no_grad():
            q = th.stack([minimum(self._q(self.critic, batch.observations, a)) for a in actions])
            soft_q = q - ent_coef * log_probs
        if self._gradient == "all_action":
            return drawn_action_surrogate(log_probs, soft_q), log_probs.mean(0)
        log_prob = distribution.log_prob(batch.actions)
        with th.no_grad():
            q_of_taken = minimum(self._q(self.critic, batch.observations, batch.actions)) - ent_coef * log_prob
        ratios = truncated_ratios(log_prob, batch.log_prob[0], self.weight_clip)
        return sampled_surrogate(log_prob, q_of_taken, soft_q.mean(0), ratios), log_probs.mean(0)

    def _values(self, observations: PyTorchObs, noise: Noise, ent_coef: th.Tensor) -> th.Tensor:
        """V(s) of the target critics and the current policy, soft, ``(B,)``: exact, or with one action drawn."""
        if self._joint_actions is not None:
            log_probs = self._joint_actions.log_probs(self.actor.get_distribution(observations))
            return expected_q(minimum(self.critic_target(observations)), log_probs, ent_coef)
        actions, log_prob = draw(self.actor, observations, noise)
        return minimum(self._q(self.critic_target, observations, actions)) - ent_coef * log_prob

    def _q(self, critic: Any, observations: PyTorchObs, actions: th.Tensor) -> list[th.Tensor]:
        """Q(s, a) of each critic, ``(B,)`` each."""
        if self._joint_actions is None:
            return [q.flatten() for q in critic(observations, actions)]
        numbers = self._joint_actions.numbers(actions).unsqueeze(1)
        return [q.gather(1, numbers).flatten() for q in critic(observations)]

    def _noise(self, batch_size: int, n_draws: int | None = None) -> Noise:
        """ε of the actions of a minibatch, ``(B, action dim)``, or of K draws of each, ``(K, B, action dim)``."""
        if not takes_noise(self.actor):
            return ()
        shape = (batch_size, get_action_dim(self.action_space))
        return (th.randn(shape if n_draws is None else (n_draws, *shape), device=self.device),)

    @property
    def _ent_coef(self) -> th.Tensor:
        """α, constant."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _adapting(self, engine: Engine) -> AbstractContextManager[Step]:
        """Steps of α; a fixed one has none, and a loss of 0."""
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            return nullcontext(lambda *_: (th.zeros((), device=self.device), None, False))
        of_temperature = engine.over(self._temperature)
        return of_temperature.descending(self.ent_coef_optimizer, [self.log_ent_coef], self._temperature.loss)

    @th.no_grad()
    def _follow(self) -> None:
        """φ_tar ← τφ + (1-τ)φ_tar, as SB3 rounds; the statistics of a batch norm are copied, as SB3 does."""
        targets: Any = parameters_of(self.critic_target)
        th._foreach_mul_(targets, 1 - self.tau)
        th._foreach_add_(targets, [*parameters_of(self.critic)], alpha=self.tau)
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _begin_update(self) -> None:
        """Training mode, learning rate and gSDE's noise, as SAC does first of all."""
        self.policy.set_training_mode(True)
        of_temperature = [] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer]
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, *of_temperature])
        if self.ent_coef_optimizer is None:
            self.ent_coef_tensor.fill_(float(self.ent_coef))

    def _log(self, losses: th.Tensor) -> None:
        """Log SAC's keys: means over the gradient steps."""
        names, losses = ("critic_loss", "actor_loss", "ent_coef_loss", "ent_coef"), losses.cpu()
        for what, of_steps in zip(names, losses.T, strict=True):
            require_finite_losses(what, of_steps, self._n_updates)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for what, mean in zip(names, losses.mean(0).tolist(), strict=True):
            if what != "ent_coef_loss" or self.ent_coef_optimizer is not None:
                self.logger.record(f"train/{what}", mean)

    def _draw(self, observations: Any) -> tuple[th.Tensor, ...]:
        """See :meth:`~sb3_pgext.algorithms.off_policy.OffPolicyGradientAlgorithm._draw`."""
        if self._gradient == "sampled":
            return drawn_with_log_prob(self.actor, observations)
        return (self.policy._predict(observations),)

    @property
    def _joint_actions(self) -> JointActions | None:
        return JointActions.of(self.action_space)

    @property
    def _gradient(self) -> str:
        if self.gradient != "auto":
            return self.gradient
        return "reparameterized" if isinstance(self.action_space, spaces.Box) else "all_action"

    @property
    def _n_draws(self) -> int | None:
        """K of the actor's step; None where it draws one action, or none."""
        drawn = self._joint_actions is None and self._gradient != "reparameterized"
        return (self.n_action_samples or 1) if drawn else None

    def _check_arguments(self) -> None:
        on_box, space = isinstance(self.action_space, spaces.Box), type(self.action_space).__name__
        require_policy(self.policy_class, self.action_space)
        names = [name for name in GRADIENTS if on_box or name != "reparameterized"]
        require(str(self.gradient) in names, "gradient", self.gradient, f"one of {names} on a {space} action space")
        if self.n_action_samples is not None:
            require_count("n_action_samples", self.n_action_samples, 2 if self._gradient == "all_action" else 1)
        elif self._gradient == "all_action":
            enumerated = "2 or more with gradient='all_action' on a Box, or over more than 256 joint actions"
            require(self._joint_actions is not None, "n_action_samples", None, enumerated)
        if self._gradient == "sampled":
            buffer = getattr(self, "replay_buffer", None) or self.replay_buffer_class
            keeps = buffer is None or hasattr(buffer, "add_log_prob")
            allowed = "None, or one with `add_log_prob`, for gradient='sampled'"
            require(keeps, "replay_buffer_class", self.replay_buffer_class, allowed)
            require(self.action_noise is None, "action_noise", self.action_noise, "None with gradient='sampled'")
        if on_box and self._gradient != "reparameterized":
            require(not self.use_sde, "use_sde", self.use_sde, f"False with gradient={self.gradient!r}")
        if self.weight_clip is not None:
            require_positive("weight_clip", self.weight_clip)
        require_count("target_update_interval", self.target_update_interval)
        learns = None if not hasattr(self, "ent_coef_optimizer") else self.ent_coef_optimizer is not None
        require_temperature(self.ent_coef, self.target_entropy, self.action_space, learns)
        super()._check_arguments()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self._gradient != "sampled":
            arguments["weight_clip"] = (None, f"with gradient={self.gradient!r}: only 'sampled' has weights")
        if self._joint_actions is not None or self._gradient == "reparameterized":
            arguments["n_action_samples"] = (None, "where all actions are enumerated, or gradient='reparameterized'")
        if not isinstance(self.ent_coef, str):
            arguments["target_entropy"] = ("auto", "(the default) with a fixed ent_coef")
        if not isinstance(self.action_space, spaces.Box):
            arguments["action_noise"] = (None, "on discrete actions")
        return arguments

    def _excluded_save_params(self) -> list[str]:
        own = ["actor", "critic", "critic_target", "batch_norm_stats", "batch_norm_stats_target", "_temperature"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is None:
            return state_dicts, ["ent_coef_tensor"]
        return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]
