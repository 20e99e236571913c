"""``sb3-pgext variance``: how noisy, and how biased, the gradient is under each value of an option."""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch as th
import yaml
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pgext.arguments import require
from sb3_pgext.compare.display import LINE_SECONDS, show_notes
from sb3_pgext.compare.plots import plot_variances
from sb3_pgext.compare.study import configuration_notes, merge
from sb3_pgext.diagnostics import Interval, estimated_gradient, gradient_samples, gradient_statistics, set_options
from sb3_pgext.envs import TabularMDP
from sb3_pgext.zoo import ALGORITHMS, check_environment, check_name, read_config
from sb3_pgext.zoo.configs import check_keys
from sb3_pgext.zoo.experiments import experiment, model_of, one_torch_thread
from sb3_pgext.zoo.names import import_environments

_BATCHES_PER_TASK = 20
_SAMPLING_SEED_OFFSET = 2_000_000
_SEED_STRIDE = 10_000
"""Between tasks: sub-environment e of a task has the task's seed + e, and no two tasks may share one."""
_FILE_WIDTH = 120
_SIZE_FLAGS = {"n_episodes": "--episodes", "n_steps": "--steps"}
"""The flag for the size of a batch, by what an algorithm collects."""


@dataclass(frozen=True)
class VarianceStudy:
    """
    One option of one algorithm, on one environment.

    :param algo: zoo key of an algorithm of ours
    :param environment: id of the environment
    :param option: the option that is varied
    :param values: the values that it takes
    :param config: the hyperparameters of the training, as rl_zoo3 reads them
    :param at_steps: environment steps of training after which the policy is frozen
    :param n_batches: gradient batches for each value and step count
    :param size: of such a batch, in what the algorithm collects: episodes, or steps of each sub-environment; None for
        the configuration's
    :param seed: of the training; the batches have seeds of their own, the same for all values
    :param reference: the value whose mean gradient the bias of the others is measured against; None for the exact
        gradient, where there is one
    :param common: options that all values share although the configuration says otherwise, because one of the values
        allows nothing else: the estimates are to differ in one ingredient
    :param gym_packages: modules that register the environment
    :param notes: on a configuration that is not of the environment
    """

    algo: str
    environment: str
    option: str
    values: tuple[Any, ...]
    config: Mapping[str, Any]
    at_steps: tuple[int, ...] = (0,)
    n_batches: int = 200
    size: int | None = None
    seed: int = 0
    reference: Any = None
    common: Mapping[str, Any] = field(default_factory=dict)
    gym_packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse_study(
    algo: str,
    environment: str,
    vary: str,
    at_steps: str = "0",
    n_batches: int = 200,
    n_episodes: int | None = None,
    seed: int = 0,
    conf_file: str | None = None,
    params: Mapping[str, Any] | None = None,
    n_steps: int | None = None,
    reference: str | None = None,
    gym_packages: Sequence[str] = (),
) -> VarianceStudy:
    """
    :param algo: zoo key of an algorithm of ours
    :param environment: id of the environment
    :param vary: ``"option=value,value,…"``, the values as in YAML
    :param at_steps: step counts, separated by commas
    :param n_batches: see :class:`VarianceStudy`
    :param n_episodes: episodes of a batch, for an algorithm that collects episodes; None for the configuration's
    :param seed: see :class:`VarianceStudy`
    :param conf_file: configuration file; default: that of the algorithm
    :param params: laid over the configuration; None takes a key out of it
    :param n_steps: steps of each sub-environment of a batch, for an algorithm that collects steps; None for the
        configuration's
    :param reference: one of the values, see :class:`VarianceStudy`
    :param gym_packages: see :class:`VarianceStudy`
    :return: the study, each of its values known to be allowed
    :raises ValueError: a name is unknown, or a value not allowed
    """
    check_name("algorithm", algo, ALGORITHMS)
    measurable = [key for key, known in ALGORITHMS.items() if hasattr(known, "estimate_options")]
    require(
        algo in measurable, "--algo", algo, f"{', '.join(measurable)}, whose update is one estimate of the gradient"
    )
    import_environments(gym_packages)
    check_environment(environment)
    option, separator, values = vary.partition("=")
    if not separator or not values:
        raise ValueError(f"--vary {vary!r}: allowed is OPTION=VALUE,VALUE,…")
    check_name("option to vary", option, ALGORITHMS[algo].estimate_options)  # type: ignore[attr-defined]
    if n_batches < 3:
        raise ValueError(f"--batches {n_batches}: allowed is a whole number >= 3")
    check_keys(algo, params or {}, "--params")
    parsed = tuple(parse_value(value) for value in values.split(","))
    if reference is not None and parse_value(reference) not in parsed:
        raise ValueError(f"--reference {reference}: allowed is one of the values of {option}: {values}")
    study = VarianceStudy(
        algo,
        environment,
        option,
        parsed,
        merge(read_config(algo, environment, conf_file), params or {}),
        _step_counts(at_steps),
        n_batches,
        _size(algo, {"n_episodes": n_episodes, "n_steps": n_steps}),
        seed,
        None if reference is None else parse_value(reference),
        gym_packages=tuple(gym_packages),
        notes=configuration_notes([(algo, algo, environment)], conf_file),
    )
    return replace(study, common=_check_values(study))


