"""``sb3-pgext compare``: from a study file to its results."""

import sys
from pathlib import Path

import joblib
from rich.console import Console

from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.display import show_progress
from sb3_pgext.compare.page import aggregate_table, write_pages
from sb3_pgext.compare.plots import FIGURES, plot_study
from sb3_pgext.compare.report import SummaryTable, print_summary, results_table, summary_table, summary_tables
from sb3_pgext.compare.runs import Outcome, execute_all, finished
from sb3_pgext.compare.study import Study, find_study, read_study
from sb3_pgext.rollouts.files import replacing

_TABLES = ("results.csv", "summary.csv")
_FILE_WIDTH = 120
"""Columns of what is printed where there is no terminal to fit it to."""


def compare(study: Study | str | Path, out: Path | None = None, jobs: int | None = None, backend: str = "loky") -> bool:
    """
    Train the runs of a study that have not been trained yet, and compare all of them.

    Writes ``report.html`` and ``summary.md``, their figures as PNG and SVG, ``results.csv`` (each evaluation of each
    run), ``summary.csv`` (each label on each environment) and a folder per run in ``runs/``; prints the summary.

    :param study: what to compare, path of a study file, or name of a ready one in ``zoo_configs/studies``
    :param out: folder of the results; default: ``runs/<name of the study>``
    :param jobs: runs at the same time; default: one per core
    :param backend: of joblib: where they run, see :func:`~sb3_pgext.compare.runs.backend_context`
    :return: whether all runs finished
    :raises ValueError: an argument is not allowed, or the study is not a valid one; nothing has been trained then
    """
    if not isinstance(study, Study):
        study = read_study(find_study(str(study)))
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    out = (out or Path("runs") / study.name).resolve()
    # Runs redirect the standard output while they train, also in this process.
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    failures = _train(study, out / "runs", jobs or joblib.cpu_count(), backend, console)
    _report(study, failures, out, console)
    for failure in failures:
        run = failure.run
        console.print(
            f"failed: {run.label}, {run.environment}, seed {run.seed}: {failure.error} (see {failure.log})",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    return not failures


def _train(study: Study, folder: Path, jobs: int, backend: str, console: Console) -> list[Outcome]:
    """Train what is missing and return what failed."""
    missing = [run for run in study.runs if not finished(run, folder)]
    if len(missing) < len(study.runs):
        console.print(f"{len(study.runs) - len(missing)} of {len(study.runs)} runs have been trained before")
    if not missing:
        return []
    outcomes = show_progress(execute_all(missing, folder, jobs, backend), missing, folder, console)
    return [outcome for outcome in outcomes if outcome.error is not None]


def _report(study: Study, failures: list[Outcome], out: Path, console: Console) -> None:
    """Write and print the comparison of the runs that finished, and which did not."""
    for name in [*_TABLES, *(f"{figure}.{suffix}" for figure in FIGURES for suffix in ("png", "svg"))]:
        (out / name).unlink(missing_ok=True)  # of an earlier study, which may have had figures that this one has not
    results = results_table(study, out / "runs")
    tables: list[SummaryTable] = []
    figures: list[Path] = []
    if not results.empty:
        summary = summary_table(study, results)
        for name, data in zip(_TABLES, (results, summary), strict=True):
            with replacing(out / name) as file:
                data.to_csv(file, index=False)
        tables = summary_tables(study, summary)
        statistics = aggregate(study, results)
        if statistics is not None:
            tables.append(aggregate_table(statistics, study))
        figures = plot_study(study, results, statistics, out)
        print_summary(tables, console)
    write_pages(study, tables, figures, failures, out)
    written = ["report.html", "summary.md"] + (["the figures", *_TABLES] if figures else [])
    console.print(f"written to {_shown(out)}: {', '.join(written)}", soft_wrap=True)


def _shown(path: Path) -> Path:
    """As the user would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
