"""A3C: actor-critics that play and learn at the same time, without waiting for each other."""

import copy
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.base import ACTION_SPACES
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.fixed_length import FixedLengthAlgorithm
from sb3_pgext.algorithms.parameters import trainable_parameters
from sb3_pgext.arguments import require, require_bool, require_count, require_number, require_one_of, require_positive
from sb3_pgext.engine import whole_update
from sb3_pgext.estimators.statistics import flat_gradient
from sb3_pgext.parallel.sending import require_sendable, sendable
from sb3_pgext.parallel.workers import Link, Workers
from sb3_pgext.rollouts.acting import copy_statistics, statistics_of_env, unvalidated_distributions
from sb3_pgext.rollouts.population import seen_since

__all__ = ["A3C"]

Self = TypeVar("Self", bound="A3C")


class _Order(NamedTuple):
    """
    Play, and learn from it.

    :param num_timesteps: steps of all workers so far
    :param total_timesteps: when the training is to end
    :param n_steps: t_max
    :param statistics: of the main process's VecNormalize
    """

    num_timesteps: int
    total_timesteps: int
    n_steps: int
    statistics: list[RunningMeanStd]


class _Report(NamedTuple):
    """
    A worker has played, and learnt.

    :param steps: what callbacks see of each vector step
    :param log: what it logged
    :param staleness: updates of others between its copy of the parameters and its own
    :param gradient: ĝ, ``(P,)``, where the main process takes the step
    :param statistics: of its VecNormalize
    """

    steps: list[dict[str, Any]]
    log: dict[str, Any]
    staleness: int
    gradient: np.ndarray | None
    statistics: list[RunningMeanStd]


class _Recorder(BaseCallback):
    """Keeps of each step what the main process's callbacks are to see."""

    steps: list[dict[str, Any]]

    def _on_rollout_start(self) -> None:
        self.steps = []

    def _on_step(self) -> bool:
        seen = {name: self.locals[name] for name in ("actions", "dones", "infos")}
        self.steps.append(seen | {"rewards": self.locals["rewards"].copy()})  # γV is added where a time limit cuts
        return True


