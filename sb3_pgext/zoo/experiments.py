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


def experiment(algo: str, env_id: str, config: Mapping[str, Any], seed: int, folder: Path) -> ExperimentManager:
    """
    rl_zoo3's experiment; the whole configuration is written into the folder.

    :param algo: zoo key of the algorithm
    :param env_id: id of the environment
    :param config: hyperparameters as rl_zoo3 reads them
    :param seed: of everything
    :param folder: where its files go
    :return: the experiment
    """
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({env_id: dict(config)}))
    return ExperimentManager(
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
