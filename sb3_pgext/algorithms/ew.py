"""Exponential weights: Hedge, EXP3 and the natural policy gradient on tables."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.arguments import require, require_number, require_one_of, require_schedule
from sb3_pgext.engine import require_finite_losses, whole_update
from sb3_pgext.estimators.exponential_weights import bandit_feedback, exponential_weights, step_size_of_bound
from sb3_pgext.estimators.tables import Tables

__all__ = ["ExponentialWeights", "TabularPolicy"]


class TabularPolicy(ActorCriticPolicy):
    """
    A policy with one logit per state and action, all 0 at first, and V = 0 for a critic.

    Its arguments are those of SB3's ``ActorCriticPolicy`` that do not shape a network. Observations and actions are
    Discrete. Any on-policy algorithm takes it.

    :raises ValueError: other observations or actions, or a network
    """

    def __init__(self, *arguments: Any, **options: Any):
        require(not options.get("net_arch"), "policy_kwargs: net_arch", options.get("net_arch"), "none: it is a table")
        super().__init__(*arguments, **options | {"net_arch": []})
        for name in ("observation_space", "action_space"):
            space = getattr(self, name)
            require(isinstance(space, spaces.Discrete), name, space, "Discrete: the policy is a table")

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        for name in ("action_net", "value_net"):
            net = getattr(self, name)
            table = th.nn.Linear(net.in_features, net.out_features, bias=False)
            th.nn.init.zeros_(table.weight)
            setattr(self, name, table)
        self.value_net.requires_grad_(False)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @property
    def logits(self) -> th.Tensor:
        """θ, ``(S, A)``, constant; what is written into it is written into the policy."""
        weight: Any = self.action_net.weight
        return weight.detach().T


class ExponentialWeights(FixedLengthAlgorithm):
    r"""
    Exponential weights (lecture 004) on a table of logits: in each round

    .. math:: \pi_{k+1}(a|s) \propto \pi_k(a|s) \exp(\eta \hat Q_k(s, a))

    which is the natural policy gradient of that policy. On a one-state problem it is Hedge (``feedback="full"``) and
    EXP3 (``"bandit"``). Observations and actions are Discrete.

    :param policy: "MlpPolicy", which is a :class:`TabularPolicy`, or a subclass of that
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: η; can be a function of the remaining progress (from 1 to 0). ``"auto"`` is the one that makes
        the bound on the regret smallest over the rounds of ``learn``, for the largest \|Q\| that the environment's
        rewards allow (``feedback="full"``; γ < 1 where there are several states), or for 1 (``"bandit"``)
    :param n_steps: steps of each sub-environment per round
    :param gamma: Discount factor, in [0, 1]
    :param feedback: where Q̂ comes from: ``"full"``, the exact Q of a :class:`~sb3_pgext.envs.TabularMDP`, whatever its
        wrappers do, or ``"bandit"``, the returns of the actions taken, divided by their probabilities. The steps of an
        episode that a rollout cuts are not learnt from, which favours short episodes: let ``n_steps`` be much longer.
        One that a time limit cuts is taken to end there
    :param baseline: b, subtracted from the returns (for ``"bandit"``): with rewards in [0, 1], 1 makes them losses
    :param control_variate: c, one number per action, or one per state and action, that is near Q (for ``"bandit"``);
        None for 0
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting: the same results up to rounding, in less time
    :param _init_setup_model: Whether or not to build the table at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": TabularPolicy}

    policy: TabularPolicy
    learning_rate: Any

    def __init__(
        self,
        policy: str | type[TabularPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = "auto",
        n_steps: int = 1,
        gamma: float = 0.99,
        feedback: str = "bandit",
        baseline: float = 0.0,
        control_variate: Sequence[Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool = False,
        _init_setup_model: bool = True,
    ):
        arguments = given(locals()) | {"gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0, "max_grad_norm": None}
        if isinstance(learning_rate, str):
            require(learning_rate == "auto", "learning_rate", learning_rate, "'auto', a number > 0, or a schedule")
        else:  # not in _check_arguments: rl_zoo3 puts 0 in its place where a saved model is only to act
            require_schedule("learning_rate", learning_rate, above_0=True)
        never = {"use_sde": False, "sde_sample_freq": -1}
        super().__init__(**arguments | never, supported_action_spaces=(spaces.Discrete,))

    def _setup_lr_schedule(self) -> None:
        """SB3's; the η of the bound is known when learning begins."""
        self.lr_schedule = FloatSchedule(self.learning_rate if self._has_step_size else 0.0)

    @property
    def _has_step_size(self) -> bool:
        """False if η is that of the bound."""
        return not (isinstance(self.learning_rate, str) and self.learning_rate == "auto")

    @whole_update
    def train(self) -> None:
        """θ(s, a) ← θ(s, a) + η Q̂(s, a), in all states (full information) or those visited (bandit feedback)."""
        self._n_updates += 1
        eta = self._step_size()
        q = self._exact_q() if self.feedback == "full" else self._estimated_q()  # (S, A)
        require_finite_losses("estimate of Q", q.flatten(), self._n_updates)

        logits = self.policy.logits
        logits.copy_(exponential_weights(logits, q, eta))

        self.logger.record("train/learning_rate", eta)
        self.logger.record("train/entropy_loss", -self._entropy())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _exact_q(self) -> th.Tensor:
        """Q^π of the environment's tables."""
        tables = self._tables()
        probabilities = self.policy.logits.double().softmax(1).cpu()
        return tables.action_values(tables.values(probabilities)[0]).to(self.policy.logits)

    def _estimated_q(self) -> th.Tensor:
        """Q̂ of the steps whose episodes have ended in the rollout."""
        rollout, buffer = self.rollout, self.rollout_buffer
        ends = np.concatenate([buffer.episode_starts[1:], self.collector.last_dones[None]]).astype(bool)  # (T, E)
        ended = th.as_tensor(np.flip(np.maximum.accumulate(np.flip(ends, 0), 0), 0).T.ravel(), device=self.device)
        self.logger.record("train/steps_used", int(ended.sum()))
        assert isinstance(rollout.observations, th.Tensor)
        states = rollout.observations.long().flatten()
        control = th.zeros_like(self.policy.logits)
        if self.control_variate is not None:
            control += th.as_tensor(np.asarray(self.control_variate), device=self.device)
        columns = (states, rollout.actions, rollout.returns, rollout.log_prob)
        taken, actions, returns, log_prob = (self.ranks.gathered(column[ended]) for column in columns)
        return bandit_feedback(taken, actions, returns, log_prob, self.baseline, control)

    def _step_size(self) -> float:
        """η of this round."""
        if not self._has_step_size:
            return self._step_size_of_bound()
        eta = self.lr_schedule(self._current_progress_remaining)
        require(eta > 0, f"learning_rate at progress {self._current_progress_remaining:.3g}", eta, "a number > 0")
        return eta

    def _step_size_of_bound(self) -> float:
        """The η of ``learning_rate="auto"``."""
        n_rounds = max(1, self._total_timesteps // (self.n_steps * self.n_envs * self.ranks.size))
        n_states, n_actions = self.policy.logits.shape
        largest = 1.0
        if self.feedback == "full":
            of_reward = float(self._tables().rewards.abs().max()) or 1.0
            largest = of_reward if n_states == 1 else of_reward / (1 - self.gamma)
        return step_size_of_bound(n_actions, n_rounds, self.feedback, largest, n_states == 1)

    def _tables(self) -> Tables:
        """The environment's."""
        names = ("transitions", "expected_rewards", "initial", "horizon", "at_horizon")
        assert self.env is not None
        known = all(map(self.env.has_attr, names))
        require(known, "feedback", "full", "'bandit' on an environment whose tables are not known")
        transitions, rewards, initial, horizon, at_horizon = (self.env.get_attr(name, 0)[0] for name in names)
        endless = horizon is None or at_horizon == "truncate"
        require(endless, "feedback", "full", "'bandit' where a horizon is part of the task, and Q depends on the time")
        transitions, rewards, initial = map(th.as_tensor, (transitions, rewards, initial))
        return Tables(transitions, rewards, initial, self.gamma)

    def _entropy(self) -> float:
        """The mean entropy over all states."""
        log_probs = self.policy.logits.log_softmax(1)
        return -(log_probs.exp() * log_probs).sum(1).mean().item()

    def _check_learning_rate(self) -> None:
        if self._has_step_size:
            super()._check_learning_rate()

    def _check_arguments(self) -> None:
        require_one_of("feedback", self.feedback, ("full", "bandit"))
        require_number("baseline", self.baseline, "a finite number")
        policy = self.policy_class
        tabular = isinstance(policy, type) and issubclass(policy, TabularPolicy)
        require(tabular, "policy", getattr(policy, "__name__", policy), "'MlpPolicy' or a subclass of TabularPolicy")
        super()._check_arguments()
        if self.control_variate is not None:
            self._check_control_variate()
        if self.env is None:
            return
        if self.feedback == "full":
            one_state = len(self._tables().initial) == 1
            bounded = self._has_step_size or self.gamma < 1 or one_state
            require(bounded, "learning_rate", "auto", "a number or a schedule with gamma=1 and several states")

    def _check_control_variate(self) -> None:
        try:
            numbers = np.asarray(self.control_variate, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.full(1, np.nan)
        finite = numbers.ndim in (1, 2) and bool(np.isfinite(numbers).all())
        require(finite, "control_variate", self.control_variate, "None, or finite numbers for actions, or all pairs")
        if self.env is not None:  # nobody knows the spaces where a configuration is checked
            shape = tuple(int(getattr(space, "n", 0)) for space in (self.observation_space, self.action_space))
            allowed = f"None, or finite numbers of shape {shape[1:]} or {shape}"
            require(numbers.shape in (shape, shape[1:]), "control_variate", self.control_variate, allowed)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.feedback == "full":
            arguments["baseline"] = (0.0, "(the default) with feedback='full'")
            arguments["control_variate"] = (None, "with feedback='full'")
        return arguments
