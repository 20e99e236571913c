"""The statistics of gradient samples, as a table and as a figure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch as th
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from rich import box
from rich.table import Table

from sb3_pgext.diagnostics import Interval, gradient_statistics
from sb3_pgext.variance.figures import add_legend, panels, print_style, write_figure
from sb3_pgext.variance.sampling import Cell
from sb3_pgext.variance.study import VarianceStudy

_AXES = {
    "trace": "tr Cov ĝ (squared units of the gradient)",
    "signal_to_noise": "signal-to-noise ratio",
    "cosine": "cosine with the mean gradient",
    "bias": "relative bias along the\n{reference}",
    "bias_norm": "relative bias in all directions\n({reference})",
}
"""Column of the table → the label of its axis."""


def statistics_table(
    study: VarianceStudy, samples: Mapping[Cell, th.Tensor], exact: Mapping[Cell, th.Tensor | None]
) -> pd.DataFrame:
    """
    Compute the statistics of each value at each step count.

    :param study: what was measured
    :param samples: as of :func:`sb3_pgext.variance.sampling.sample_all`
    :param exact: likewise
    :return: one row per step count and value, as in ``variance.csv``
    """
    rows = []
    for (steps, index), gradients in samples.items():
        reference = exact[steps, index]
        if study.reference is not None:
            reference = samples[steps, study.values.index(study.reference)]
        statistics = gradient_statistics(gradients, reference)
        row: dict[str, Any] = {"option": study.option, "value": str(study.values[index]), "steps": steps}
        row["batches"] = statistics.n_batches
        for name in ("trace", "signal_to_noise", "cosine", "bias_norm"):
            interval = getattr(statistics, name) or Interval(math.nan, math.nan, math.nan)
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"bias": statistics.bias, "bias_error": statistics.bias_error})
    return pd.DataFrame(rows)


def printed_table(table: pd.DataFrame, study: VarianceStudy) -> Table:
    """
    Lay out the statistics for the terminal.

    :param table: as of :func:`statistics_table`
    :param study: what was measured
    :return: the table to print
    """
    with_bias = table["bias"].notna().any()
    caption = f"{study.n_batches} batches each; brackets: 95 % jackknife intervals."
    if with_bias:
        caption += f" Bias: along the {study.reference_name}, ± standard error, and (in brackets) in all"
        caption += " directions, relative to its length."
    printed = Table(title=study.title, caption=caption, box=box.SIMPLE_HEAD)
    for name in ["steps", study.option, "tr Cov ĝ", "signal to noise", "cosine", *(["bias"] if with_bias else [])]:
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


def plot_variances(table: pd.DataFrame, study: VarianceStudy, path: Path) -> None:
    """
    Draw the statistics, one panel each, and write the figure as PNG and SVG.

    :param table: as of :func:`statistics_table`
    :param study: what was measured
    :param path: of the files, without their suffix
    """
    names = [name for name in _AXES if table[name].notna().any()]
    with print_style():
        figure, axes = panels(len(names))
        for panel, name in zip(axes.flat, names, strict=False):
            _plot_statistic(panel, table, name)
            panel.set_ylabel(_AXES[name].format(reference=study.reference_name))
        add_legend(figure, f"{study.option}; bars: 95 % intervals")
        figure.suptitle(study.title)
        write_figure(figure, path)


def _plot_statistic(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw one statistic: step counts side by side, the option's values next to each other at each."""
    values, steps = table["value"].unique(), sorted(set(table["steps"]))
    for i, (value, color) in enumerate(zip(values, sns.color_palette("colorblind", len(values)), strict=True)):
        rows = table[table["value"] == value].sort_values("steps")
        x = np.arange(len(rows)) + 0.6 * ((i + 0.5) / len(values) - 0.5)
        y = rows[name].to_numpy(dtype=float)
        if name == "bias":
            low = high = 1.96 * rows["bias_error"].to_numpy(dtype=float)
        else:
            low, high = y - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - y
        marker = "osD^vPX*"[i % 8]
        axes.errorbar(x, y, [low, high], fmt=marker, color=color, markersize=5, capsize=2, label=value)
    axes.set_xticks(range(len(steps)), map(EngFormatter(sep=""), steps))
    axes.set_xlabel("environment steps of training")
    if name == "trace":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # its own is written in TeX
    if name == "bias":
        axes.axhline(0, color="0.4", linewidth=0.8)
    sns.despine(ax=axes)
