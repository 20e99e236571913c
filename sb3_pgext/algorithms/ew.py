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
    A policy with one logit per state and action, all 0 at first, and a critic of none of its own, V = 0.

    Its arguments are those of SB3's ``ActorCriticPolicy`` that do not shape a network.
    """

    def __init__(self, *arguments: Any, **options: Any):
        require(not options.get("net_arch"), "policy_kwargs: net_arch", options.get("net_arch"), "none: it is a table")
        super().__init__(*arguments, **options | {"net_arch": []})

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
        """θ, ``(S, A)``, constant, in one memory with the parameters."""
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
    :param learning_rate: η; can be a function of the remaining progress (from 1 to 0). ``"auto"`` for the one that
        makes the bound on the regret smallest over the rounds of ``learn``, with the largest \|Q\| of the
        environment's tables, or 1
    :param n_steps: steps of each sub-environment per round
    :param gamma: Discount factor, in [0, 1]
    :param feedback: where Q̂ comes from: ``"full"``, the exact Q of a :class:`~sb3_pgext.envs.TabularMDP`, or
        ``"bandit"``, the returns of the actions taken, divided by their probabilities. Of an episode that a rollout
        cuts, the steps so far are not learnt from
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
        constant = {"gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0, "max_grad_norm": None, "use_sde": False}
        discrete = (spaces.Discrete,)
        super().__init__(**given(locals()) | constant, sde_sample_freq=-1, supported_action_spaces=discrete)

    def _setup_lr_schedule(self) -> None:
        """SB3's; the η of the bound is known when learning begins."""
        self.lr_schedule = FloatSchedule(0.0 if self.learning_rate == "auto" else self.learning_rate)

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
        self.logger.record("train/entropy", self._entropy())
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
        taken = states[ended], rollout.actions[ended], rollout.returns[ended], rollout.log_prob[ended]
        return bandit_feedback(*taken, self.baseline, control)

    def _step_size(self) -> float:
        """η of this round."""
        if self.learning_rate != "auto":
            eta = self.lr_schedule(self._current_progress_remaining)
            require(eta > 0, f"learning_rate at progress {self._current_progress_remaining:.3g}", eta, "a number > 0")
            return eta
        n_rounds = max(1, self._total_timesteps // (self.n_steps * self.n_envs))
        n_actions, largest, one_state = self.policy.logits.shape[1], 1.0, len(self.policy.logits) == 1
        if self.feedback == "full":
            largest = float(self._tables().rewards.abs().max()) / (1.0 if one_state else 1.0 - self.gamma)
        return step_size_of_bound(n_actions, n_rounds, self.feedback, largest, one_state)

    def _tables(self) -> Tables:
        """The environment's."""
        names = ("transitions", "expected_rewards", "initial", "horizon", "at_horizon")
        assert self.env is not None
        try:
            transitions, rewards, initial, horizon, at_horizon = (self.env.get_attr(name, 0)[0] for name in names)
        except AttributeError as error:
            allowed = "'bandit' on an environment whose tables are not known"
            raise ValueError(f"feedback='full': allowed is {allowed}") from error
        endless = horizon is None or at_horizon == "truncate"
        require(endless, "feedback", "full", "'bandit' where a horizon is part of the task, and Q depends on the time")
        return Tables(th.as_tensor(transitions), th.as_tensor(rewards), th.as_tensor(initial), self.gamma)

    def _entropy(self) -> float:
        """The mean entropy over all states."""
        log_probs = self.policy.logits.log_softmax(1)
        return -(log_probs.exp() * log_probs).sum(1).mean().item()

    def _check_learning_rate(self) -> None:
        if self.learning_rate != "auto":
            require(not isinstance(self.learning_rate, str), "learning_rate", self.learning_rate, _ALLOWED_RATES)
            require_schedule("learning_rate", self.learning_rate, above_0=True)

    def _check_arguments(self) -> None:
        require_one_of("feedback", self.feedback, ("full", "bandit"))
        require_number("baseline", self.baseline, "a finite number")
        space, policy = self.observation_space, self.policy_class
        require(isinstance(space, spaces.Discrete), "observation_space", space, "Discrete: the policy is a table")
        tabular = isinstance(policy, type) and issubclass(policy, TabularPolicy)
        require(tabular, "policy", getattr(policy, "__name__", policy), "'MlpPolicy' or a subclass of TabularPolicy")
        if self.control_variate is not None:
            self._check_control_variate()
        super()._check_arguments()
        if self.feedback == "full":
            self._tables()

    def _check_control_variate(self) -> None:
        shape = (int(self.observation_space.n), int(self.action_space.n))  # type: ignore[attr-defined]
        try:
            numbers = np.asarray(self.control_variate, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.full(1, np.nan)
        fits = numbers.shape in (shape, shape[1:]) and bool(np.isfinite(numbers).all())
        allowed = f"None, or finite numbers of shape {shape[1:]} or {shape}"
        require(fits, "control_variate", self.control_variate, allowed)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.feedback == "full":
            arguments["baseline"] = (0.0, "(the default) with feedback='full'")
            arguments["control_variate"] = (None, "with feedback='full'")
        return arguments


_ALLOWED_RATES = "'auto', a finite number > 0, or a schedule of them"
