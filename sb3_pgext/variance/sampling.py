"""Frozen policies, and samples of their gradients."""

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import torch as th
from rich.console import Console
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext.diagnostics import estimated_gradient, gradient_samples, policy_parameters, set_options
from sb3_pgext.envs import TabularMDP
from sb3_pgext.variance.study import VarianceStudy
from sb3_pgext.zoo.console import LINE_SECONDS, Every
from sb3_pgext.zoo.experiments import quiet_model
from sb3_pgext.zoo.names import import_environments

_BATCHES_PER_TASK = 20
_SAMPLING_SEED_OFFSET = 2_000_000
_SEED_STRIDE = 500
"""Between batches: sub-environment e of a task has the seed of its first batch + e, and no two tasks may share one."""


Cell = tuple[int, int]
"""A step count of the study, and the index of a value."""


def sample_all(
    study: VarianceStudy, jobs: int, console: Console
) -> tuple[dict[Cell, th.Tensor], dict[Cell, th.Tensor | None]]:
    """
    Train once, freeze the policy at the given steps, and sample its gradient under each value of the option.

    :param study: what to measure
    :param jobs: worker processes
    :param console: where to show the progress
    :return: for each step count and value the gradients ``(n_batches, P)``, the same random numbers behind the batches
        of all values; and the exact gradients ``(P,)``, None where there is none
    """
    cells = list(product(study.at_steps, range(len(study.values))))
    samples: dict[Cell, list[th.Tensor]] = {cell: [] for cell in cells}
    exact: dict[Cell, th.Tensor | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        with console.status(f"training for {max(study.at_steps):,} steps"):
            save_snapshots(study, Path(folder))
        line_is_due = Every(LINE_SECONDS)
        tasks = list(product(cells, range(0, study.n_batches, _BATCHES_PER_TASK)))
        # Their results come in the order of the tasks.
        workers = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator")
        results = workers(joblib.delayed(sample)(study, Path(folder), *cell, first) for cell, first in tasks)
        shown = track(results, "gradient batches", len(tasks), console=console, disable=not console.is_terminal)
        for (cell, _), (batches, exact[cell]) in zip(tasks, shown, strict=True):
            samples[cell].append(batches)
            if not console.is_terminal and line_is_due():
                console.print(f"{sum(map(len, samples.values())) / len(tasks):.0%} of the gradient batches")
    return {cell: th.cat(parts) for cell, parts in samples.items()}, exact


class _Snapshots(BaseCallback):
    """Save the model at the first rollout that starts at or after each of some step counts, then end the training."""

    def __init__(self, at_steps: Sequence[int], folder: Path):
        super().__init__()
        self._left = list(at_steps)
        self._folder = folder

    def _on_rollout_start(self) -> None:
        while self._left and self._left[0] <= self.num_timesteps:
            path = self._folder / str(self._left.pop(0))
            self.model.save(path.with_suffix(".zip"))
            if (normalizer := self.model.get_vec_normalize_env()) is not None:
                normalizer.save(str(path.with_suffix(".pkl")))

    def _on_training_end(self) -> None:
        self._on_rollout_start()  # the last batch may have reached the last count

    def _on_step(self) -> bool:
        return bool(self._left)


def save_snapshots(study: VarianceStudy, folder: Path) -> None:
    """
    Train, and save the model at each step count of the study.

    :param study: what to measure
    :param folder: where the models go
    """
    with quiet_model(study.algo, study.environment, study.config, study.seed) as model:
        options = study.options(study.values[0])
        set_options(model, **{name: options[name] for name in ("critic",) if name in options})
        n_timesteps = max(int(study.config["n_timesteps"]), max(study.at_steps) + 1)
        model.learn(n_timesteps, callback=_Snapshots(study.at_steps, folder))
    if study.option == "critic":
        for steps, index in product(study.at_steps, range(len(study.values))):
            _save_with_critic(study, folder, steps, index)


def _save_with_critic(study: VarianceStudy, folder: Path, steps: int, index: int) -> None:
    """
    Save the policy of a snapshot with a new critic, fitted to as many steps of this policy as it was trained for: the
    same ones for the critics of all values.
    """
    with quiet_model(study.algo, study.environment, study.config, study.seed) as model:
        set_options(model, critic=study.values[index])
        of_policy = policy_parameters(model.policy)
        trained: Any = load_from_zip_file(folder / str(steps))[1]["policy"]
        model.policy.load_state_dict({name: trained[name] for name in of_policy}, strict=False)
        _restore_normalization(model, folder / str(steps))
        model.set_random_seed(study.seed)
        for parameter in of_policy.values():
            parameter.requires_grad_(False)
        model.learn(steps)
        model.save(folder / f"{steps}-{index}")


def sample(
    study: VarianceStudy, folder: Path, steps: int, index: int, first: int
) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Sample some gradient batches of one snapshot under one value.

    :param study: what to measure
    :param folder: of the snapshots
    :param steps: step count of the snapshot
    :param index: of the value
    :param first: number of the first batch among those of the same snapshot and value
    :return: the gradients ``(B, P)``, and the exact gradient ``(P,)`` where it can be had
    """
    import_environments(study.gym_packages)
    n_batches = min(_BATCHES_PER_TASK, study.n_batches - first)
    seed = study.seed + _SAMPLING_SEED_OFFSET + first * _SEED_STRIDE
    with quiet_model(study.algo, study.environment, study.config, seed) as model:
        set_options(model, **study.options(study.values[index]))
        of_value = study.option == "critic"
        model.set_parameters(folder / (f"{steps}-{index}" if of_value else str(steps)))
        normalizer = _restore_normalization(model, folder / str(steps))
        if of_value:  # which has taken random numbers of its own
            model.set_random_seed(seed)
        samples = gradient_samples(model, n_batches)
        env: Any = model.env.unwrapped
        mdp = env.envs[0].unwrapped if hasattr(env, "envs") else None
        in_its_units = normalizer is None or not normalizer.norm_reward
        exact = estimated_gradient(model, mdp) if isinstance(mdp, TabularMDP) and in_its_units else None
    return samples.cpu(), exact


def _restore_normalization(model: Any, path: Path) -> VecNormalize | None:
    """Give the environment of a model the statistics of a snapshot, which stay as they are."""
    normalizer: VecNormalize | None = model.get_vec_normalize_env()
    if normalizer is not None:
        saved = VecNormalize.load(str(path.with_suffix(".pkl")), normalizer.venv)
        normalizer.ret_rms, normalizer.training = saved.ret_rms, False
        if normalizer.norm_obs:
            normalizer.obs_rms = saved.obs_rms
    return normalizer
