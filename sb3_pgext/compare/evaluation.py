"""Evaluation during training: at the same step counts for every algorithm, outside the training clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_pgext.compare.study import Evaluation
from sb3_pgext.rollouts.episodes import MAX_STEPS_WITHOUT_END


@dataclass(frozen=True)
class Measurement:
    """
    Result of an evaluation of a policy.

    :param timesteps: the environment steps at which it was due
    :param true_timesteps: the environment steps actually taken
    :param mean_return: mean undiscounted return of the episodes
    :param std_return: standard deviation of the episodes' returns
    :param episodes: number of episodes
    :param training_seconds: seconds of training until then, without the evaluations
    """

    timesteps: int
    true_timesteps: int
    mean_return: float
    std_return: float
    episodes: int
    training_seconds: float


def due_timesteps(frequency: int, n_timesteps: int) -> list[int]:
    """
    List the step counts to evaluate at: 0, each multiple of the frequency, and the end.

    :param frequency: environment steps between evaluations
    :param n_timesteps: environment steps of the run
    :return: the step counts, ascending
    """
    return [*range(0, n_timesteps, frequency), n_timesteps]


class EvaluateAtTimesteps(BaseCallback):
    """
    Evaluate the policy when its training reaches given step counts, and end the training at the last.

    The policy is evaluated as it is when the count is reached. Ending there means that no algorithm learns from
    more environment steps than another, whether it collects fixed-length rollouts or whole episodes.

    :param env: the evaluation environment, seeded apart from the training environment
    :param evaluation: episodes and kind of evaluation
    :param due: step counts, ascending; the first is 0
    :param on_progress: called with the environment steps taken and the evaluations made, after each vector step
    """

    def __init__(self, env: VecEnv, evaluation: Evaluation, due: list[int], on_progress: Callable[[int, int], None]):
        super().__init__()
        self.measurements: list[Measurement] = []
        self._env = env
        self._evaluation = evaluation
        self._due = due
        self._on_progress = on_progress
        self._started = 0.0
        self._evaluation_seconds = 0.0

    @property
    def complete(self) -> bool:
        """True when all evaluations have been made."""
        return len(self.measurements) == len(self._due)

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._evaluate_if_due()

    def _on_step(self) -> bool:
        self._evaluate_if_due()
        self._on_progress(self.num_timesteps, len(self.measurements))
        return not self.complete

    def _on_training_end(self) -> None:
        self._evaluate_if_due()  # other ranks have taken steps of the last rollout, too

    def _evaluate_if_due(self) -> None:
        """Evaluate if a count has been reached. One vector step may pass several: they share one evaluation."""
        due = [steps for steps in self._due[len(self.measurements) :] if steps <= self.num_timesteps]
        if not due:
            return
        before = time.perf_counter()
        training_seconds = before - self._started - self._evaluation_seconds
        returns = self._returns()
        self._evaluation_seconds += time.perf_counter() - before
        mean, std = float(np.mean(returns)), float(np.std(returns))
        self.measurements += [
            Measurement(steps, self.num_timesteps, mean, std, len(returns), training_seconds) for steps in due
        ]

    def _returns(self) -> list[float]:
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self._env)
        returns, _ = evaluate_policy(
            self.model,
            self._env,
            n_eval_episodes=self._evaluation.episodes,
            deterministic=self._evaluation.deterministic,
            callback=_require_an_end,
            return_episode_rewards=True,
        )
        assert isinstance(returns, list)
        return returns


def _require_an_end(evaluation: dict[str, Any], _: dict[str, Any]) -> None:
    """
    Refuse an episode without end.

    :param evaluation: the local variables of SB3's ``evaluate_policy``, after a step of sub-environment ``i``
    :raises RuntimeError: its episode has no end
    """
    if evaluation["current_lengths"][evaluation["i"]] > MAX_STEPS_WITHOUT_END:
        advice = "Register the environment with `max_episode_steps`, or wrap it in gymnasium.wrappers.TimeLimit"
        raise RuntimeError(f"An episode of the evaluation is longer than {MAX_STEPS_WITHOUT_END:,} steps. {advice}.")