def variance(study: VarianceStudy, out: Path | None = None, jobs: int | None = None) -> None:
    """
    Train once, freeze the policy at the given steps, and sample its gradient under each value of the option.

    Writes ``variance.csv`` and ``variance.png`` and ``.svg``, and prints the table. Per value and step count: the trace
    of the covariance of ĝ, its signal-to-noise ratio, the cosine of single estimates with the mean of the others, and
    the bias, against the exact gradient of a finite MDP or the mean gradient of the reference; each as in
    :class:`sb3_pgext.diagnostics.GradientStatistics`.

    :param study: what to measure
    :param out: folder of the results; default: ``runs/variance/<algorithm>_<environment>_<option>``
    :param jobs: worker processes; default: one per core
    """
    out = out or Path("runs/variance") / f"{study.algo}_{study.environment.replace('/', '-')}_{study.option}"
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    show_notes(study.notes, console)
    for name, value in study.common.items():
        console.print(f"{name}={value!r} for all values of {study.option}, so that they differ in nothing else")
    normalized = {**study.config, **study.common}.get("normalize_advantage", False)
    if normalized and study.option != "normalize_advantage":
        console.print(
            "normalize_advantage=True scales the estimate; --params normalize_advantage=false measures it plain"
        )
    with tempfile.TemporaryDirectory() as folder:
        table = _measure(study, Path(folder), jobs or joblib.cpu_count(), console)
    table.to_csv(out / "variance.csv.new", index=False)
    (out / "variance.csv.new").replace(out / "variance.csv")
    title = f"{study.algo} on {study.environment}"
    plot_variances(table, study.option, title, _name_of_reference(study), out / "variance")
    console.print(_printed(table, study))
    console.print(f"written to {out}: variance.csv, variance.png and .svg")


def parse_value(text: str) -> Any:
    """
    :param text: a value as in YAML
    :return: the value; also ``1e-3`` is a number, which YAML 1.1 takes for text
    """
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _size(algo: str, given: Mapping[str, int | None]) -> int | None:
    collected = ALGORITHMS[algo].batch_argument  # type: ignore[attr-defined]
    for argument, size in given.items():
        if size is not None and argument != collected:
            flag, allowed = _SIZE_FLAGS[argument], _SIZE_FLAGS[collected]
            raise ValueError(f"{flag} {size}: allowed is {allowed} for {algo}, whose batches are set by {collected}")
    return given[collected]


def _step_counts(text: str) -> tuple[int, ...]:
    counts = text.split(",")
    if not all(count.strip().isdigit() for count in counts):
        raise ValueError(f"--at-steps {text!r}: allowed are whole numbers >= 0, separated by commas")
    return tuple(sorted({int(count) for count in counts}))


