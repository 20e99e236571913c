"""Figures for print: their style, panels, legend and files, for the studies of this room and of ``compare``."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_pgext.rollouts.files import replacing

_MAX_COLUMNS = 3
_LABEL_WIDTH = 55
"""Characters of a line of the legend."""
_HANDLE_WIDTH = 11
"""The width of a legend's line and of the space around it, in characters."""
_CHARACTERS_PER_INCH = 12


@contextmanager
def print_style() -> Iterator[None]:
    """Draw in the style of all our figures, a ``$`` as a ``$``; the same data give the same SVG."""
    style: Any = {"svg.hashsalt": "", "text.parse_math": False}
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1), mpl.rc_context(style):
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
    Put the legend below the panels, which keep their height, in as many columns as its longest label leaves room for.

    :param figure: a figure whose panels have labels
    :param title: of the legend
    """
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [textwrap.fill(label, _LABEL_WIDTH) for label in entries]
    room = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
    n_columns = min(len(labels), max(1, room // (_HANDLE_WIDTH + max(map(len, labels)))))
    options = {"title": title, "ncols": n_columns, "frameon": False, "handlelength": 3}
    legend = figure.legend(entries.values(), labels, loc="outside lower center", **options)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def write_figure(figure: Figure, path: Path) -> None:
    """
    Write a figure as PNG and SVG; files that are there stay whole until the new ones are.

    :param figure: the figure
    :param path: of the files, without their suffix
    """
    for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}})):
        with replacing(path.with_suffix(suffix)) as file:
            figure.savefig(file, format=suffix[1:], **options)
