"""Search gradients: the policy gradient in parameter space, also called evolution strategies."""

from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy, LinearPolicy, MlpPolicy
from sb3_contrib.common.vec_env.async_eval import AsyncEval
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.algorithms.base import PolicyGradientAlgorithm
from sb3_pgext.algorithms.constructor import given
from sb3_pgext.algorithms.parameters import trainable_parameters
from sb3_pgext.arguments import (
    require,
    require_bool,
    require_count,
    require_number,
    require_one_of,
    require_positive,
    require_schedule,
)
from sb3_pgext.engine import whole_update
from sb3_pgext.estimators.search import SHAPINGS, leave_one_out, mirrored, search_gradient
from sb3_pgext.parallel.rollouts import of_all_ranks
from sb3_pgext.rollouts.acting import fresh_after_failure, require_finite_parameters
from sb3_pgext.rollouts.population import Played, act_together, play_elsewhere, play_together

__all__ = ["Population", "SearchGradient"]

Self = TypeVar("Self", bound="SearchGradient")

_OPTIMIZERS = {"sgd": th.optim.SGD, "adam": th.optim.Adam}


class Population(NamedTuple):
    """
    The members of an update, θ_i = μ + σε_i, and how they did.

    :param noise: ε_i, ``(K, P)``
    :param sigma: σ
    :param fitness: F_i, ``(K,)``
    """

    noise: th.Tensor
    sigma: float
    fitness: th.Tensor


