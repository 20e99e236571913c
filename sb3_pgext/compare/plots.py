"""Figures for print."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from sb3_pgext.compare.aggregate import Aggregate
from sb3_pgext.compare.report import enough_seeds, learning_curves, seeds_per_run
from sb3_pgext.compare.statistics import Estimate, iqm_with_bootstrap_interval
from sb3_pgext.compare.study import Study
from sb3_pgext.rollouts.files import replacing

FIGURES = {
    "learning_curves": "Learning curves",
    "sample_efficiency": "Sample efficiency over all environments",
    "profiles": "Performance profiles: further up and to the right is better",
    "improvement": "Probability of improvement",
}
"""Names of a study's figures, and what they show."""

_LINE_STYLES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))]
"""Colour is not the only mark of a curve."""

_MAX_COLUMNS = 3

_FULL = 0.96
"""Share of a figure's width: at another resolution its texts are a few percent wider."""


def plot_study(study: Study, results: pd.DataFrame, statistics: Aggregate | None, folder: Path) -> list[Path]:
    """
    Draw the figures of a study: learning curves and, over several environments or seeds, what they have in common.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :param statistics: of all environments together; None where there are none
    :param folder: where the files go
    :return: the files, without their suffixes ``.png`` and ``.svg``
    """
    figures = {"learning_curves": lambda: learning_curves_figure(study, results)}
    if statistics is not None:
        figures["sample_efficiency"] = lambda: sample_efficiency_figure(study, statistics)
        figures["profiles"] = lambda: profiles_figure(study, statistics)
        figures["improvement"] = lambda: improvement_figure(study, statistics)
    with _style():
        for name, draw in figures.items():
            _write(draw(), folder / name)
    return [folder / name for name in figures]


@contextmanager
def _style() -> Iterator[None]:
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1), mpl.rc_context({"svg.hashsalt": ""}):
        yield


def _write(figure: Figure, path: Path) -> None:
    """As PNG and SVG; files that are there stay whole."""
    for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
        with replacing(path.with_suffix(suffix)) as file:
            figure.savefig(file, format=suffix[1:], **options)


def learning_curves_figure(study: Study, results: pd.DataFrame) -> Figure:
    """
    The mean return during training, with the spread over seeds.

    :param study: a study
    :param results: as of :func:`sb3_pgext.compare.report.results_table`
    :return: a figure of its own, never pyplot's: it needs no display and leaves no global state
    """
    n_columns = min(len(study.environments), _MAX_COLUMNS)
    n_rows = -(-len(study.environments) // n_columns)
    figure = Figure(figsize=(max(6.4, 4.0 * n_columns), 3.4 * n_rows + 0.1), layout="constrained")
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
    for label in study.labels:
        timesteps, returns = learning_curves(results, label, environment)
        if len(returns) > 0:
            _curve(axes, study, label, timesteps, band(returns, enough_seeds(results)))
    if (threshold := study.thresholds.get(environment)) is not None:
        style: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": (0, (2, 3))}
        values = sorted(set(study.thresholds.values()))
        axes.axhline(threshold, label=f"threshold {', '.join(f'{t:g}' for t in values)}", zorder=2, **style)
    axes.set_title(environment)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: thousands(steps)))
    axes.margins(x=0.01)
    sns.despine(ax=axes)


