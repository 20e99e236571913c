"""Claim: the figure shows every run with its spread, its axes named with units, and its legend covers no data."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.plots import (
    band,
    improvement_figure,
    learning_curves_figure,
    plot_study,
    profiles_figure,
    sample_efficiency_figure,
)
from sb3_pgext.compare.study import Evaluation, Run, Study


def _study(labels: list[str], environments: list[str], seeds: int) -> tuple[Study, pd.DataFrame]:
    evaluation = Evaluation(5_000, 20)
    runs = tuple(
        Run(label, "ppo", environment, seed, 100_000, evaluation, {})
        for environment in environments
        for seed in range(seeds)
        for label in labels
    )
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": run.label,
            "environment": run.environment,
            "seed": run.seed,
            "timesteps": t,
            "mean_return": rng.normal(t),
        }
        for run in runs
        for t in range(0, 100_001, 5_000)
    ]
    return Study("s", runs, {environments[0]: 50_000.0}), pd.DataFrame(rows)


def test_files_are_written_as_png_and_svg(tmp_path: Path) -> None:
    study, results = _study(["a", "b"], ["X-v0", "Y-v0"], 5)
    names = ["learning_curves", "sample_efficiency", "profiles", "improvement"]
    assert plot_study(study, results, aggregate(study, results), tmp_path) == [tmp_path / name for name in names]
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 8
    assert plot_study(study, results, None, tmp_path) == [tmp_path / "learning_curves"]


@pytest.mark.parametrize("n_environments", [1, 3])
def test_figures_of_all_environments_name_their_axes_and_each_run_once(n_environments: int) -> None:
    labels = [f"algorithm with a long name {i}" for i in range(4)]
    study, results = _study(labels, [f"Environment{i}-v0" for i in range(n_environments)], 5)
    statistics = aggregate(study, results)
    assert statistics is not None
    for draw in (sample_efficiency_figure, profiles_figure):
        figure = draw(study, statistics)
        figure.canvas.draw()
        (axes,), (legend,) = figure.axes, figure.legends
        assert [text.get_text() for text in legend.get_texts()] == labels
        assert "5 seeds" in legend.get_title().get_text()
        assert ("3 environments" in legend.get_title().get_text()) == (n_environments == 3)
        assert not axes.get_tightbbox().overlaps(legend.get_window_extent())
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    figure = improvement_figure(study, statistics)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == labels[1:]
    assert labels[0] in axes.get_xlabel().replace("\n", " ")
    assert axes.get_tightbbox().x0 >= 0


_SENTENCE = "PPO whose label says all about it: value_clip = max, gamma = 0.99, gae_lambda = 0.95, no VecNormalize"


@pytest.mark.parametrize("label", ["PPO (SB3)", _SENTENCE])
def test_a_label_of_any_length_is_whole_and_inside_the_figures(label: str) -> None:
    labels = [f"{label} {i}" for i in range(4)]
    study, results = _study(labels, ["X-v0"], 5)
    statistics = aggregate(study, results)
    assert statistics is not None
    curves = [
        learning_curves_figure(study, results),
        sample_efficiency_figure(study, statistics),
        profiles_figure(study, statistics),
    ]
    improvement = improvement_figure(study, statistics)
    for dpi in (100, 200):
        for figure in curves:
            _draw(figure, dpi)
            (axes,), (legend,) = figure.axes, figure.legends
            assert _unwrapped(legend.get_texts())[:4] == [label.replace(" ", "") for label in labels]
            assert _inside(figure, legend)
            assert not axes.get_tightbbox().overlaps(legend.get_window_extent())
            assert axes.bbox.height > 2 * dpi
        _draw(improvement, dpi)
        (axes,) = improvement.axes
        names = axes.get_yticklabels()
        assert _unwrapped(names) == [label.replace(" ", "") for label in labels[1:]]
        assert labels[0].replace(" ", "") in _unwrapped([axes.xaxis.label])[0]
        for text in [*names, axes.xaxis.label]:
            assert _inside(improvement, text)
        assert not any(a.get_window_extent().overlaps(b.get_window_extent()) for a, b in pairwise(names))
        assert min(axes.bbox.size) > 0.5 * dpi


def _draw(figure: Figure, dpi: int) -> None:
    figure.set_dpi(dpi)
    figure.canvas.draw()


def _inside(figure: Figure, artist: Artist) -> bool:
    box = artist.get_window_extent()
    return figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def _unwrapped(texts: Iterable[Text]) -> list[str]:
    return ["".join(text.get_text().split()) for text in texts]


@pytest.mark.parametrize(("n_labels", "n_environments", "seeds"), [(2, 1, 3), (4, 2, 3), (3, 4, 5)])
def test_axes_are_named_with_units_and_the_legend_names_each_run_once(
    n_labels: int, n_environments: int, seeds: int
) -> None:
    labels = [f"algorithm with a long name {i}" for i in range(n_labels)]
    environments = [f"Environment{i}-v0" for i in range(n_environments)]
    figure = learning_curves_figure(*_study(labels, environments, seeds))
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == environments
    assert {axes.get_xlabel() for axes in panels} == {"environment steps"}
    assert panels[0].get_ylabel() == "mean return of\n20 deterministic episodes"
    assert "20k" in [tick.get_text() for tick in panels[0].get_xticklabels()]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*labels, "threshold 50000"]
    # Nothing lies over anything else.
    boxes = [axes.get_tightbbox() for axes in panels] + [legend.get_window_extent()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_legend_names_also_what_only_one_panel_shows() -> None:
    study, results = _study(["a", "b"], ["X-v0", "Y-v0"], 3)
    study = Study("s", study.runs, {"X-v0": 475.0, "Y-v0": -100.0})
    results = results[(results["run"] == "a") == (results["environment"] == "X-v0")]
    (legend,) = learning_curves_figure(study, results).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "threshold -100, 475", "b"]


def test_an_environment_without_a_finished_run_has_no_panel() -> None:
    study, results = _study(["a", "b"], ["X-v0", "Y-v0"], 3)
    figure = learning_curves_figure(study, results[results["environment"] == "Y-v0"])
    assert [axes.get_title() for axes in figure.axes] == ["Y-v0"]


def test_the_legend_says_what_line_and_band_are() -> None:
    for seeds, text in (
        (1, "line: one seed"),
        (3, "mean of 3 seeds, band: lowest to highest"),
        (5, "interquartile mean of 5 seeds, band: 95 %"),
    ):
        figure = learning_curves_figure(*_study(["a"], ["X-v0"], seeds))
        assert text in figure.legends[0].get_title().get_text()


def test_band_of_few_seeds_is_their_range_around_the_mean() -> None:
    returns = np.array([[1.0, 2.0], [3.0, 7.0], [2.0, 3.0]])
    curve = band(returns, bootstrap=False)
    assert curve.value.tolist() == [2.0, 4.0]
    assert curve.low.tolist() == [1.0, 2.0]
    assert curve.high.tolist() == [3.0, 7.0]


def test_band_of_enough_seeds_is_the_bootstrap_interval_of_the_interquartile_mean() -> None:
    returns = np.random.default_rng(0).normal(size=(8, 3))
    curve = band(returns, bootstrap=True)
    assert curve.value == pytest.approx(np.sort(returns, axis=0)[2:6].mean(axis=0))
    assert (returns.min(axis=0) < curve.low).all()
    assert (curve.low < curve.value).all()
    assert (curve.value < curve.high).all()
