"""The numbers of a study: each evaluation, and each label on each environment in one line."""

from collections.abc import Mapping, Sequence
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

from sb3_pgext.compare import statistics
from sb3_pgext.compare.runs import finished, measurements
from sb3_pgext.compare.study import Study


def results_table(study: Study, folder: Path) -> pd.DataFrame:
    """
    Collect the evaluations of all finished runs.

    :param study: a study
    :param folder: the folder of its runs
    :return: one row per evaluation: ``run``, ``algorithm``, ``environment``, ``seed`` and the fields of
        :class:`sb3_pgext.compare.evaluation.Measurement`
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
    Lay out the evaluations of a label on an environment as curves.

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
    Count the seeds that finished.

    :param results: as of :func:`results_table`
    :return: the number of seeds, by label and environment
    """
    return results.groupby(["run", "environment"])["seed"].nunique()


def enough_seeds(results: pd.DataFrame) -> bool:
    """
    Test whether all that is compared has the seeds for an interquartile mean and its bootstrap interval.

    :param results: as of :func:`results_table`
    :return: whether it has
    """
    return bool(seeds_per_run(results).min() >= statistics.MIN_SEEDS_FOR_BOOTSTRAP)


def summary_table(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """
    Summarise each label on each environment.

    :param study: a study
    :param results: as of :func:`results_table`
    :return: one row per label and environment. ``final_*``: mean of the last evaluation with Student's 95 % interval;
        ``final_iqm*``: its interquartile mean with a bootstrap interval; ``area*``: likewise, return over the training.
        Unless all have 5 seeds or more there is no IQM, and the ends are the lowest and the highest seed;
        ``steps_to_threshold``: median over seeds, infinite if most never reach it; ``steps_per_second`` and
        ``seconds``: of the training without evaluations, median over seeds, which a single run that was suspended for a
        while does not move far
    """
    rows = [
        _summary(study, results, label, environment)
        for environment in study.environments
        for label in study.labels
        if (label, environment) in seeds_per_run(results)
    ]
    return pd.DataFrame(rows)


def _summary(study: Study, results: pd.DataFrame, label: str, environment: str) -> dict[str, Any]:
    timesteps, returns = learning_curves(results, label, environment)
    chosen = results[(results["run"] == label) & (results["environment"] == environment)]
    last = chosen[chosen["timesteps"] == timesteps[-1]]
    row: dict[str, Any] = {"run": label, "algorithm": last["algorithm"].iloc[0], "environment": environment}
    row |= {"seeds": len(returns), "timesteps": timesteps[-1]}
    estimate = statistics.mean_with_range
    if enough_seeds(results):
        row |= _estimate("final_mean", "final", statistics.mean_with_t_interval(returns[:, -1]))
        estimate = statistics.iqm_with_bootstrap_interval
        row |= _estimate("final_iqm", "final_iqm", estimate(returns[:, -1]))
    else:
        row |= _estimate("final_mean", "final", estimate(returns[:, -1]))
    row |= _estimate("area", "area", estimate(statistics.area_under_curve(timesteps, returns)))
    if (threshold := study.thresholds.get(environment)) is not None:
        steps = statistics.steps_to_threshold(timesteps, returns, threshold)
        row |= {"threshold": threshold, "steps_to_threshold": np.median(steps)}
        row["seeds_at_threshold"] = np.isfinite(steps).sum()
    row["steps_per_second"] = (last["true_timesteps"] / last["training_seconds"]).median()
    row["seconds"] = last["training_seconds"].median()
    return row


def _estimate(name: str, prefix: str, estimate: statistics.Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{prefix}_low": estimate.low, f"{prefix}_high": estimate.high}


@dataclass(frozen=True)
class SummaryTable:
    """
    A summary of one environment in words, for readers.

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
    Put a summary into words.

    :param study: a study
    :param summary: as of :func:`summary_table`
    :return: one table for each environment on which a run has finished
    """
    return [
        _table(str(environment), rows.to_dict("records"), study.thresholds.get(str(environment)))
        for environment, rows in summary.groupby("environment", sort=False)
    ]


def print_summary(tables: Sequence[SummaryTable], console: Console) -> None:
    """
    Print tables.

    :param tables: as of :func:`summary_tables`
    :param console: where to print them
    """
    for table in tables:
        printed = Table(title=Text(table.title), caption=Text(table.caption), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, name in enumerate(table.header):
            printed.add_column(Text(name), justify="right" if i else "left", min_width=5, overflow="fold")
        # A narrow terminal breaks lines, it drops nothing. Of columns without a width the widest is narrowed first,
        # which would leave a label as little as a number.
        longest = max(cell_len(text) for text in [table.header[0], *(row[0] for row in table.rows)])
        printed.columns[0].width = min(longest, console.width // 4)
        for row in table.rows:
            printed.add_row(*map(Text, row))
        console.print(printed, crop=False)


def _table(environment: str, rows: Sequence[Mapping[Any, Any]], threshold: float | None) -> SummaryTable:
    seeds = sorted({row["seeds"] for row in rows})
    with_iqm = "final_iqm" in rows[0]
    caption = ""
    if with_iqm:
        caption = "Brackets: 95 % intervals over seeds; Student's t around a mean, bootstrap around an IQM."
        caption += bootstrap_note(seeds[0])
    elif seeds[-1] > 1:
        caption = "In parentheses: the lowest and the highest seed."
    caption += " Speed and time: medians over seeds, training only; runs that share a machine slow each other down."
    columns = {"run": [row["run"] for row in rows]}
    columns["final return\nmean"] = [_interval(row, "final_mean", "final") for row in rows]
    if with_iqm:
        columns["final return\nIQM"] = [_interval(row, "final_iqm", "final_iqm") for row in rows]
    over_training = f"return over training\n{'IQM' if with_iqm else 'mean'}"
    columns[over_training] = [_interval(row, "area", "area") for row in rows]
    if threshold is not None:
        columns[f"steps to {threshold:g}\nmedian"] = [_threshold_cell(row) for row in rows]
    if len({row["timesteps"] for row in rows}) > 1:
        columns["steps"] = [f"{row['timesteps']:,}" for row in rows]
    columns["steps/s"] = [f"{row['steps_per_second']:,.0f}" for row in rows]
    columns["time"] = [f"{row['seconds']:.1f} s" for row in rows]
    title = f"{environment}, {'-'.join(map(str, seeds))} seed{'' if seeds == [1] else 's'}"
    return SummaryTable(title, list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)], caption)


def bootstrap_note(seeds: int) -> str:
    """
    Warn of bootstrap intervals of few seeds.

    :param seeds: number of seeds
    :return: a sentence, empty if there are enough seeds
    """
    return " Of fewer than 10 seeds bootstrap intervals are too narrow: 5 seeds give about 90 %." if seeds < 10 else ""


def _interval(row: Mapping[Any, Any], name: str, prefix: str) -> str:
    """Write a value to four digits, with interval or range: ``493.2 [464.5, 521.9]`` or ``78.10 (75.12 to 81.15)``."""
    value, low, high = row[name], row[f"{prefix}_low"], row[f"{prefix}_high"]
    decimals = int(np.clip(3 - np.floor(np.log10(max(abs(value), 1e-9))), 0, 4))
    text = f"{value:.{decimals}f}"
    if "final_iqm" in row:
        return f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"
    return text if row["seeds"] == 1 else f"{text} ({low:.{decimals}f} to {high:.{decimals}f})"


def _threshold_cell(row: Mapping[Any, Any]) -> str:
    """Write the steps to the threshold, and how many seeds reached it where not all did."""
    steps, reached, seeds = row["steps_to_threshold"], int(row["seeds_at_threshold"]), row["seeds"]
    text = f"{steps:,.0f}" if np.isfinite(steps) else "not reached"
    return text if reached == seeds else f"{text} ({reached} of {seeds} seeds)"
