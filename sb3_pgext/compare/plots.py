"""Learning curves for print: one panel per environment."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sb3_pgext.compare.report import enough_seeds, learning_curves, seeds_per_run
from sb3_pgext.compare.statistics import Estimate, iqm_with_bootstrap_interval
from sb3_pgext.compare.study import Study

_LINE_STYLES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))]
"""Colour is not the only mark of a curve."""

_MAX_COLUMNS = 3


def plot_learning_curves(study: Study, results: pd.DataFrame, path: Path) -> None:
    """
    Draw the learning curves and write them as PNG and SVG.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :param path: of the files, without their suffix
    """
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1), mpl.rc_context({"svg.hashsalt": ""}):
        figure = learning_curves_figure(study, results)
        figure.savefig(path.with_suffix(".png"), dpi=200)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def learning_curves_figure(study: Study, results: pd.DataFrame) -> Figure:
    """
    The mean return during training, with the spread over seeds.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :return: a figure of its own, never pyplot's: it needs no display and leaves no global state
    """
    n_columns = min(len(study.environments), _MAX_COLUMNS)
    n_rows = -(-len(study.environments) // n_columns)
    figure = Figure(figsize=(max(6.4, 4.0 * n_columns), 3.4 * n_rows + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, environment in zip(panels.flat, study.environments, strict=False):
        _panel(axes, study, results, environment)
    for axes in panels.flat[len(study.environments) :]:
        axes.set_visible(False)
    _label(figure, panels, study, results)
    return figure


def _panel(axes: Axes, study: Study, results: pd.DataFrame, environment: str) -> None:
    """The curves of one environment."""
    colors = sns.color_palette("colorblind", len(study.labels))
    for i, label in enumerate(study.labels):
        timesteps, returns = learning_curves(results, label, environment)
        if len(returns) == 0:
            continue
        curve = band(returns, enough_seeds(results))
        style = {"color": colors[i], "zorder": 3 + 1 / (1 + i)}
        axes.fill_between(timesteps, curve.low, curve.high, alpha=0.12, linewidth=0, **style)
        for edge in (curve.low, curve.high):
            axes.plot(timesteps, edge, linewidth=0.5, alpha=0.6, **style)
        line_style = _LINE_STYLES[i % len(_LINE_STYLES)]
        axes.plot(timesteps, curve.value, linewidth=1.8, linestyle=line_style, label=label, **style)
    if (threshold := study.thresholds.get(environment)) is not None:
        style = {"color": "0.4", "linewidth": 0.8, "linestyle": (0, (2, 3))}
        axes.axhline(threshold, label=f"threshold {threshold:g}", zorder=2, **style)
    axes.set_title(environment)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: thousands(steps)))
    axes.margins(x=0.01)
    sns.despine(ax=axes)


def band(returns: np.ndarray, bootstrap: bool) -> Estimate:
    """
    The curve and band to draw for some seeds.

    With enough seeds to bootstrap: the interquartile mean and its 95 % interval. With fewer: the mean, and the lowest
    and highest seed. A 95 % interval of so few is Student's, which is 4.3 standard errors to each side for three seeds:
    where one seed learns before another it reaches far outside the returns that are possible. The table gives it; a
    picture of it shows nothing of the runs, while their range hides nothing.

    :param returns: ``(S, T)``, one row per seed
    :param bootstrap: whether there are enough seeds, as of :func:`sb3_pgext.compare.report.enough_seeds`
    :return: estimates of shape ``(T,)``
    """
    if bootstrap:
        return iqm_with_bootstrap_interval(returns)
    return Estimate(returns.mean(axis=0), returns.min(axis=0), returns.max(axis=0))


def thousands(steps: float) -> str:
    """
    :param steps: a number of environment steps
    :return: e.g. ``0``, ``500``, ``2.5k``, ``50k``, ``1M``
    """
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if abs(steps) >= unit:
            return f"{steps / unit:g}{name}"
    return f"{steps:g}"


def _label(figure: Figure, panels: np.ndarray, study: Study, results: pd.DataFrame) -> None:
    """Names and units of the axes, once for all panels, and the legend below them."""
    evaluation = study.runs[0].evaluation
    kind = "deterministic" if evaluation.deterministic else "sampled"
    for axes in panels[:, 0]:
        axes.set_ylabel(f"mean return of {evaluation.episodes} {kind} episodes")
    for axes in panels.flat:
        axes.set_xlabel("environment steps")
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels.flat), key=lambda entry: len(entry[1]))
    figure.legend(
        handles,
        labels,
        title=_legend_title(results),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        handlelength=3,
    )


def _legend_title(results: pd.DataFrame) -> str:
    """What the lines and bands are."""
    n_seeds = seeds_per_run(results)
    seeds = "–".join(map(str, dict.fromkeys((n_seeds.min(), n_seeds.max()))))
    if enough_seeds(results):
        return f"line: interquartile mean of {seeds} seeds, band: 95 % bootstrap interval"
    return f"line: mean of {seeds} seeds, band: lowest to highest seed"
