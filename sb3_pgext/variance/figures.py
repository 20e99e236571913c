"""Figures for print: their style, panels, legend and files, for the studies of this room and of ``compare``."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_pgext.rollouts.files import replacing

FULL_WIDTH = 0.96
"""Share of a figure's width: at another resolution its texts are a few percent wider."""

_MAX_COLUMNS = 3


@contextmanager
def print_style() -> Iterator[None]:
    """Draw in the style of all our figures; the same data give the same SVG."""
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1), mpl.rc_context({"svg.hashsalt": ""}):
        yield


def panels(n: int, height: float = 3.5) -> tuple[Figure, np.ndarray]:
    """
    Make a figure with some panels in as few rows as possible.

    :param n: number of panels
    :param height: of a row, in inches
    :return: a figure of its own, never pyplot's, which needs no display and leaves no global state; and its axes, those
        beyond ``n`` invisible
    """
    n_rows = -(-n // _MAX_COLUMNS)
    n_columns = -(-n // n_rows)
    figure = Figure(figsize=(max(6.4, 4.0 * n_columns), height * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for unused in axes.flat[n:]:
        unused.set_visible(False)
    return figure, axes


def add_legend(figure: Figure, title: str) -> None:
    """
    Put the legend below the panels, which keep their height, in as many columns as there is room for.

    :param figure: a figure whose panels have labels
    :param title: of the legend
    """
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for n_columns, width in ((len(entries), 60), (2, 60), (1, 60), (1, 40)):
        figure.legends.clear()
        legend = figure.legend(
            entries.values(),
            [wrapped(label, width) for label in entries],
            title=title,
            loc="outside lower center",
            ncols=n_columns,
            frameon=False,
            handlelength=3,
        )
        if legend.get_window_extent().width <= FULL_WIDTH * figure.bbox.width:
            break
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def wrapped(text: str, width: int) -> str:
    """
    Break a text into lines; no part of it is taken for mathematics, which matplotlib sees between dollars.

    :param text: any text
    :param width: the most characters of a line
    :return: the text to draw
    """
    return textwrap.fill(text, width).replace("$", r"\$")


def thousands(steps: float) -> str:
    """
    Write a number of environment steps in short.

    :param steps: the number
    :return: e.g. ``0``, ``500``, ``2.5k``, ``50k``, ``1M``
    """
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if abs(steps) >= unit:
            return f"{steps / unit:g}{name}"
    return f"{steps:g}"


def write_figure(figure: Figure, path: Path) -> None:
    """
    Write a figure as PNG and SVG; files that are there stay whole until the new ones are.

    :param figure: the figure
    :param path: of the files, without their suffix
    """
    for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
        with replacing(path.with_suffix(suffix)) as file:
            figure.savefig(file, format=suffix[1:], **options)
