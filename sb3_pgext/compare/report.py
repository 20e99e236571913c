"""The numbers of a study: each evaluation, and each label on each environment in one line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sb3_pgext.compare.runs import finished, measurements
from sb3_pgext.compare.statistics import (
    MIN_SEEDS_FOR_BOOTSTRAP,
    area_under_curve,
    iqm_with_bootstrap_interval,
    mean_with_t_interval,
    steps_to_threshold,
)
from sb3_pgext.compare.study import Study

_MIN_COLUMN_WIDTH = 5
"""Of the printed summary: a narrow terminal breaks lines, it drops nothing."""


def results_table(study: Study, folder: Path) -> pd.DataFrame:
    """
    :param study: a study
    :param folder: the folder of its runs
    :return: one row per evaluation of each finished run: ``run``, ``algorithm``, ``environment``, ``seed`` and the
        fields of :class:`sb3_pgext.compare.evaluation.Measurement`
    """
    rows = [
        {"run": run.label, "algorithm": run.algo, "environment": run.environment, "seed": run.seed} | vars(measurement)
        for run in study.runs
        if finished(run, folder)
        for measurement in measurements(run, folder)
    ]
    return pd.DataFrame(rows)


def learning_curves(results: pd.DataFrame, label: str, environment: str) -> tuple[np.ndarray, np.ndarray]:
    """
    :param results: as of :func:`results_table`
    :param label: a run's label
    :param environment: an environment
    :return: environment steps ``(T,)`` and mean returns ``(S, T)``, one row per seed; no rows if no run finished
    """
    chosen = results[(results["run"] == label) & (results["environment"] == environment)]
    curves = chosen.pivot(index="seed", columns="timesteps", values="mean_return")
    return curves.columns.to_numpy(), curves.to_numpy()


def seeds_per_run(results: pd.DataFrame) -> pd.Series:
    """
    :param results: as of :func:`results_table`
    :return: the number of seeds that finished, by label and environment
    """
    return results.groupby(["run", "environment"])["seed"].nunique()


def enough_seeds(results: pd.DataFrame) -> bool:
    """
    :param results: as of :func:`results_table`
    :return: whether all that is compared has the seeds for an interquartile mean and its bootstrap interval
    """
    return bool(seeds_per_run(results).min() >= MIN_SEEDS_FOR_BOOTSTRAP)


def summary_table(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """
    :param study: a study
    :param results: as of :func:`results_table`
    :return: one row per label and environment. ``final_*``: mean of the last evaluation with Student's 95 % interval;
        ``final_iqm*``: its interquartile mean with a bootstrap interval, if all have 5 seeds or more; ``area*``: return
        over the training, likewise if all have 5 seeds or more, else the mean with Student's interval;
        ``steps_to_threshold``: median over seeds, infinite if most never reach it; ``steps_per_second`` and
        ``seconds``: of the training without evaluations, median over seeds, which a single run that was suspended for a
        while does not move far
    """
    rows = [
        _summary(study, results, label, environment)
        for environment in study.environments
        for label in study.labels
        if ((results["run"] == label) & (results["environment"] == environment)).any()
    ]
    return pd.DataFrame(rows)


def _summary(study: Study, results: pd.DataFrame, label: str, environment: str) -> dict[str, Any]:
    timesteps, returns = learning_curves(results, label, environment)
    chosen = results[(results["run"] == label) & (results["environment"] == environment)]
    last = chosen[chosen["timesteps"] == timesteps[-1]]
    final = mean_with_t_interval(returns[:, -1])
    estimate = iqm_with_bootstrap_interval if enough_seeds(results) else mean_with_t_interval
    area = estimate(area_under_curve(timesteps, returns))
    row: dict[str, Any] = {"run": label, "algorithm": last["algorithm"].iloc[0], "environment": environment}
    row |= {"seeds": len(returns), "timesteps": timesteps[-1]}
    row |= {"final_mean": final.value, "final_low": final.low, "final_high": final.high}
    if enough_seeds(results):
        iqm = iqm_with_bootstrap_interval(returns[:, -1])
        row |= {"final_iqm": iqm.value, "final_iqm_low": iqm.low, "final_iqm_high": iqm.high}
    row |= {"area": area.value, "area_low": area.low, "area_high": area.high}
    row |= _steps_to_threshold(timesteps, returns, study.thresholds.get(environment))
    row["steps_per_second"] = (last["true_timesteps"] / last["training_seconds"]).median()
    row["seconds"] = last["training_seconds"].median()
    return row


def _steps_to_threshold(timesteps: np.ndarray, returns: np.ndarray, threshold: float | None) -> dict[str, Any]:
    if threshold is None:
        return {}
    steps = steps_to_threshold(timesteps, returns, threshold)
    return {
        "threshold": threshold,
        "steps_to_threshold": np.median(steps),
        "seeds_at_threshold": np.isfinite(steps).sum(),
    }


@dataclass(frozen=True)
class SummaryTable:
    """
    What a reader sees of a summary, on one environment.

    :param title: environment and seeds
    :param header: names of the columns, with a line break where they are long
    :param rows: their cells, one row per label
    :param caption: what the brackets are
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    caption: str


