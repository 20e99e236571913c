"""The base of every algorithm of the family, over SB3's on-policy and off-policy algorithms alike."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_pgext.algorithms.action_std import require_action_std, set_action_std
from sb3_pgext.algorithms.constructor import arguments_of, check_sb3_arguments, graph_key, sb3_class
from sb3_pgext.arguments import (
    python_number,
    require,
    require_bool,
    require_effective,
    require_number,
    require_one_of,
    require_schedule,
)
from sb3_pgext.engine import CompiledEngine, Engine, replaced_methods
from sb3_pgext.parallel.algorithm import ParallelAlgorithm
from sb3_pgext.parallel.start import begin
from sb3_pgext.rollouts.acting import explain, fresh_after_failure
from sb3_pgext.rollouts.checks import require_observations

__all__ = ["ACTION_SPACES", "PolicyGradientAlgorithm"]

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

Self = TypeVar("Self", bound="PolicyGradientAlgorithm")


class PolicyGradientAlgorithm(ParallelAlgorithm):
    """
    Checks of arguments and the engine, over any of SB3's algorithms.

    A subclass names one of SB3's algorithms as its second base, and hands on the arguments of its constructor by
    ``super().__init__(**given(locals()))``. Those that SB3's constructor does not have become attributes.
    """

    batch_argument: ClassVar[str] = "n_steps"
    """The argument that says how much is collected for an update."""

    suboptions: ClassVar[Mapping[str, str]] = {}
    """Arguments that belong to single values of another one: name → that other one."""

    passed_to_losses: ClassVar[tuple[str, ...]] = ("learning_rate", "action_std")
    """Arguments that compiled losses get with each call, so that their graphs hold for all values."""

    compile: bool = False
    max_grad_norm: float | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The arguments of the constructors."""

    def __init__(self, policy: Any, env: Any, *, _init_setup_model: bool = True, **arguments: Any):
        name = getattr(policy, "__name__", policy)
        require(isinstance(policy, (str, type)), "policy", name, "a name or a policy class")
        if isinstance(policy, str):
            require_one_of("policy", policy, self.policy_aliases)
        check_sb3_arguments(arguments)
        arguments = {name: python_number(value) for name, value in arguments.items()}
        if self.ranks.rank:
            arguments |= {"verbose": 0, "tensorboard_log": None}
        sb3s = inspect.signature(sb3_class(type(self))).parameters
        of_sb3 = {name: value for name, value in arguments.items() if name in sb3s}
        later = {"_init_setup_model": False} if "_init_setup_model" in sb3s else {}
        try:
            super().__init__(policy, env, **of_sb3 | later)
        except gym.error.DependencyNotInstalled:
            raise
        except gym.error.Error as error:
            raise ValueError(f"env={env!r}: allowed is an environment or the id of one. {error}") from error
        for name, value in arguments.items():
            if name not in sb3s:
                setattr(self, name, value)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        require(hasattr(self, "observation_space"), "env", None, "an environment or the id of one")
        self.check_arguments()
        super()._setup_model()  # type: ignore[safe-super]
        set_action_std(self)

    def check_arguments(self) -> None:
        """
        Check all arguments, and that none of them would be ignored beside the others.

        :raises ValueError: naming the argument, its value and what is allowed
        """
        self._check_arguments()
        require_effective(self, self.ineffective_arguments())

    def _check_arguments(self) -> None:
        """
        Check each argument, at construction and when learning begins; subclasses extend this with their own.

        :raises ValueError: naming the argument, its value and what is allowed
        """
        self._check_learning_rate()
        require_bool("compile", self.compile)
        require_action_std(self)

    def _check_learning_rate(self) -> None:
        require_schedule("learning_rate", self.learning_rate)

    def ineffective_arguments(self) -> dict[str, tuple[Any, str]]:
        """
        The arguments that would be ignored beside the others, which is why no other value of them is accepted.

        :return: name → the value that they must have, and the reason
        """
        return {}

    @property
    def engine(self) -> Engine:
        """How functions of the policy are computed and steps are taken, as ``compile`` says."""
        average = self.ranks.average if self.ranks.several else None
        if not self.compile:
            return Engine(self.policy, average)
        return CompiledEngine(self.policy, graph_key(self), self._overridden(), not self.use_sde, average)

    def _overridden(self) -> str | None:
        """The reason why losses are not compiled: a user's class, or the model itself, replaces a method of ours."""
        own = replaced_methods(self, __name__.partition(".")[0]) - _NEVER_TRACED
        return f"{type(self).__name__} overrides {', '.join(sorted(own))}" if own else None

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """SB3's, but never below 0: the last batch may go past the end, where a linear schedule would be negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """SB3's, for a schedule that is a number everywhere."""
        progress = self._current_progress_remaining
        require_schedule(f"learning_rate at progress {progress:.3g}", self.lr_schedule(progress))
        super()._update_learning_rate(optimizers)

    def _setup_learn(self, *arguments: Any, **options: Any) -> tuple[int, BaseCallback]:
        """SB3's, which resets the environment."""
        if self.env is None:
            return super()._setup_learn(*arguments, **options)  # which says so
        begin(self.ranks, self, arguments_of(self))
        with fresh_after_failure(self):
            try:
                begun = super()._setup_learn(*arguments, **options)
            except Exception as error:
                explain(error, self.env, "in a reset")
                raise
            require_observations(self.env, self._last_obs, 0)
            return begun

    def _ascend(self, gradient: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        """Take one optimizer step along ĝ, ``(P,)``, that moves these parameters of the policy and no others."""
        norm = gradient.norm().item()
        require_number("policy gradient norm", norm, f"a finite number (update {self._n_updates})")
        self.logger.record("train/grad_norm", norm)
        self.policy.optimizer.zero_grad(set_to_none=True)
        for p, g in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = -g.view_as(p)
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.policy.optimizer.step()

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """SB3's ``learn``. Whole episodes are finished, so that a little more than ``total_timesteps`` may be taken."""
        self._check_arguments()
        done = 0 if reset_num_timesteps else self.num_timesteps  # SB3 sets the progress after the first rollout only
        self._update_current_progress_remaining(done, max(1, done + total_timesteps))
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(  # type: ignore[safe-super]
            total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar
        )


_NEVER_TRACED = {
    *("train", "learn", "collect_rollouts", "_setup_model", "_check_arguments", "ineffective_arguments"),
    *("_excluded_save_params", "_get_torch_save_params", "_setup_learn", "_on_step"),
}
"""Methods that call losses, or have nothing to do with them."""
