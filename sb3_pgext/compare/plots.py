"""Figures for print."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from sb3_pgext.compare.aggregate import Aggregate
from sb3_pgext.compare.report import enough_seeds, learning_curves, seeds_per_run
from sb3_pgext.compare.statistics import Estimate, iqm_with_bootstrap_interval, mean_with_range
from sb3_pgext.compare.study import Study
from sb3_pgext.variance.figures import add_legend, panels, print_style, write_figure

FIGURES = {
    "learning_curves": "Learning curves",
    "sample_efficiency": "Sample efficiency over all environments",
    "profiles": "Performance profiles: further up and to the right is better",
    "improvement": "Probability of improvement",
}
"""Name of each figure of a study → its caption."""

_LINE_STYLES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))]
"""Colour is not the only mark of a curve."""

_REFERENCE_LINE: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": (0, (2, 3))}


def plot_study(study: Study, results: pd.DataFrame, statistics: Aggregate | None, folder: Path) -> list[Path]:
    """
    Draw the figures of a study: learning curves and, over several environments or seeds, what they have in common.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :param statistics: of all environments together; None where there are none
    :param folder: where the files go
    :return: the files, without their suffixes ``.png`` and ``.svg``
    """
    with print_style():
        figures = {"learning_curves": learning_curves_figure(study, results)}
        if statistics is not None:
            figures["sample_efficiency"] = sample_efficiency_figure(study, statistics)
            figures["profiles"] = profiles_figure(study, statistics)
            figures["improvement"] = improvement_figure(study, statistics)
        for name, figure in figures.items():
            write_figure(figure, folder / name)
    return [folder / name for name in figures]


def learning_curves_figure(study: Study, results: pd.DataFrame) -> Figure:
    """
    Draw the mean return during training, with the spread over seeds, on each environment that has a finished run.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :return: the figure; where runs are missing it says how many have finished
    """
    environments = [environment for environment in study.environments if environment in set(results["environment"])]
    figure, axes = panels(len(environments))
    for panel, environment in zip(axes.flat, environments, strict=False):
        _panel(panel, study, results, environment)
        panel.set_xlabel("environment steps")
    evaluation = study.runs[0].evaluation
    kind = "deterministic" if evaluation.deterministic else "sampled"
    for panel in axes[:, 0]:
        panel.set_ylabel(f"mean return of\n{evaluation.episodes} {kind} episodes")
    n_seeds = seeds_per_run(results)
    seeds = "–".join(map(str, dict.fromkeys((n_seeds.min(), n_seeds.max()))))
    if enough_seeds(results):
        legend = f"line: interquartile mean of {seeds} seeds, band: 95 % bootstrap interval"
    else:
        legend = "line: one seed" if seeds == "1" else f"line: mean of {seeds} seeds, band: lowest to highest seed"
    add_legend(figure, legend)
    if (n_finished := n_seeds.sum()) < len(study.runs):
        figure.suptitle(f"{n_finished} of {len(study.runs)} runs have finished")
    return figure


def _panel(axes: Axes, study: Study, results: pd.DataFrame, environment: str) -> None:
    """Draw the curves of one environment."""
    for label in study.labels:
        timesteps, returns = learning_curves(results, label, environment)
        if len(returns) > 0:
            _curve(axes, study, label, timesteps, band(returns, enough_seeds(results)))
    if (threshold := study.thresholds.get(environment)) is not None:
        values = ", ".join(f"{value:g}" for value in sorted(set(study.thresholds.values())))
        axes.axhline(threshold, label=f"threshold {values}", zorder=2, **_REFERENCE_LINE)
    axes.set_title(environment)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    sns.despine(ax=axes)


def _curve(axes: Axes, study: Study, label: str, x: np.ndarray, curve: Estimate) -> None:
    """Draw a line with its band, in the style that the label has in all figures."""
    i = study.labels.index(label)
    style: dict[str, Any] = {"color": sns.color_palette("colorblind", len(study.labels))[i], "zorder": 3}
    axes.fill_between(x, curve.low, curve.high, alpha=0.15, linewidth=0, **style)
    axes.plot(x, curve.value, linewidth=1.8, linestyle=_LINE_STYLES[i % len(_LINE_STYLES)], label=label, **style)


def sample_efficiency_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    Draw the interquartile mean of the scores during training.

    :param study: a study
    :param statistics: of all its environments
    :return: the figure
    """
    figure, axes = _curves_figure(study, statistics, statistics.fractions, statistics.curves, "interquartile mean of ")
    axes.set_xlabel("share of the training")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("score\n(0: before training, 1: best run)")
    return figure


def profiles_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    Draw the share of the runs whose final score is above each score.

    :param study: a study
    :param statistics: of all its environments
    :return: the figure
    """
    figure, axes = _curves_figure(study, statistics, statistics.thresholds, statistics.profiles)
    axes.set_xlabel("final score (0: before training, 1: best run)")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("share of the runs above it")
    return figure


def improvement_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    Draw the probability that a run of each label ends with a higher score than one of the baseline.

    :param study: a study
    :param statistics: of all its environments
    :return: the figure
    """
    labels = [textwrap.fill(label, 32) for label in statistics.improvements]
    n_lines = 1 + max(label.count("\n") for label in labels)
    figure, ((axes,),) = panels(1, height=2 + (0.3 + 0.15 * n_lines) * len(labels))
    colors = sns.color_palette("colorblind", len(study.labels))
    for y, (label, estimate) in enumerate(statistics.improvements.items()):
        width = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        color = colors[study.labels.index(label)]
        axes.errorbar([estimate.value], [y], xerr=width, fmt="o", color=color, markersize=6, capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.axvline(0.5, **_REFERENCE_LINE)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    sns.despine(ax=axes)
    text = f"probability of a higher final score than {statistics.baseline}"
    axes.set_xlabel(f"{textwrap.fill(text, 48)}\n(bars: 95 % bootstrap intervals)")
    return figure


def _curves_figure(
    study: Study, statistics: Aggregate, x: np.ndarray, curves: Mapping[str, Estimate], estimated: str = ""
) -> tuple[Figure, Axes]:
    """Draw one panel with a line for each label, and the legend below it."""
    figure, ((axes,),) = panels(1)
    n = len(study.environments)
    axes.set_title(study.environments[0] if n == 1 else f"{n} environments")
    for label, curve in curves.items():
        _curve(axes, study, label, x, curve)
    axes.margins(x=0.01)
    sns.despine(ax=axes)
    runs = f"{statistics.seeds} seeds" + (f" on each of {n} environments" if n > 1 else "")
    add_legend(figure, f"line: {estimated}{runs}\nband: 95 % bootstrap interval")
    return figure, axes


def band(returns: np.ndarray, bootstrap: bool) -> Estimate:
    """
    Compute the curve and band to draw for some seeds.

    With enough seeds to bootstrap: the interquartile mean and its 95 % interval. With fewer: the mean, and the lowest
    and highest seed.

    :param returns: ``(S, T)``, one row per seed
    :param bootstrap: whether there are enough seeds, as of :func:`sb3_pgext.compare.report.enough_seeds`
    :return: estimates of shape ``(T,)``
    """
    return iqm_with_bootstrap_interval(returns) if bootstrap else mean_with_range(returns)