def _curve(axes: Axes, study: Study, label: str, x: np.ndarray, curve: Estimate) -> None:
    """A line with its band, in the style that the label has in all figures."""
    i = study.labels.index(label)
    n_colors = len(sns.color_palette("colorblind"))
    style: dict[str, Any] = {"color": sns.color_palette("colorblind", len(study.labels))[i], "zorder": 3 + 1 / (1 + i)}
    axes.fill_between(x, curve.low, curve.high, alpha=0.12, linewidth=0, **style)
    for edge in (curve.low, curve.high):
        axes.plot(x, edge, linewidth=0.5, alpha=0.6, **style)
    line_style = _LINE_STYLES[(i + i // n_colors) % len(_LINE_STYLES)]
    axes.plot(x, curve.value, linewidth=1.8, linestyle=line_style, label=label, **style)


def _wrapped(text: str, width: int) -> str:
    """In lines of at most so many characters, and without mathematics, which matplotlib sees between dollars."""
    return textwrap.fill(text, width).replace("$", r"\$")


def sample_efficiency_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    :param study: a study
    :param statistics: of all its environments
    :return: the interquartile mean of the scores during training
    """
    legend = f"line: interquartile mean of {_runs(study, statistics)}"
    figure, axes = _curves_figure(study, statistics, statistics.fractions, statistics.curves, legend)
    axes.set_xlabel("share of the training")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("score\n(0: before training, 1: best run)")
    return figure


def profiles_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    :param study: a study
    :param statistics: of all its environments
    :return: the share of the runs whose final score is above each score
    """
    legend = f"line: {_runs(study, statistics)}"
    figure, axes = _curves_figure(study, statistics, statistics.thresholds, statistics.profiles, legend)
    axes.set_xlabel("final score (0: before training, 1: best run)")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("share of the runs above it")
    return figure


def improvement_figure(study: Study, statistics: Aggregate) -> Figure:
    """
    :param study: a study
    :param statistics: of all its environments
    :return: the probability that a run of each label ends with a higher score than one of the baseline
    """
    labels = [_wrapped(label, 32) for label in statistics.improvements]
    lines = 1 + max(label.count("\n") for label in labels)
    height = 1.5 + (0.3 + 0.15 * lines) * len(labels)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = sns.color_palette("colorblind", len(study.labels))
    for y, (label, estimate) in enumerate(statistics.improvements.items()):
        width = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        color = colors[study.labels.index(label)]
        axes.errorbar([estimate.value], [y], xerr=width, fmt="o", color=color, markersize=6, capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.axvline(0.5, color="0.4", linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    sns.despine(ax=axes)
    # The layout gives no room to an axis label that is wider than its panel.
    sentences = f"probability of a higher final score than {statistics.baseline}", "(bars: 95 % bootstrap intervals)"
    for n_characters in range(72, 0, -12):
        text = "\n".join(_wrapped(sentence, n_characters) for sentence in sentences)
        axes.set_xlabel(text)
        figure.set_figheight(height + 0.17 * (text.count("\n") - 1))
        figure.draw_without_rendering()
        if axes.xaxis.label.get_window_extent().x1 <= _FULL * figure.bbox.x1:
            break
    return figure


def _curves_figure(
    study: Study, statistics: Aggregate, x: np.ndarray, curves: Mapping[str, Estimate], legend: str
) -> tuple[Figure, Axes]:
    """One panel with a line for each label, and the legend below it."""
    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    n_environments = len(study.environments)
    axes.set_title(study.environments[0] if n_environments == 1 else f"{n_environments} environments")
    for label, curve in curves.items():
        _curve(axes, study, label, x, curve)
    axes.margins(x=0.01)
    sns.despine(ax=axes)
    _legend(figure, f"{legend}\nband: 95 % bootstrap interval")
    return figure, axes


def _legend(figure: Figure, title: str) -> None:
    """Below the panels, which keep their height: in two columns if the labels are short enough, else in one."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for n_columns, width in ((2, 60), (1, 60), (1, 40)):
        figure.legends.clear()
        legend = figure.legend(
            entries.values(),
            [_wrapped(label, width) for label in entries],
            title=title,
            loc="outside lower center",
            ncols=n_columns,
            frameon=False,
            handlelength=3,
        )
        if legend.get_window_extent().width <= _FULL * figure.bbox.width:
            break
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def _runs(study: Study, statistics: Aggregate) -> str:
    n = len(study.environments)
    return f"{statistics.seeds} seeds" + (f" on each of {n} environments" if n > 1 else "")


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
        axes.set_ylabel(f"mean return of\n{evaluation.episodes} {kind} episodes")
    for axes in panels.flat:
        axes.set_xlabel("environment steps")
    _legend(figure, _legend_title(results))


def _legend_title(results: pd.DataFrame) -> str:
    """What the lines and bands are."""
    n_seeds = seeds_per_run(results)
    seeds = "–".join(map(str, dict.fromkeys((n_seeds.min(), n_seeds.max()))))
    if enough_seeds(results):
        return f"line: interquartile mean of {seeds} seeds, band: 95 % bootstrap interval"
    return "line: one seed" if seeds == "1" else f"line: mean of {seeds} seeds, band: lowest to highest seed"


_STATISTICS = {
    "trace": "tr Cov ĝ (squared units of the gradient)",
    "signal_to_noise": "signal-to-noise ratio",
    "cosine": "cosine with the mean gradient",
    "bias": "relative bias along the\n{reference}",
    "bias_norm": "relative bias in all directions\n({reference})",
}


def plot_variances(table: pd.DataFrame, option: str, title: str, reference: str, path: Path) -> None:
    """
    Draw the statistics of a gradient estimator under each value of an option, and write them as PNG and SVG.

    :param table: one row per step count and value, as in ``variance.csv``
    :param option: the option's name
    :param title: of the whole figure
    :param reference: what the bias is measured against, where there is one
    :param path: of the files, without their suffix
    """
    with _style():
        names = [name for name in _STATISTICS if table[name].notna().any()]
        n_rows = -(-len(names) // _MAX_COLUMNS)
        n_columns = -(-len(names) // n_rows)
        figure = Figure(figsize=(3.7 * n_columns, 3.4 * n_rows + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, name in zip(panels.flat, names, strict=False):
            _variance_panel(axes, table, name)
            axes.set_ylabel(_STATISTICS[name].format(reference=reference))
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        legend = f"{option}; bars: 95 % intervals"
        figure.legend(handles, labels, title=legend, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(title)
        _write(figure, path)


def _variance_panel(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """One statistic: step counts side by side, the option's values next to each other at each."""
    values, steps = list(dict.fromkeys(table["value"])), sorted(set(table["steps"]))
    colors = sns.color_palette("colorblind", len(values))
    for i, value in enumerate(values):
        rows = table[table["value"] == value].sort_values("steps")
        x = np.arange(len(rows)) + 0.6 * ((i + 0.5) / len(values) - 0.5)
        y = rows[name].to_numpy(dtype=float)
        if name == "bias":
            low = high = 1.96 * rows["bias_error"].to_numpy(dtype=float)
        else:
            low, high = y - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - y
        marker = "osD^vPX*"[i % 8]
        axes.errorbar(x, y, [low, high], fmt=marker, color=colors[i], markersize=5, capsize=2, label=value)
    axes.set_xticks(range(len(steps)), [thousands(count) for count in steps])
    axes.set_xlabel("environment steps of training")
    if name == "trace":
        axes.set_yscale("log")
    if name == "bias":
        axes.axhline(0, color="0.4", linewidth=0.8)
    sns.despine(ax=axes)
