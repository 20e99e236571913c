"""``sb3-pgext compare``: from a study file to its results."""

from pathlib import Path

import joblib
from rich.console import Console

from sb3_pgext.compare.display import show_progress
from sb3_pgext.compare.plots import plot_learning_curves
from sb3_pgext.compare.report import print_summary, results_table, summary_table
from sb3_pgext.compare.runs import Outcome, execute_all, finished
from sb3_pgext.compare.study import Study, find_study, read_study

_FILE_WIDTH = 120
"""Columns of what is printed where there is no terminal to fit it to."""


def compare(study: str | Path, out: Path | None = None, jobs: int | None = None) -> bool:
    """
    Train the runs of a study that have not been trained yet, and compare all of them.

    Writes ``results.csv`` (each evaluation of each run), ``summary.csv`` (each label on each environment),
    ``learning_curves.png`` and ``.svg``, and a folder per run in ``runs/``; prints the summary.

    :param study: path of a study file, or name of a ready one in ``zoo_configs/studies``
    :param out: folder of the results; default: ``runs/<name of the study>``
    :param jobs: runs at the same time; default: one per core
    :return: whether all runs finished
    :raises ValueError: the study is not a valid one; nothing has been trained then
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    parsed = read_study(find_study(str(study)))
    out = out or Path("runs") / parsed.name
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    failures = _train(parsed, out / "runs", jobs or joblib.cpu_count(), console)
    _report(parsed, out, console)
    for failure in failures:
        run = failure.run
        console.print(
            f"failed: {run.label}, {run.environment}, seed {run.seed}: {failure.error} (see {failure.log})",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    return not failures


def _train(study: Study, folder: Path, jobs: int, console: Console) -> list[Outcome]:
    """Train what is missing and return what failed."""
    missing = [run for run in study.runs if not finished(run, folder)]
    if len(missing) < len(study.runs):
        console.print(f"{len(study.runs) - len(missing)} of {len(study.runs)} runs have been trained before")
    if not missing:
        return []
    outcomes = show_progress(execute_all(missing, folder, jobs), missing, folder, console)
    return [outcome for outcome in outcomes if outcome.error is not None]


def _report(study: Study, out: Path, console: Console) -> None:
    """Write and print the comparison of the runs that finished."""
    results = results_table(study, out / "runs")
    if results.empty:
        return
    summary = summary_table(study, results)
    results.to_csv(out / "results.csv", index=False)
    summary.to_csv(out / "summary.csv", index=False)
    plot_learning_curves(study, results, out / "learning_curves")
    print_summary(study, summary, console)
    console.print(f"written to {out}: results.csv, summary.csv, learning_curves.png and .svg")
