"""Models as rl_zoo3 makes them from a configuration: with its wrappers, schedules and normalisation."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pgext.zoo.names import check_environment, check_name
from sb3_pgext.zoo.vec_envs import VEC_ENVS, VecEnvFactory, vec_env_class


class Experiment(ExperimentManager):
    """
    rl_zoo3's experiment; its configuration may also say which kind of vectorised environment it has: ``vec_env``.

    :param arguments: rl_zoo3's
    :param vec_env: the kind, laid over the configuration; None for what it says
    :param keywords: rl_zoo3's
    """

    def __init__(self, *arguments: Any, vec_env: str | None = None, **keywords: Any):
        super().__init__(*arguments, **keywords)
        if vec_env is not None:
            self.custom_hyperparams = {**(self.custom_hyperparams or {}), "vec_env": vec_env}
        self._vec_env: str | None = None

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if "vec_env" in hyperparams:
            self._vec_env = check_name("vec_env", hyperparams.pop("vec_env"), VEC_ENVS)
        return super()._preprocess_hyperparams(hyperparams)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Make an environment of the kind that the configuration says, with all its wrappers.

        :param n_envs: number of sub-environments
        :param eval_env: whether it is for evaluation: it has its own settings, and does not normalise rewards
        :param no_log: whether its episodes are not written to files
        :return: the environment
        :raises ValueError: the configuration asks for what this kind cannot do
        """
        if self._vec_env is not None:
            kwargs = self.eval_env_kwargs if eval_env else self.env_kwargs
            log_folder = None if eval_env or no_log else Path(self.save_path)
            factory = VecEnvFactory(self.env_name.gym_id, kwargs, self.env_wrapper, self.monitor_kwargs, log_folder)
            self.vec_env_class = vec_env_class(self._vec_env, factory)  # type: ignore[assignment]
        return super().create_envs(n_envs, eval_env, no_log)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.trained_agent:
            return super()._maybe_normalize(env, eval_env)
        # Without a trained agent rl_zoo3 would unpickle statistics that happen to lie in the current folder.
        if not self.normalize:
            return env
        for_evaluation = {"norm_reward": False, "training": False} if eval_env else {}
        return VecNormalize(env, **{**self.normalize_kwargs, **for_evaluation})


def experiment(algo: str, env_id: str, config: Mapping[str, Any], seed: int, folder: Path) -> Experiment:
    """
    rl_zoo3's experiment; the whole configuration is written into the folder.

    :param algo: zoo key of the algorithm
    :param env_id: id of the environment
    :param config: hyperparameters as rl_zoo3 reads them
    :param seed: of everything
    :param folder: where its files go
    :return: the experiment
    :raises ValueError: the environment is unknown
    """
    check_environment(env_id)
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({env_id: dict(config)}))
    return Experiment(
        Namespace(algo=algo, env=env_id, seed=seed, env_kwargs=None),
        algo,
        env_id,
        log_folder=str(folder),
        eval_freq=-1,
        seed=seed,
        verbose=0,
        config=str(path),
    )


@contextlib.contextmanager
def model_of(manager: ExperimentManager) -> Iterator[BaseAlgorithm]:
    """
    :param manager: an experiment that trains
    :return: context of its model; the environment is closed with it
    """
    results = manager.setup_experiment()
    assert results is not None, "only a search for hyperparameters has no model"
    model: BaseAlgorithm = results[0]
    assert model.env is not None
    with contextlib.closing(model.env):
        yield model


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """In worker processes: it is the runs that are parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
