"""SB3's ``VecNormalize`` for environments that speak tensors."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_pgext.arguments import require
from sb3_pgext.vec_envs.tensors import NumpySide, TensorStep, TensorVecEnv, as_arrays, at_hand

__all__ = ["TensorVecNormalize"]


class TensorVecNormalize(NumpySide, VecNormalize):
    """
    SB3's ``VecNormalize`` on the environment's device, with its arguments, attributes, ``save`` and ``load``.

    On a GPU ``obs_rms`` and ``ret_rms`` show what has been seen when the rollout ends.

    :param venv: a :class:`TensorVecEnv`
    :param arguments: of ``VecNormalize``
    :param options: of ``VecNormalize``
    :raises ValueError: the environment is another one
    """

    def __init__(self, venv: TensorVecEnv, *arguments: Any, **options: Any):
        require(isinstance(venv, TensorVecEnv), "venv", venv, "a TensorVecEnv; others have SB3's VecNormalize")
        self._moved: dict[int, tuple[RunningMeanStd, th.Tensor, th.Tensor]] = {}
        super().__init__(venv, *arguments, **options)

    @property
    def base(self) -> TensorVecEnv:
        """The environment that is wrapped."""
        assert isinstance(self.venv, TensorVecEnv)
        return self.venv

    def __getstate__(self) -> dict[str, Any]:
        self.hand_over()
        return super().__getstate__()

    def hand_over(self) -> None:
        """Show the statistics in ``obs_rms`` and ``ret_rms``, as arrays."""
        for rms, mean, var in self._moved.values():
            rms.mean, rms.var = mean.numpy(force=True), var.numpy(force=True)
        self._moved.clear()

    def reset_tensors(self) -> PyTorchObs:
        """See :meth:`TensorVecEnv.reset_tensors`."""
        self._moved.clear()  # of a rollout that has failed
        observations = self._first = self.base.reset_tensors()
        self.returns: Any = np.zeros(self.num_envs)
        if self.training:
            self._learn_observations(observations)
        self.hand_over()
        return self._normalized(observations)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Step all sub-environments.

        :param actions: ``(E, *action shape)``
        :return: the normalised step
        """
        observations, rewards, terminated, truncated, final_observations = self.base.step_tensors(actions)
        if self.training:
            self._learn_observations(observations)
            self.returns = th.as_tensor(self.returns, device=rewards.device) * self.gamma + rewards
            self._learn(self.ret_rms, self.returns)
            self.returns = self.returns * ~self.base.ended
        if self.norm_reward:
            _, var = self._moments(self.ret_rms)
            rewards = (rewards / (var + self.epsilon).sqrt()).clamp(-self.clip_reward, self.clip_reward)
        observations, final_observations = self._normalized(observations), self._normalized(final_observations)
        if at_hand(self.base.device):
            self.hand_over()
        return TensorStep(observations, rewards.float(), terminated, truncated, final_observations)

    def reset(self) -> Any:
        """See SB3's ``VecNormalize``."""
        observations = self.reset_tensors()
        self.old_obs = as_arrays(self._first)
        return as_arrays(observations)

    def step_wait(self) -> VecEnvStepReturn:
        """See SB3's ``VecNormalize``."""
        result = super().step_wait()
        self.hand_over()
        self.old_obs, self.old_reward = (as_arrays(x) for x in self.base.last_step[:2])
        return result

    def _learn_observations(self, observations: PyTorchObs) -> None:
        if self.norm_obs:
            statistics: Any = self.obs_rms
            for key, rms in statistics.items() if isinstance(statistics, dict) else ((None, statistics),):
                self._learn(rms, observations if key is None else observations[key])

    def _learn(self, rms: RunningMeanStd, x: Any) -> None:
        """Take in a batch, ``(E, …)``, as SB3 does (Chan et al. 1983)."""
        (mean, var), n, total = self._moments(rms), len(x), rms.count + len(x)
        batch_var, batch_mean = th.var_mean(x.double(), 0, correction=0)
        delta = batch_mean - mean
        mean = mean + delta * (n / total)
        var = (var * rms.count + batch_var * n + delta.square() * (rms.count * n / total)) / total
        self._moved[id(rms)], rms.count = (rms, mean, var), total

    def _moments(self, rms: RunningMeanStd) -> tuple[th.Tensor, th.Tensor]:
        """Mean and variance on the device."""
        if id(rms) not in self._moved:
            mean, var = (th.as_tensor(x, device=self.base.device) for x in (rms.mean, rms.var))
            self._moved[id(rms)] = rms, mean, var
        return self._moved[id(rms)][1:]

    def _normalized(self, observations: PyTorchObs) -> Any:
        statistics: Any = self.obs_rms if self.norm_obs else {}
        if not isinstance(observations, dict):
            return self._scaled(observations, statistics) if statistics else observations
        return {key: self._scaled(x, statistics[key]) if key in statistics else x for key, x in observations.items()}

    def _scaled(self, x: th.Tensor, rms: RunningMeanStd) -> th.Tensor:
        mean, var = self._moments(rms)
        return ((x - mean) / (var + self.epsilon).sqrt()).clamp(-self.clip_obs, self.clip_obs).float()