def summary_tables(study: Study, summary: pd.DataFrame) -> list[SummaryTable]:
    """
    :param study: a study
    :param summary: as of :func:`summary_table`
    :return: one table for each environment on which a run has finished
    """
    of_environments = [
        (name, summary[summary["environment"] == name].to_dict("records")) for name in study.environments
    ]
    return [_table(name, rows, study.thresholds.get(name)) for name, rows in of_environments if rows]


def print_summary(tables: Sequence[SummaryTable], console: Console) -> None:
    """
    :param tables: as of :func:`summary_tables`
    :param console: where to print them
    """
    for table in tables:
        printed = Table(title=Text(table.title), caption=Text(table.caption), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, name in enumerate(table.header):
            printed.add_column(
                Text(name), justify="right" if i else "left", min_width=_MIN_COLUMN_WIDTH, overflow="fold"
            )
        # Of columns without a width the widest is narrowed first, which would leave a label as little as a number.
        longest = max(cell_len(text) for text in [table.header[0], *(row[0] for row in table.rows)])
        printed.columns[0].width = min(longest, console.width // 4)
        for row in table.rows:
            printed.add_row(*map(Text, row))
        console.print(printed, crop=False)


def _table(environment: str, rows: Sequence[Mapping[Any, Any]], threshold: float | None) -> SummaryTable:
    seeds = sorted({row["seeds"] for row in rows})
    with_iqm = "final_iqm" in rows[0]
    caption = "Brackets: 95 % intervals over seeds; Student's t around a mean"
    caption += f", bootstrap around an IQM.{bootstrap_note(seeds[0])}" if with_iqm else "."
    caption += " Speed and time: medians over seeds, training only; runs that share a machine slow each other down."
    columns: dict[str, Callable[[Mapping[Any, Any]], str]] = {
        "run": lambda row: row["run"],
        "final return\nmean": lambda row: _interval(row["final_mean"], row["final_low"], row["final_high"]),
    }
    if with_iqm:
        columns["final return\nIQM"] = lambda row: _interval(
            row["final_iqm"], row["final_iqm_low"], row["final_iqm_high"]
        )
    columns[f"return over training\n{'IQM' if with_iqm else 'mean'}"] = lambda row: _interval(
        row["area"], row["area_low"], row["area_high"]
    )
    if threshold is not None:
        columns[f"steps to {threshold:g}\nmedian"] = _threshold_cell
    if len({row["timesteps"] for row in rows}) > 1:
        columns["steps"] = lambda row: f"{row['timesteps']:,}"
    columns["steps/s"] = lambda row: f"{row['steps_per_second']:,.0f}"
    columns["time"] = lambda row: f"{row['seconds']:.1f} s"
    title = f"{environment}, {'-'.join(map(str, seeds))} seed{'' if seeds == [1] else 's'}"
    return SummaryTable(title, list(columns), [[cell(row) for cell in columns.values()] for row in rows], caption)


def bootstrap_note(seeds: int) -> str:
    """
    :param seeds: number of seeds
    :return: what to say of their bootstrap intervals; nothing if there are enough seeds
    """
    return " Of fewer than 10 seeds bootstrap intervals are too narrow: 5 seeds give about 90 %." if seeds < 10 else ""


def _interval(value: float, low: float, high: float) -> str:
    """A value and its interval to four significant digits of the value: ``493.2 [464.5, 521.9]``."""
    decimals = max(0, 3 - int(np.floor(np.log10(max(abs(value), 1e-9)))))
    decimals = min(decimals, 4)
    text = f"{value:.{decimals}f}"
    return text if np.isnan(low) else f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _threshold_cell(row: Mapping[Any, Any]) -> str:
    """Steps to the threshold, and how many seeds reached it where not all did."""
    steps, reached, seeds = row["steps_to_threshold"], int(row["seeds_at_threshold"]), row["seeds"]
    text = f"{steps:,.0f}" if np.isfinite(steps) else "not reached"
    return text if reached == seeds else f"{text} ({reached} of {seeds} seeds)"
