"""The frame of every rollout: what comes before and after its steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pgext.rollouts.acting import fresh_after_failure, require_finite_parameters
from sb3_pgext.rollouts.checks import require_observations
from sb3_pgext.rollouts.halves import nothing_ahead

__all__ = ["Collector"]


class Collector(ABC):
    """Plays rollouts with the current policy, and stores them."""

    _playing: int | None = None  # the id of the model: a copy of it in a callback may learn

    def collect(
        self, model: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """
        Play and store one rollout, as SB3's ``collect_rollouts`` does.

        :param model: an on-policy algorithm of this family
        :param env: the training environment
        :param callback: called at each vector step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: number of vector steps, or of whole episodes
        :return: False if the callback ended the training; the steps so far are dropped
        :raises ValueError: an observation, an action, a reward or a parameter of the policy is not finite
        :raises RuntimeError: a callback of the model's rollout has called its ``learn()``
        """
        assert model._last_obs is not None, "No previous observation was provided"
        with self._alone(model), fresh_after_failure(model), nothing_ahead(model, env):
            model.policy.set_training_mode(False)
            require_finite_parameters(model.policy)
            rollout_buffer.buffer_size = n_rollout_steps  # which may have changed since the last rollout
            rollout_buffer.reset()
            # Before anything is drawn for this rollout: a checkpoint that is written here has all of it still to come.
            callback.on_rollout_start()
            self._begin(model, env)
            require_observations(env, model._last_obs, 0)
            if model.use_sde:
                model.policy.reset_noise(env.num_envs)
            seen = {"self": model, "env": env, "callback": callback, "rollout_buffer": rollout_buffer}
            seen |= {"n_rollout_steps": n_rollout_steps, "values": None, "log_probs": None}
            if not self._play(model, env, callback, rollout_buffer, seen):
                return False
            self._finish(model, callback, rollout_buffer, seen)
            return True

    @contextmanager
    def _alone(self, model: Any) -> Iterator[None]:
        if self._playing == id(model):
            raise RuntimeError(
                "learn() in a callback of a rollout of the same model: allowed is another one, or a copy"
            )
        self._playing = id(model)
        try:
            yield
        finally:
            self._playing = None

    def _begin(self, model: Any, env: VecEnv) -> None:  # noqa: B027  nothing, where a rollout goes on with an episode
        """Prepare the environment for the rollout."""

    @abstractmethod
    def _play(self, model: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, seen: dict[str, Any]) -> bool:
        """Play and store the steps, and show each to the callback among its ``locals``; False if that ends it."""

    @abstractmethod
    def _finish(self, model: Any, callback: BaseCallback, rollout_buffer: Any, seen: dict[str, Any]) -> None:
        """Hand over the rollout, and call the callback at its end."""
