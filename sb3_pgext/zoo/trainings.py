"""rl_zoo3's training with checkpoints, and going on from one."""

import contextlib
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rl_zoo3.train
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList, EvalCallback

from sb3_pgext.checkpoints import CheckpointCallback, resume
from sb3_pgext.parallel import present
from sb3_pgext.zoo.experiments import Experiment

__all__ = ["checkpoints_folder", "continued", "trainings"]

_SAME_NAME = ["algo", "log_folder", "tensorboard_log", "n_timesteps", "eval_freq", "save_freq", "env_kwargs"]
_SAME_NAME += ["eval_env_kwargs", "seed", "log_interval", "save_replay_buffer", "verbose", "n_eval_envs", "device"]
_ARGUMENTS = {name: name for name in _SAME_NAME}
_ARGUMENTS |= {"env": "env_id", "eval_episodes": "n_eval_episodes", "vec_env": "vec_env_type"}
_ARGUMENTS |= {"progress": "show_progress"}
"""Argument of a training → the parameter of rl_zoo3's experiment that it becomes."""


def checkpoints_folder(run: Path) -> Path:
    """
    Find the checkpoints of a run.

    :param run: the folder of the run
    :return: the folder of its checkpoints
    """
    return run / "checkpoints"


def trainings(checkpoint_every: int, vec_env: str | None) -> contextlib.AbstractContextManager[Any]:
    """
    Replace rl_zoo3's trainings by ours, whose configurations may say more, and which write checkpoints.

    :param checkpoint_every: environment steps between two of them; 0 or less for none
    :param vec_env: the kind of vectorised environment; None for what the configuration says
    :return: context
    """
    return mock.patch.object(rl_zoo3.train, "ExperimentManager", partial(_Training, checkpoint_every, vec_env=vec_env))


def continued(folder: Path, config: dict[str, Any], args: dict[str, Any], trust: bool | None) -> None:
    """
    Go on with a training of rl_zoo3 that wrote checkpoints, to its end.

    :param folder: of the run
    :param config: its configuration
    :param args: the arguments that it was started with
    :param trust: see :func:`sb3_pgext.resume`
    :raises ValueError: there is no checkpoint, or it does not fit
    """
    manager = _Continuation(folder, config, args)
    model = manager.resumed(trust)
    manager.learn(model)
    if present().rank == 0:
        manager.save_trained_model(model)


class _Training(Experiment):
    """
    An experiment that also writes checkpoints.

    :param every: environment steps between two of them; 0 or less for none
    :param arguments: rl_zoo3's
    :param options: rl_zoo3's
    """

    def __init__(self, every: int, args: Namespace, *arguments: Any, **options: Any):
        if every > 0:
            args.checkpoint_every = every  # is saved with the others
        super().__init__(args, *arguments, **options)
        self._every = every

    def create_callbacks(self) -> None:
        super().create_callbacks()
        if self._every > 0 and not self.optimize_hyperparameters:
            checkpoints = CheckpointCallback(self._every, checkpoints_folder(Path(self.save_path)))
            # Not the first: that one is told of the training's end also when it was in the middle of an update.
            self.callbacks = [CallbackList(self.callbacks[:1]), checkpoints, *self.callbacks[1:]]


class _Continuation(_Training):
    """
    A training that has begun already.

    :param folder: of the run
    :param config: its configuration
    :param args: the arguments that it was started with
    """

    def __init__(self, folder: Path, config: dict[str, Any], args: dict[str, Any]):
        parameters = {parameter: args[name] for name, parameter in _ARGUMENTS.items()}
        super().__init__(args["checkpoint_every"], Namespace(**args), **parameters)
        self._config = config
        self.save_path, self.params_path = str(folder), str(folder / self.env_name)

    def resumed(self, trust: bool | None) -> BaseAlgorithm:
        """
        Load the latest checkpoint, with the environment and callbacks of the run.

        :param trust: see :func:`sb3_pgext.resume`
        :return: the model
        """
        preprocessed = self._preprocess_hyperparams(dict(self._config))
        _, self.env_wrapper, self.callbacks, self.vec_env_wrapper = preprocessed
        self.create_callbacks()
        self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        env = self.create_envs(self.n_envs)
        model = resume(checkpoints_folder(Path(self.save_path)), env, self.device, trust)
        self.n_timesteps = model._total_timesteps
        first, *others = self.callbacks
        assert isinstance(first, CallbackList)
        for callback in [*first.callbacks, *others]:
            if isinstance(callback, EvalCallback):
                _continue_evaluations(callback, model)
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """Train as rl_zoo3 does, which begins at step 0, for the steps that are left."""
        options: dict[str, Any] = {"log_interval": self.log_interval} if self.log_interval > -1 else {}
        assert model.env is not None
        with contextlib.closing(model.env), contextlib.suppress(KeyboardInterrupt):
            rest = self.n_timesteps - model.num_timesteps
            model.learn(rest, self.callbacks, reset_num_timesteps=False, **options)


def _continue_evaluations(callback: EvalCallback, model: BaseAlgorithm) -> None:
    """Give a callback the evaluations until the checkpoint, and when the next one is due, as if it had made them."""
    callback.n_calls = model.num_timesteps // model.n_envs
    path = Path(f"{callback.log_path}.npz")
    if not path.is_file():
        return
    with np.load(path, allow_pickle=False) as saved:
        before = saved["timesteps"] <= model.num_timesteps
        callback.evaluations_timesteps = saved["timesteps"][before].tolist()
        callback.evaluations_results = saved["results"][before].tolist()
        callback.evaluations_length = saved["ep_lengths"][before].tolist()
    means = [float(np.mean(results)) for results in callback.evaluations_results]
    callback.best_mean_reward = max(means, default=-np.inf)