class SearchGradient(PolicyGradientAlgorithm, BaseAlgorithm):
    r"""
    Search gradients (Wierstra et al. 2014; Salimans et al. 2017, arXiv 1703.03864; lecture 000): deterministic policies
    with parameters :math:`\theta_i = \mu + \sigma\varepsilon_i`, :math:`\varepsilon_i \sim N(0, I)`, play whole
    episodes, and one gradient step per population moves the mean μ along

    .. math:: \hat g = \frac{1}{K\sigma} \sum_{i=1}^K F(\mu + \sigma\varepsilon_i) \, \varepsilon_i.

    All members act at once, by one forward pass over their stacked parameters, one member per sub-environment.

    :param policy: The policy model to use (LinearPolicy, MlpPolicy, or an ARSPolicy class of sb3-contrib)
    :param env: The environment to learn from (if registered in Gym, can be str). Best with as many sub-environments as
        there are members: with fewer, each plays several members, one after the other
    :param learning_rate: of the optimizer; can be a function of the remaining progress (from 1 to 0)
    :param n_directions: number of directions ε_i, N. The members of the population are N, with ``antithetic`` K = 2N
    :param sigma: standard deviation σ of the parameters; can be a function of the remaining progress (from 1 to 0)
    :param antithetic: play μ + σε_i and μ − σε_i for each direction
    :param shaping: what becomes of the returns before they are multiplied with the noise: ``"none"``,
        ``"standardized"`` (less their mean, divided by their standard deviation) or ``"ranks"`` (replaced by their
        ranks, from −½ to ½; ĝ is then no longer the gradient of the mean return)
    :param baseline: what is subtracted from a return: ``"none"``, or ``"mean"``, the mean of the other members, which
        leaves ĝ unbiased (with ``antithetic=False`` and ``shaping="none"``, where it matters)
    :param optimizer: torch's: ``"sgd"`` or ``"adam"``
    :param weight_decay: the optimizer's L2 penalty on μ
    :param n_eval_episodes: episodes of each member; F is their mean return
    :param alive_bonus_offset: added to each reward, to cancel a bonus for staying alive
    :param zero_policy: start with μ = 0, as fits a linear policy
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, …) on which the code should be run; "auto" uses the GPU if possible
    :param compile: compile acting: the same actions up to rounding, in less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument is not allowed, or would have no effect beside the others
    """

    batch_argument: ClassVar[str] = "n_directions"
    passed_to_losses: ClassVar[tuple[str, ...]] = ("learning_rate", "sigma")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MlpPolicy, "LinearPolicy": LinearPolicy}
    estimate_options: ClassVar[tuple[str, ...]] = (
        *("n_directions", "sigma", "antithetic", "shaping", "baseline", "n_eval_episodes", "alive_bonus_offset"),
    )
    """The arguments that the estimate depends on while the parameters stay as they are."""

    rollout_buffer = None
    dump_logs = OnPolicyAlgorithm.dump_logs

    def __init__(
        self,
        policy: str | type[ARSPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.02,
        n_directions: int = 8,
        sigma: float | Schedule = 0.05,
        antithetic: bool = True,
        shaping: str = "ranks",
        baseline: str = "none",
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        n_eval_episodes: int = 1,
        alive_bonus_offset: float = 0.0,
        zero_policy: bool = True,
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
            **given(locals()), support_multi_env=True, supported_action_spaces=(spaces.Box, spaces.Discrete)
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        flattens = self.policy_class.make_features_extractor is BasePolicy.make_features_extractor
        suitable = not (isinstance(self.observation_space, spaces.Dict) and flattens)
        allowed = "with Dict observations an ARSPolicy class of your own, whose make_features_extractor takes them"
        require(suitable, "policy", self.policy_class.__name__, allowed)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy = self.policy_class(self.observation_space, self.action_space, **self.policy_kwargs)
        self.policy = policy.to(self.device)
        if self.zero_policy:
            for parameter in self.policy.parameters():
                parameter.data.zero_()
        make: Any = _OPTIMIZERS[self.optimizer]
        self.policy.optimizer = make(self.policy.parameters(), self.lr_schedule(1), weight_decay=self.weight_decay)

    @of_all_ranks
    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any = None,
        n_rollout_steps: int | None = None,
        async_eval: AsyncEval | None = None,
    ) -> bool:
        """
        Draw a population around the mean, and let each member play; it lies in ``population`` afterwards.

        :param env: the training environment
        :param callback: called at each vector step, and at the beginning and end
        :param rollout_buffer: there is none
        :param n_rollout_steps: number of directions, N; None for ``n_directions``
        :param async_eval: processes in which the members play instead
        :return: False if the callback ended the training
        :raises ValueError: an observation, an action, a reward or a parameter is not finite
        """
        with fresh_after_failure(self):
            self.policy.set_training_mode(False)
            require_finite_parameters(self.policy)
            # Before anything is drawn for this update: a checkpoint that is written here has all of it still to come.
            callback.on_rollout_start()
            progress = self._current_progress_remaining
            sigma = FloatSchedule(self.sigma)(progress)
            require_positive(f"sigma at progress {progress:.3g}", sigma)

            mean = th.cat([p.detach().flatten() for p in trainable_parameters(self.policy)])
            n_directions = self.n_directions if n_rollout_steps is None else n_rollout_steps
            self._noise_seed = int(th.randint(2**62, ())) if self.ranks.several else 0
            noise = self._noise(n_directions, len(mean), self._noise_seed)  # ε_i
            played = self._play(mean + sigma * noise, callback, async_eval)
            if played is None:
                return False
            fitness = played.returns + self.alive_bonus_offset * played.lengths  # F_i
            for i in np.flatnonzero(~np.isfinite(fitness))[:1]:
                raise ValueError(f"return={fitness[i]} of member {i}: allowed are finite numbers only")
            self.population = Population(noise, sigma, th.as_tensor(fitness, dtype=mean.dtype, device=self.device))
            self.logger.record("rollout/return_std", fitness.std())
            callback.on_rollout_end()
            return True

    @whole_update
    def train(self) -> None:
        """Take one step of the mean along the search gradient of the population that has just played."""
        self._update_learning_rate(self.policy.optimizer)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/sigma", self.population.sigma)

        parameters = trainable_parameters(self.policy)
        if parameters:  # not all frozen
            self._ascend(self.estimate_gradient(), parameters)

    def estimate_gradient(self) -> th.Tensor:
        r"""
        The gradient that :meth:`train` would step along, without stepping.

        :return: :math:`\hat g` of ``self.population``, ``(P,)``
        """
        noise, sigma, fitness = self.population
        n_members, noises = len(fitness), [noise]
        if self.ranks.several:  # only returns and seeds travel
            seeds = self.ranks.gathered(th.tensor([self._noise_seed])).tolist()
            n_directions = n_members // 2 if self.antithetic else n_members
            noises = [self._noise(n_directions, noise.shape[1], seed) for seed in seeds]
        fitness = SHAPINGS[self.shaping](self.ranks.gathered(fitness))  # F_i, or their ranks, …
        if self.baseline == "mean":
            fitness = leave_one_out(fitness)
        of_ranks = zip(fitness.split(n_members), noises, strict=True)
        return th.stack([search_gradient(f, noise, sigma) for f, noise in of_ranks]).mean(0)  # mean of F_i ε_i / σ

    def _noise(self, n_directions: int, n_parameters: int, seed: int) -> th.Tensor:
        """ε_i of all members, ``(K, P)``; of a rank among several they are those of the seed."""
        generator = th.Generator(self.device).manual_seed(seed) if self.ranks.several else None
        noise = th.randn(n_directions, n_parameters, device=self.device, generator=generator)
        return mirrored(noise) if self.antithetic else noise

    def _play(self, members: th.Tensor, callback: BaseCallback, async_eval: AsyncEval | None) -> Played | None:
        """
        Let the members of a population play.

        :param members: θ_i, ``(K, P)``
        :param callback: see :meth:`collect_rollouts`
        :param async_eval: see there
        :return: their episodes; None if the callback ended the training
        """
        searched = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        parts = members.split([p.numel() for p in searched.values()], dim=1)
        stacked = {name: part.reshape(-1, *p.shape) for (name, p), part in zip(searched.items(), parts, strict=True)}
        if async_eval is None:
            act = self.engine.acting(draw=self._draw)
            return play_together(self, callback, act, stacked, self.n_eval_episodes)
        everything = {name: p.detach().expand(len(members), *p.shape) for name, p in self.policy.named_parameters()}
        vectors = th.cat([x.flatten(1) for x in (everything | stacked).values()], dim=1)
        return play_elsewhere(self, callback, async_eval, vectors, self.n_eval_episodes)

    def _draw(self, observations_and_members: Any) -> tuple[th.Tensor]:
        """The actions of members, ``(E, *action shape)``: see :func:`~sb3_pgext.rollouts.population.act_together`."""
        return (act_together(self.policy, *observations_and_members),)

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        async_eval: AsyncEval | None = None,
    ) -> Self:
        """
        SB3's ``learn``. Whole populations are played, so that a little more than ``total_timesteps`` may be taken.

        :param async_eval: sb3-contrib's, in whose processes the members play instead of in the model's environment. It
            is closed at the end, as by ``ARS``
        """
        self._check_arguments()
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, name, progress_bar
        )
        assert self.env is not None
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps:
            if not self.collect_rollouts(self.env, callback, async_eval=async_eval):
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)  # type: ignore[misc]
            self.train()
        if async_eval is not None:
            async_eval.close()
        callback.on_training_end()
        return self

    def _check_arguments(self) -> None:
        policy = self.policy_class
        name = getattr(policy, "__name__", policy)
        require(isinstance(policy, type) and issubclass(policy, ARSPolicy), "policy", name, "an ARSPolicy class")
        require_schedule("sigma", self.sigma, above_0=True)
        require_bool("antithetic", self.antithetic)
        require_one_of("shaping", self.shaping, tuple(SHAPINGS))
        require_one_of("baseline", self.baseline, ("none", "mean"))
        require_one_of("optimizer", self.optimizer, tuple(_OPTIMIZERS))
        compared = self.shaping != "none" or self.baseline != "none"
        require_count("n_directions", self.n_directions, at_least=2 if compared and not self.antithetic else 1)
        require_number("weight_decay", self.weight_decay, "a finite number >= 0", at_least=0.0)
        require_count("n_eval_episodes", self.n_eval_episodes)
        require_number("alive_bonus_offset", self.alive_bonus_offset, "a finite number")
        require_bool("zero_policy", self.zero_policy)
        super()._check_arguments()

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """See :meth:`~sb3_pgext.algorithms.base.PolicyGradientAlgorithm.ineffective_arguments`."""
        arguments = super().ineffective_arguments()
        if self.antithetic or self.shaping != "none":
            reason = "where it would only scale the gradient: with antithetic=True, where it cancels, or any shaping"
            arguments["baseline"] = ("none", reason)
        return arguments

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "population"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