class A3C(FixedLengthAlgorithm):
    r"""
    Asynchronous advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783, algorithm S3; lecture 000). Each of
    ``n_workers`` processes copies the shared parameters, plays until an episode ends or for ``n_steps`` steps, and
    applies

    .. math:: \hat g = \sum_t \nabla_\theta \log \pi_\theta(a_t|s_t) \, (R_t - V(s_t)) + c \, \nabla_\theta H - c_v \,
        \nabla_\theta (R_t - V(s_t))^2

    to the parameters as they are by then, without a lock. Parameters and the optimizer's moments lie in shared memory,
    and are this model's: it logs, counts and calls back in the main process.

    Each worker has a copy of the environment, which must be one that can be sent to another process. A script needs
    ``if __name__ == "__main__":`` around what it runs. A run of several workers cannot be repeated to the bit.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or an ActorCriticPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str), of which each worker gets a copy. With
        several sub-environments a worker's rollout ends when an episode of any of them does
    :param learning_rate: of the policy and of the critic; can be a function of the remaining progress (from 1 to 0)
    :param n_steps: t_max, steps of each sub-environment per update at most
    :param n_workers: number of processes that play and learn
    :param optimizer: ``"rmsprop"`` (as in the paper, with shared moments) or ``"adam"``
    :param synchronous: wait for all workers, which play ``n_steps`` steps each, and take one step along the mean of
        their gradients: A2C
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: the λ of generalised advantages, in [0, 1]; 1 for R_t - V(s_t), as in the paper
    :param ent_coef: c, coefficient of the entropy in the objective
    :param vf_coef: c_v, coefficient of the critic's squared error
    :param max_grad_norm: The maximum norm of the gradient of a step; None for no limit. A gradient is the sum over a
        rollout's steps, where A2C's is the mean
    :param rms_prop_eps: ε of ``optimizer="rmsprop"``, within the square root
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators; each worker's are derived from it and the worker's number
    :param device: "cpu", where the shared memory is, or "auto", which is the same here
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, would have no effect beside the others, or cannot be sent
    """

    optimizers: ClassVar[dict[str, type[th.optim.Optimizer]]] = {"rmsprop": RMSpropTFLike, "adam": th.optim.Adam}

    _workers: Workers | None = None
    _of_main_process: ClassVar[tuple[str, ...]] = ("_workers", "_updates", "_idle", "_given", "_gradients")
    """Attributes that no worker gets, and that are not saved."""

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        n_workers: int = 4,
        optimizer: str = "rmsprop",
        synchronous: bool = False,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        rms_prop_eps: float = 1e-5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        arguments = given(locals()) | {"device": "cpu" if isinstance(device, str) and device == "auto" else device}
        super().__init__(**arguments, supported_action_spaces=ACTION_SPACES)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.collector.until_done = not self.synchronous
        buffers = [name for name, _ in self.policy.named_buffers()]
        allowed = "one without buffers, whose changes would stay in the workers"
        require(not buffers, "policy", f"{type(self.policy).__name__} with {', '.join(buffers)}", allowed)
        options = {"eps": self.rms_prop_eps} if self.optimizer == "rmsprop" else {"eps": 1e-5}
        make: Any = self.optimizers[self.optimizer]
        self.policy.optimizer = make(self.policy.parameters(), lr=self.lr_schedule(1), **options)
        if self.env is not None:
            require_sendable(self._attributes_of_workers())

    # --- in a worker ---------------------------------------------------------------------------------------------

    def _work(self, link: Link) -> None:
        """Play and learn as often as the main process says: the loop of algorithm S3."""
        shared, self.policy.optimizer, updates = link.shared
        own = trainable_parameters(self.policy)
        env, recorder = self._begin(link.number)
        statistics = statistics_of_env(env)
        link.send(None)
        while (order := link.receive()) is not None:
            self.num_timesteps = order.num_timesteps
            copy_statistics(order.statistics, statistics)
            copied = int(updates.sum())
            th._foreach_copy_([p.data for p in own], [p.data for p in shared])  # θ' ← θ
            super().collect_rollouts(env, recorder, self.rollout_buffer, order.n_steps)  # until s_t is terminal, t_max

            self._update_current_progress_remaining(self.num_timesteps, order.total_timesteps)
            with unvalidated_distributions():
                gradient = self.estimate_gradient()  # dθ
            staleness = 0
            if not self.synchronous:
                staleness = int(updates.sum()) - copied
                self._n_updates = copied + staleness + 1
                self._update_learning_rate(self.policy.optimizer)
                self._ascend(gradient, shared)  # θ ← θ + η dθ / √(g + ε)
                updates[link.number] += 1
            log = dict(self.logger.name_to_value)
            of_main = gradient.numpy() if self.synchronous else None
            link.send(_Report(recorder.steps, log, staleness, of_main, statistics))

    def _begin(self, number: int) -> tuple[VecEnv, _Recorder]:
        """Seed the generators of a worker, and begin episodes."""
        self._logger = Logger(None, [])
        entropy = np.random.SeedSequence(self.seed, spawn_key=(number, self.num_timesteps))
        self.set_random_seed(int(entropy.generate_state(1)[0]))
        assert self.env is not None
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        recorder = _Recorder()
        recorder.init_callback(self)
        return self.env, recorder

    def estimate_gradient(self) -> th.Tensor:
        r"""
        The gradient of a rollout, :math:`\hat g`.

        :return: ``(P,)``, of the parameters that are not frozen
        """
        rollout = self.rollout
        self.policy.set_training_mode(True)
        values, log_prob, entropy = self.policy.evaluate_actions(rollout.observations, rollout.actions)
        entropy = (-log_prob if entropy is None else entropy).sum()
        objective = (log_prob * rollout.advantages).sum()  # R - V(s_t), constant
        error = (rollout.returns - values.flatten()).square().sum()
        self.logger.record("train/policy_gradient_loss", -objective.item() / len(rollout))
        self.logger.record("train/entropy_loss", -entropy.item() / len(rollout))
        self.logger.record("train/value_loss", error.item() / len(rollout))
        return flat_gradient(
            objective + self.ent_coef * entropy - self.vf_coef * error, trainable_parameters(self.policy)
        )

    # --- in the main process -------------------------------------------------------------------------------------

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        SB3's ``learn``. The workers begin with new episodes, and end with it. An iteration is an update.

        A callback sees the steps of a rollout when its worker has learnt from it, and the worker waits for that.
        """
        try:
            arguments = callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            return super().learn(total_timesteps, *arguments)
        finally:
            if self._workers is not None:
                for number, report in self._workers.close():
                    self._take(number, report)
                    self.num_timesteps += len(report.steps) * self.n_envs
                self._workers = None

    def _setup_learn(self, *arguments: Any, **options: Any) -> tuple[int, BaseCallback]:
        if self._workers is not None:
            raise RuntimeError("learn() in a callback of the same model: allowed is another one")
        begun = super()._setup_learn(*arguments, **options)
        self._updates = th.zeros(self.n_workers, dtype=th.int64).share_memory_()
        shared = trainable_parameters(self.policy), self._share(self.policy.optimizer), self._updates
        twin = copy.copy(self)
        twin.__dict__ = self._attributes_of_workers()
        self._workers = Workers(self.n_workers, sendable(twin._work), shared)
        self._idle = list(range(self.n_workers))
        self._given: dict[int, list[RunningMeanStd]] = {}
        self.start_time = time.time_ns()
        return begun

    def _share(self, optimizer: th.optim.Optimizer) -> th.optim.Optimizer:
        """Move parameters, and moments, which an optimizer would make at its first step, to shared memory."""
        first: dict[str, Callable[[th.Tensor], Any]] = {"step": lambda _: 0, "square_avg": th.ones_like}
        if self.optimizer == "adam":
            first = {"step": lambda _: th.tensor(0.0), "exp_avg": th.zeros_like, "exp_avg_sq": th.zeros_like}
        for p in trainable_parameters(self.policy):
            state = optimizer.state[p]
            state.update({name: make(p.detach()) for name, make in first.items() if name not in state})
            for x in (p, *state.values()):
                if isinstance(x, th.Tensor):
                    x.share_memory_()
        return optimizer

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """
        Wait for the rollout of one worker, or, if synchronous, of all, and show their steps to the callbacks.

        These find ``actions``, ``rewards``, ``dones``, ``infos``, ``worker`` and ``staleness`` among their ``locals``.

        :param env: the model's own environment, which nobody plays in
        :param callback: called at each vector step, and at the beginning and end of the rollout
        :param rollout_buffer: the model's own, which stays empty
        :param n_rollout_steps: t_max
        :return: False if the callback ended the training
        :raises ValueError: what a worker has found; the message names it
        :raises RuntimeError: a worker has failed or died
        """
        assert self._workers is not None
        callback.on_rollout_start()
        self._let_play(env, n_rollout_steps)
        reports = [self._workers.receive() for _ in range(self.n_workers if self.synchronous else 1)]
        reports.sort(key=itemgetter(0))
        for number, report in reports:
            self._take(number, report)
        self._gradients = [report.gradient for _, report in reports]

        seen = {"self": self, "env": env, "callback": callback, "n_rollout_steps": n_rollout_steps}
        steps = [(i, report, step) for i, report in reports for step in report.steps]
        for n, (number, report, step) in enumerate(steps):
            self.num_timesteps += self.n_envs
            callback.update_locals(seen | step | {"worker": number, "staleness": report.staleness})
            if not callback.on_step():
                self.num_timesteps += (len(steps) - n - 1) * self.n_envs
                return False
            self._update_info_buffer(step["infos"], step["dones"])
        callback.on_rollout_end()
        return True

    def _let_play(self, env: VecEnv, n_steps: int) -> None:
        """Let workers play that wait for it, as many as the steps still to come need."""
        assert self._workers is not None
        while self._idle:
            playing = self.n_workers - len(self._idle)
            enough = self.num_timesteps + playing * n_steps * self.n_envs >= self._total_timesteps
            if playing and enough and not self.synchronous:
                return
            number = self._idle.pop(0)
            self._given[number] = [rms.copy() for rms in statistics_of_env(env)]
            order = _Order(self.num_timesteps, self._total_timesteps, n_steps, self._given[number])
            self._workers.send(number, order)

    def _take(self, number: int, report: _Report) -> None:
        """Count a worker's update, and take what it has logged and seen."""
        self._idle.append(number)
        assert self.env is not None
        for rms, before, after in zip(statistics_of_env(self.env), self._given[number], report.statistics, strict=True):
            mean, variance, count = seen_since(before, after)
            if count > 0:
                rms.update_from_moments(mean, variance, count)
        for name, value in report.log.items():
            self.logger.record(name, value)
        if not self.synchronous:
            self._n_updates += 1
        self.logger.record_mean("train/staleness", report.staleness)

    def train(self) -> None:
        """Take the step along the mean of the workers' gradients, if synchronous: else they have taken theirs."""
        if self.synchronous:
            self._step()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    @whole_update
    def _step(self) -> None:
        self._n_updates += 1
        self._update_learning_rate(self.policy.optimizer)
        self._ascend(th.from_numpy(np.mean(self._gradients, axis=0)), trainable_parameters(self.policy))

    def _attributes_of_workers(self) -> dict[str, Any]:
        """The attributes that a worker gets: all but those of the main process alone."""
        return {name: value for name, value in vars(self).items() if name not in ("_logger", *self._of_main_process)}

    def _check_arguments(self) -> None:
        require_count("n_workers", self.n_workers, at_most=1024)
        require_one_of("optimizer", self.optimizer, tuple(self.optimizers))
        require_bool("synchronous", self.synchronous)
        require_number("vf_coef", self.vf_coef, "a finite number")
        require_positive("rms_prop_eps", self.rms_prop_eps)
        require(self.device.type == "cpu", "device", str(self.device), "'cpu' or 'auto': parameters are shared there")
        chosen = self.policy_kwargs.get("optimizer_class")
        require(chosen is None, "policy_kwargs: optimizer_class", chosen, "none: `optimizer` chooses it")
        n_ranks = self.ranks.size
        require(n_ranks == 1, "number of ranks", n_ranks, "1, without torchrun: A3C starts its workers itself")
        super()._check_arguments()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.optimizer == "adam":
            arguments["rms_prop_eps"] = (1e-5, "(the default) with optimizer='adam'")
        return arguments

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *self._of_main_process]
