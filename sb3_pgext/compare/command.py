"""``sb3-pgext compare``: from a study file to its results."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import joblib
from filelock import FileLock, Timeout
from rich.console import Console

from sb3_pgext.compare.aggregate import aggregate
from sb3_pgext.compare.display import progress_shown
from sb3_pgext.compare.page import aggregate_table, grouped, write_pages
from sb3_pgext.compare.plots import FIGURES, plot_study
from sb3_pgext.compare.report import SummaryTable, print_summary, results_table, summary_table, summary_tables
from sb3_pgext.compare.runs import Outcome, check_backend, execute_all, finished, train_along
from sb3_pgext.compare.study import Study, find_study, read_study
from sb3_pgext.parallel import present
from sb3_pgext.rollouts.files import replacing
from sb3_pgext.zoo.console import Every, output_console, show_notes

_TABLES = ("results.csv", "summary.csv")
_FILES = [*_TABLES, *(f"{figure}.{suffix}" for figure in FIGURES for suffix in ("png", "svg"))]
"""Files that not every study has."""
_PICTURE_SECONDS = 10.0
"""Seconds between two pictures of a study that is under way."""


def compare(study: Study | str | Path, out: Path | None = None, jobs: int | None = None, backend: str = "loky") -> bool:
    """
    Train the runs of a study that have not been trained yet, and compare all of them.

    Writes ``report.html`` and ``summary.md``, their figures as PNG and SVG, ``results.csv`` (each evaluation of each
    run), ``summary.csv`` (each label on each environment) and a folder per run in ``runs/``; prints the summary.

    :param study: what to compare, path of a study file, or name of a ready one in ``zoo_configs/studies``
    :param out: folder of the results; default: ``runs/<name of the study>``
    :param jobs: runs at the same time; default: one per core
    :param backend: of joblib: where they run, see :func:`~sb3_pgext.compare.runs.check_backend`
    :return: whether all runs finished. Started by torchrun, all ranks train each run together, one after the other;
        the first one that fails ends it
    :raises ValueError: an argument is not allowed, or the study is not a valid one; nothing has been trained then
    :raises OSError: the folder cannot be written to; nothing has been trained then. Or the disk is full
    :raises KeyboardInterrupt: as it was raised, when the runs that had finished by then have been compared
    """
    if not isinstance(study, Study):
        study = read_study(find_study(str(study)))
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    check_backend(backend)
    if present().several:  # each run is trained by all ranks
        jobs, backend = 1, "sequential"
        if present().rank:
            train_along(present().from_first(None))
            return True
    out = (out or Path("runs") / study.name).resolve()
    console = output_console()
    outcomes: list[Outcome] = []
    with _alone_in(out):
        try:
            _train(study, out, jobs or joblib.cpu_count(), backend, console, outcomes)
        except KeyboardInterrupt:
            _report(study, outcomes, out, console)
            console.print("interrupted: start it again and it goes on with what is missing")
            raise
        _report(study, outcomes, out, console)
    return all(outcome.error is None for outcome in outcomes)


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Lock the folder: of two studies in it each would take the other's unfinished runs for left-overs."""
    lock = out / "runs" / ".lock"
    foreign = [name for name in ("report.html", "summary.md", *_FILES) if (out / name).exists()]
    if foreign and not any((out / "runs").glob("*/log.txt")):
        raise ValueError(f"out={str(out)!r}: it has a {foreign[0]} that is not a study's: allowed is another folder")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise ValueError(f"out={str(out)!r}: another process is training into it: wait for it, or stop it") from None


def _train(study: Study, out: Path, jobs: int, backend: str, console: Console, outcomes: list[Outcome]) -> None:
    """Train what is missing, and draw the curves that there are; how each run ended is appended to the outcomes."""
    folder = out / "runs"
    show_notes(study.notes, console)
    missing = present().from_first([run for run in study.runs if not finished(run, folder)])
    if len(missing) < len(study.runs):
        console.print(f"{len(study.runs) - len(missing)} of {len(study.runs)} runs have been trained before")
    if not missing:
        return
    console.print(f"the curves so far, as runs end: {_shown(out) / 'learning_curves.png'}", soft_wrap=True)
    picture_is_due = Every(_PICTURE_SECONDS)
    with progress_shown(missing, folder, console):
        for outcome in execute_all(missing, folder, jobs, backend):
            outcomes.append(outcome)
            if outcome.error is None and len(outcomes) < len(missing) and picture_is_due():
                plot_study(study, results_table(study, folder), None, out)


def _report(study: Study, outcomes: list[Outcome], out: Path, console: Console) -> None:
    """Print and write the comparison of the runs that finished, and which did not."""
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    results = results_table(study, out / "runs")
    tables: list[SummaryTable] = []
    statistics = None
    if not results.empty:
        summary = summary_table(study, results)
        tables = summary_tables(study, summary)
        statistics = aggregate(study, results)
        if statistics is not None:
            tables.append(aggregate_table(statistics, study))
    print_summary(tables, console)
    failed = grouped(failures, out)
    for failure in failed:
        text = f"failed: {failure.runs}: {failure.error} (see {_shown(out / failure.log)})"
        console.print(text, style="red", markup=False, soft_wrap=True)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)  # of an earlier study, which may have had figures that this one has not
    figures: list[Path] = []
    if not results.empty:
        for name, data in zip(_TABLES, (results, summary), strict=True):
            with replacing(out / name) as file:
                data.to_csv(file, index=False)
        figures = plot_study(study, results, statistics, out)
    write_pages(study, tables, figures, failed, out)
    written = ["report.html", "summary.md"] + (["the figures", *_TABLES] if figures else [])
    console.print(f"written to {_shown(out)}: {', '.join(written)}", soft_wrap=True)


def _shown(path: Path) -> Path:
    """Write a path as the user would."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