def _check_values(study: VarianceStudy) -> dict[str, Any]:
    """Refuse what cannot be measured before anything is trained, and say what all values have to share."""
    common: dict[str, Any] = {}
    bootstraps = set()
    with tempfile.TemporaryDirectory() as folder, _quiet(), _model(study, Path(folder), study.seed) as model:
        for value in study.values:
            changed = set_options(model, **_options(study, value))
            # What belongs to single values of the option is no difference beside it.
            shared = [name for name in type(model).estimate_options if type(model).suboptions.get(name) != study.option]
            common |= {name: only for name, only in changed.items() if name in shared}
            bootstraps.add(getattr(model, "bootstraps", True))
    # Without being told, only a critic bootstraps, which would be a second difference between the values.
    if len(bootstraps) > 1 and study.option != "truncation" and "truncation" not in study.config:
        common["truncation"] = "terminal"
    return common


def _options(study: VarianceStudy, value: Any) -> dict[str, Any]:
    batch_argument = ALGORITHMS[study.algo].batch_argument  # type: ignore[attr-defined]
    batch = {} if study.size is None else {batch_argument: study.size}
    return {**study.common, **batch, study.option: value}


@contextlib.contextmanager
def _model(study: VarianceStudy, folder: Path, seed: int) -> Iterator[Any]:
    manager = experiment(study.algo, study.environment, study.config, seed, folder)
    with model_of(manager) as model:
        yield model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what rl_zoo3 prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _measure(study: VarianceStudy, folder: Path, jobs: int, console: Console) -> pd.DataFrame:
    """One row per step count and value."""
    n_tasks = -(-study.n_batches // _BATCHES_PER_TASK)
    tasks = list(product(study.at_steps, range(len(study.values)), range(n_tasks)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    samples: dict[tuple[int, int, int], th.Tensor] = {}
    exact: dict[tuple[int, int], th.Tensor | None] = {}
    next_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        training = bar.add_task("training", total=max(study.at_steps))
        _save_snapshots(study, folder, lambda steps: bar.update(training, completed=steps))
        sampling = bar.add_task("gradient batches", total=len(study.at_steps) * len(study.values) * study.n_batches)
        workers = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        for task, batch, target in workers(joblib.delayed(_sample)(study, folder, task) for task in tasks):
            samples[task] = batch
            exact[task[:2]] = target
            bar.advance(sampling, len(batch))
            next_line = _line_now_and_then(bar, sampling, console, next_line)
    # In the order of the tasks: the batches of all values come from the same seeds, one by one.
    of_value = {
        (steps, index): th.cat([samples[steps, index, part] for part in range(n_tasks)])
        for steps, index in product(study.at_steps, range(len(study.values)))
    }
    rows = []
    for steps, index in product(study.at_steps, range(len(study.values))):
        reference = exact[steps, index]
        if study.reference is not None:
            reference = of_value[steps, study.values.index(study.reference)]
        statistics = gradient_statistics(of_value[steps, index], reference)
        row = {
            "option": study.option,
            "value": str(study.values[index]),
            "steps": steps,
            "batches": statistics.n_batches,
        }
        for name in ("trace", "signal_to_noise", "cosine", "bias_norm"):
            interval = getattr(statistics, name) or Interval(math.nan, math.nan, math.nan)
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"bias": statistics.bias, "bias_error": statistics.bias_error})
    return pd.DataFrame(rows)


def _name_of_reference(study: VarianceStudy) -> str:
    """What the bias is measured against."""
    return "exact gradient" if study.reference is None else f"mean gradient of {study.option}={study.reference}"


def _line_now_and_then(bar: Progress, task: TaskID, console: Console, due: float) -> float:
    """Where there is no terminal to draw a bar on, a line; returns when the next one is due."""
    now = time.monotonic()
    if console.is_terminal or now < due:
        return due
    console.print(f"{bar.tasks[task].completed:,.0f} of {bar.tasks[task].total:,.0f} {bar.tasks[task].description}")
    return now + LINE_SECONDS


class _Snapshots(BaseCallback):
    """Save the model at the first rollout that starts at or after each of some step counts, then end the training."""

    def __init__(self, at_steps: Sequence[int], folder: Path, on_progress: Any):
        super().__init__()
        self._left = list(at_steps)
        self._folder = folder
        self._on_progress = on_progress

    def _on_rollout_start(self) -> None:
        while self._left and self._left[0] <= self.num_timesteps:
            _save(self.model, self._folder / str(self._left.pop(0)))

    def _on_training_end(self) -> None:
        self._on_rollout_start()  # the last batch may have reached the last count

    def _on_step(self) -> bool:
        self._on_progress(self.num_timesteps)
        return bool(self._left)


def _save_snapshots(study: VarianceStudy, folder: Path, on_progress: Any) -> None:
    (folder / "training").mkdir()
    with _quiet(), one_torch_thread(), _model(study, folder / "training", study.seed) as model:
        n_timesteps = max(int(study.config["n_timesteps"]), max(study.at_steps) + 1)
        model.learn(n_timesteps, callback=_Snapshots(study.at_steps, folder, on_progress))


def _save(model: Any, path: Path) -> None:
    model.save(path.with_suffix(".zip"))
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.save(str(path.with_suffix(".pkl")))


def _sample(
    study: VarianceStudy, folder: Path, task: tuple[int, int, int]
) -> tuple[tuple[int, int, int], th.Tensor, th.Tensor | None]:
    """Some gradient batches of one snapshot under one value, and the exact gradient where it can be had."""
    import_environments(study.gym_packages)
    steps, index, part = task
    n_batches = min(_BATCHES_PER_TASK, study.n_batches - part * _BATCHES_PER_TASK)
    seed = study.seed + _SAMPLING_SEED_OFFSET + part * _SEED_STRIDE
    with (
        tempfile.TemporaryDirectory() as own_folder,
        _quiet(),
        one_torch_thread(),
        _model(study, Path(own_folder), seed) as fresh,
    ):
        model = _restore(fresh, folder / str(steps))
        set_options(model, **_options(study, study.values[index]))
        samples = gradient_samples(model, n_batches)
        mdp = fresh.env.unwrapped.envs[0].unwrapped if hasattr(fresh.env.unwrapped, "envs") else None
        in_its_units = (normalizer := model.get_vec_normalize_env()) is None or not normalizer.norm_reward
        exact = estimated_gradient(model, mdp) if isinstance(mdp, TabularMDP) and in_its_units else None
    return task, samples.cpu(), exact


def _restore(fresh: Any, path: Path) -> Any:
    """The model of a snapshot on the environment of a fresh one, with the statistics of its observations frozen."""
    fresh.set_parameters(path.with_suffix(".zip"))
    normalizer = fresh.get_vec_normalize_env()
    if normalizer is not None:
        saved = VecNormalize.load(str(path.with_suffix(".pkl")), normalizer.venv)
        normalizer.ret_rms, normalizer.training = saved.ret_rms, False
        if normalizer.norm_obs:
            normalizer.obs_rms = saved.obs_rms
    return fresh


def _printed(table: pd.DataFrame, study: VarianceStudy) -> Table:
    caption = f"{study.n_batches} batches each; brackets: 95 % jackknife intervals."
    if table["bias"].notna().any():
        caption += f" Bias: along the {_name_of_reference(study)}, ± standard error, and (in brackets) in all"
        caption += " directions, relative to its length."
    printed = Table(title=f"{study.algo} on {study.environment}", caption=caption, box=box.SIMPLE_HEAD)
    columns = ["steps", study.option, "tr Cov ĝ", "signal to noise", "cosine"]
    for name in [*columns, *(["bias"] if table["bias"].notna().any() else [])]:
        printed.add_column(name, justify="left" if name == study.option else "right")
    for row in table.to_dict("records"):
        cells = [f"{row['steps']:,}", row["value"]]
        cells += [
            f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"
            for name in ("trace", "signal_to_noise", "cosine")
        ]
        if pd.notna(row["bias"]):
            cells.append(f"{row['bias']:+.3f} ± {row['bias_error']:.3f} [{row['bias_norm']:.3f}]")
        printed.add_row(*cells)
    return printed
